"""The latents of images, as one row of numbers for each.

    embed = hfgen.Embedder("me/vae-mnist")
    dataset = dataset.map(embed, batched=True)      adds the column `latents`
    latents = embed.encode(images)                  the same without `datasets`

The command `hfgen embed` writes them to a file: see commands/images/latents_table.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from .hub import fetch_model
from .image_processing import BILINEAR, HfgenImageProcessor, to_pixel_values
from .model_folder import read_json
from .models import MODELS, LadderVAEConfig


LATENTS = "latents"  # the name of the column


class Embedder:
    """Computes the latents of images; a function for `datasets.Dataset.map` with `batched=True`.

    The latents are those that transformers' image-feature-extraction pipeline gives, flattened: of an Auto-Encoder its
    latents, of a VAE the means of q(z|x), and of a Ladder VAE the means of q(z_0|x). Images are converted to gray or
    color, and resized, as for training.

    `map` stores lists of any length. `dataset.cast_column("latents", embedder.feature())` fixes it.

    Args:
        model: a folder, a repository on the Hub, or a model in memory.
        image_column: where `map` finds the images; None for the only column that holds any.
        label_column: where `map` finds the classes, which only a conditional model needs: numbers or names.
        batch_size: images that are encoded at once. (`map` has a batch_size of its own: rows per call.)
        device: where to encode; by default a model in memory stays where it is, and another one goes to a GPU if there
            is one.
        revision: branch, tag or commit of the repository.

    Attributes:
        model: the model.
        latent_shape: of the latents of one image before they were flattened, (latent_dim,) or (latent_dim, h, w).

    Raises:
        HubError: there is no such folder or repository, or no network and no copy.
        LoadError: the model would not load, or not safely.
        ValueError: it is not one of hfgen's models that encode images.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        *,
        image_column: str | None = None,
        label_column: str = "label",
        batch_size: int = 256,
        device: str | torch.device | None = None,
        revision: str | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}. Leave it out for the default.")
        self.resample = BILINEAR
        if isinstance(model, PreTrainedModel):
            self.model: Any = model
            _check_encodes(model.config.model_type, "model")
        else:
            folder = fetch_model(model, revision)
            self.model, self.resample = _load_encoder(folder, str(model)), _read_resample(folder)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device is not None:
            self.model.to(device)
        self.image_column, self.label_column, self.batch_size = image_column, label_column, batch_size
        self.latent_shape = latent_shape(self.model.config)

    @property
    def num_latents(self) -> int:
        """Numbers per image."""
        return math.prod(self.latent_shape)

    @property
    def is_conditional(self) -> bool:
        """Whether images are encoded given their classes."""
        return is_conditional(self.model.config)

    def feature(self) -> Any:
        """The type of the column in `datasets`: lists of `num_latents` numbers in float32."""
        import datasets

        return datasets.List(datasets.Value("float32"), length=self.num_latents)

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """The latents of some rows of a dataset.

        Args:
            rows: their values, by column.

        Returns:
            "latents": float32 (rows, num_latents).

        Raises:
            ValueError: there is no column of images, several, or none of labels for a conditional model; or an image
                or label cannot be used.
        """
        images = rows[self.image_column or _find_images(rows)]
        if not self.is_conditional:
            return {LATENTS: self.encode(images)}
        if self.label_column not in rows:
            raise ValueError(
                f"label_column must be one of {', '.join(rows)}, got {self.label_column!r}. This model encodes images "
                "given their classes."
            )
        return {LATENTS: self.encode(images, rows[self.label_column])}

    def encode(self, images: Sequence[Any], labels: Sequence[Any] | None = None) -> np.ndarray:
        """The latents of images of any kind that [`hfgen.image_processing.to_pixel_values`] takes.

        Args:
            images: in a sequence or array.
            labels: classes of the images, for a conditional model.

        Returns:
            float32 (images, num_latents).

        Raises:
            ValueError: an image or label cannot be used.
        """
        latents = np.empty((len(images), self.num_latents), np.float32)
        was_training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(images), self.batch_size):
                part = slice(start, start + self.batch_size)
                pixel_values = self.pixel_values(list(images[part]))
                latents[part] = self._encode(pixel_values, None if labels is None else labels[part])
        finally:
            self.model.train(was_training)
        return latents

    def pixel_values(self, images: Sequence[Any]) -> Tensor:
        """Images as the model takes them: floats (images, channels, height, width) in [0, 1], on its device."""
        height, width = self.model.config.image_size
        pixels = to_pixel_values(images, self.model.config.num_channels, (height, width), self.resample)
        return pixels.to(self.model.device).float().div_(255)

    @torch.inference_mode()
    def _encode(self, pixel_values: Tensor, labels: Sequence[Any] | None) -> np.ndarray:
        return encode_latents(self.model, pixel_values, labels).flatten(1).float().cpu().numpy()


def encode_latents(model: Any, pixel_values: Tensor, labels: Any = None) -> Tensor:
    """The latents that stand for images: those of an Auto-Encoder, or the means of a VAE's q(z|x).

    Of a ladder, it is the vector at the top; the grids below it say where and how.

    Args:
        model: one of hfgen's models that encode images, in evaluation mode.
        pixel_values: (batch, channels, height, width) in [0, 1].
        labels: classes, for a conditional model.

    Returns:
        (batch, *latent_shape(model.config)).
    """
    encoded = model.encode(pixel_values) if labels is None else model.encode(pixel_values, labels)
    if isinstance(encoded, Tensor):
        return encoded
    means = encoded[0].mode()  # by position, as config.return_dict decides between a ModelOutput and a tuple
    return means[:, : model.config.latent_dim] if _is_ladder(model.config) else means


def latent_shape(config: PreTrainedConfig) -> tuple[int, ...]:
    """Shape of what [`encode_latents`] returns, without the batch."""
    return (config.latent_dim,) if _is_ladder(config) else tuple(config.latent_shape)


def is_conditional(config: PreTrainedConfig) -> bool:
    """Whether the model of a config encodes images given their classes."""
    # transformers gives every config two labels; the models that can be conditional have none by default.
    return not type(config)().num_labels and bool(config.num_labels)


def _is_ladder(config: PreTrainedConfig) -> bool:
    return config.model_type == LadderVAEConfig.model_type


def _check_encodes(model_type: str | None, name: str) -> None:
    encoders = [known for known, entry in MODELS.items() if hasattr(entry.base_model_class, "encode")]
    if model_type not in encoders:
        raise ValueError(
            f"The model_type of {name} must be one of {', '.join(encoders)}, got {model_type!r}. Other models have no "
            "latents of images."
        )


def _load_encoder(folder: Path, name: str) -> Any:
    """The model in a folder, with weights in float32. Runs hfgen's own code, never the code that comes with it."""
    model_type = read_json(folder / "config.json").get("model_type", "")
    _check_encodes(model_type, name)
    model_class: Any = MODELS[model_type].base_model_class
    return model_class.from_pretrained(folder, dtype=torch.float32)


def _read_resample(folder: Path) -> PIL.Image.Resampling:
    """The filter that the model's images are resized with."""
    if not (folder / "preprocessor_config.json").is_file():
        return BILINEAR
    return PIL.Image.Resampling(HfgenImageProcessor.from_pretrained(folder).resample)


def _find_images(rows: Mapping[str, Sequence[Any]]) -> str:
    columns = [column for column in rows if len(rows[column]) and _is_image(rows[column][0])]
    if len(columns) != 1:
        raise ValueError(
            f"There must be one column of images, got {len(columns)} among {', '.join(rows)}. Name one with "
            "image_column."
        )
    return columns[0]


def _is_image(value: Any) -> bool:
    return isinstance(value, PIL.Image.Image) or (isinstance(value, dict) and value.keys() == {"bytes", "path"})
