"""The Auto-Encoder as a scikit-learn transformer.

    transformer = hfgen.AutoencoderTransformer(latent_dim=32, random_state=0)
    latents = transformer.fit_transform(images)                          # (n, 32)
    images = transformer.inverse_transform(latents)
    make_pipeline(AutoencoderTransformer(), KNeighborsClassifier()).fit(images, labels)

It trains by a plain loop, AdamW with a cosine schedule: the small sibling of `hfgen train autoencoder`, for arrays
that fit in memory. `AutoencoderTransformer(model="me/autoencoder")` uses what that command trained.
"""

from __future__ import annotations

import copy
import inspect
import math
import time
import warnings
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from .hub import fetch_model
from .models import AutoencoderConfig, AutoencoderModel


try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "hfgen.AutoencoderTransformer needs scikit-learn 1.6 or newer. Run: pip install 'hfgen[embedding]'"
    ) from error


WARMUP_STEPS = 20
INFERENCE_BATCH = 512
START_IMAGES = 1024  # whose mean and spread a new model starts at
# Fields of the config that follow from the images and from latent_dim.
SHAPE_FIELDS = ("image_size", "num_channels", "latent_dim")


class AutoencoderTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Reduces images to a few numbers with an [`AutoencoderModel`], and brings them back.

    To reconstruct better than PCA, it takes a few hundred steps of training and at most a quarter as many latents as
    pixels: the 64 pixels of scikit-learn's digits come back better from 8 or 16 latents than from as many components,
    but not from 32.

    Images are an array (n, height, width), (n, height, width, channels), or (n, features) of flat images.

    Args:
        latent_dim: numbers per image, or channels of a spatial latent.
        image_shape: (height, width) or (height, width, channels) of flat images. By default they are gray squares;
            rows whose length is no square are taken as images one pixel high, with a warning.
        value_range: (black, white) of the images; lower and higher values of images to transform are clipped. By
            default (0, 255) for uint8, (0, 1) for values within, and otherwise the range of the training images.
        epochs: passes over the training images.
        max_seconds: an earlier end of the training. Its result then depends on the machine's speed.
        learning_rate: of AdamW, after a warm-up and before a cosine decay to 0.
        batch_size: images per step.
        config: further fields of [`AutoencoderConfig`], such as `{"hidden_channels": [64, 128], "noise_std": 0.2}`.
        model: a trained Auto-Encoder that is used as it is: a folder, a repository on the Hub, or an
            [`AutoencoderModel`]. `fit` then only checks that the images fit it, and latent_dim is not used.
        random_state: a seed or `numpy.random.RandomState`; determines the initial weights and the order of the images,
            and on a CPU the result.
        device: where to compute; by default a GPU if there is one.

    Attributes:
        model_: the [`AutoencoderModel`]; its `save_pretrained` writes a folder that AutoModel loads.
        image_shape_: of one image, as in the array given to `fit` or in `image_shape`.
        value_range_: (black, white).
        loss_curve_: mean loss of the training in each epoch; empty if `model` was given.
        n_features_in_: numbers per image before the reduction.
    """

    def __init__(
        self,
        latent_dim: int = 32,
        *,
        image_shape: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
        epochs: int = 20,
        max_seconds: float | None = None,
        learning_rate: float = 2e-3,
        batch_size: int = 64,
        config: dict[str, Any] | None = None,
        model: str | Path | AutoencoderModel | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str | None = None,
    ):
        self.latent_dim = latent_dim
        self.image_shape = image_shape
        self.value_range = value_range
        self.epochs = epochs
        self.max_seconds = max_seconds
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.config = config
        self.model = model
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None) -> AutoencoderTransformer:
        """Trains an Auto-Encoder on images, or checks that they fit `model`.

        Args:
            X: images; see the class.
            y: ignored.

        Raises:
            ValueError: a parameter or the images cannot be used.
        """
        self._check_parameters()
        rows, self.image_shape_ = self._flat_images(X, reset=True)
        self._is_flat = _ndim(X) == 2
        self.value_range_ = self._find_value_range(rows)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model_ = self._new_model(seed) if self.model is None else self._given_model()
        self.model_.to(device)
        if self.model is None:
            self.model_.start_at(self._batches(rows[:: math.ceil(len(rows) / START_IMAGES)]))
        self._n_features_out = math.prod(self.model_.config.latent_shape)
        self.loss_curve_ = self._train(rows, seed) if self.model is None else []
        self.model_.eval()
        return self

    @torch.inference_mode()
    def transform(self, X: Any) -> np.ndarray:
        """Latents of images, float32 (n, latent_dim); those of a spatial latent are flattened."""
        check_is_fitted(self)
        rows, _ = self._flat_images(X, reset=False)
        latents = [self.model_.encode(part).flatten(1).float().cpu().numpy() for part in self._batches(rows)]
        return np.concatenate(latents)

    @torch.inference_mode()
    def inverse_transform(self, X: Any) -> np.ndarray:
        """Images of latents, float32 in `value_range_`, in the layout that `fit` was given.

        Args:
            X: (n, latent_dim).
        """
        check_is_fitted(self)
        latents = check_array(X, dtype=np.float32)
        if latents.shape[1] != self._n_features_out:
            raise ValueError(
                f"X must have {self._n_features_out} latents in each row, got {latents.shape[1]}. Use what transform "
                "returned."
            )
        height, width, _ = self._height_width_channels()
        black, white = self.value_range_
        parts = []
        for part in torch.from_numpy(np.ascontiguousarray(latents)).split(INFERENCE_BATCH):
            part = part.to(self.model_.device).unflatten(1, self.model_.config.latent_shape)
            decoded = self.model_.decode(part)[:, :, :height, :width].permute(0, 2, 3, 1)
            parts.append((decoded.float() * (white - black) + black).cpu().numpy())
        images = np.concatenate(parts)
        return images.reshape(len(images), -1) if self._is_flat else images.reshape(-1, *self.image_shape_)

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the mean squared error of the reconstruction, in units of the images: larger is better.

        It lets GridSearchCV choose parameters without labels.
        """
        latents = self.transform(X)
        rows, _ = self._flat_images(X, reset=False)
        total = 0.0
        for start in range(0, len(rows), INFERENCE_BATCH):
            part = slice(start, start + INFERENCE_BATCH)
            difference = self.inverse_transform(latents[part]).reshape(-1, rows.shape[1]) - rows[part]
            total += float(np.square(difference, dtype=np.float64).sum())
        return -total / rows.size

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    # ------------------------------------------------------------------------------------------ images and parameters

    def _check_parameters(self) -> None:
        problems = []
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size), ("latent_dim", self.latent_dim)):
            if not isinstance(value, (int, np.integer)) or value < 1:
                problems.append(f"{name} must be a whole number of at least 1, got {value!r}")
        if not _is_positive(self.learning_rate):
            problems.append(f"learning_rate must be a positive number, got {self.learning_rate!r}")
        if self.max_seconds is not None and not _is_positive(self.max_seconds):
            problems.append(f"max_seconds must be a positive number or None, got {self.max_seconds!r}")
        if self.value_range is not None and not (len(self.value_range) == 2 and np.diff(self.value_range)[0] > 0):
            problems.append(f"value_range must be (black, white) with black below white, got {self.value_range!r}")
        known = [name for name in inspect.get_annotations(AutoencoderConfig) if name not in SHAPE_FIELDS]
        unknown = sorted(set(self.config or {}).difference(known))
        if unknown:
            problems.append(f"config must have fields among {', '.join(known)}, got {', '.join(unknown)}")
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def _flat_images(self, X: Any, reset: bool) -> tuple[np.ndarray, tuple[int, ...]]:
        """Images as (n, features) in their own type, and the shape of one of them."""
        shape: tuple[int, ...] | None = None
        if _ndim(X) > 2:
            X = check_array(X, allow_nd=True, dtype="numeric")
            shape, X = X.shape[1:], X.reshape(len(X), -1)
            expected = self.image_shape if reset else self.image_shape_
            if len(shape) > 3 or (expected is not None and _with_channels(shape) != _with_channels(tuple(expected))):
                wanted = "(height, width) or (height, width, channels)" if expected is None else tuple(expected)
                raise ValueError(f"X must hold images of shape {wanted}, got {shape}. Rearrange the array.")
        rows = validate_data(self, X, reset=reset, dtype="numeric")
        if not reset:
            return rows, self.image_shape_
        return rows, shape or self._shape_of_flat(rows.shape[1])

    def _shape_of_flat(self, features: int) -> tuple[int, ...]:
        if self.image_shape is not None:
            shape = tuple(self.image_shape)
            if len(shape) not in (2, 3) or math.prod(shape) != features:
                raise ValueError(
                    f"image_shape must be (height, width) or (height, width, channels) of {features} numbers in all, "
                    f"as many as a row of X has, got {shape}."
                )
            return shape
        side = math.isqrt(features)
        if side * side == features:
            return side, side
        warnings.warn(
            f"The {features} features of X are taken as an image one pixel high, as {features} is no square number. "
            "Give image_shape, the (height, width) or (height, width, channels) of the images.",
            stacklevel=4,
        )
        return 1, features

    def _find_value_range(self, rows: np.ndarray) -> tuple[float, float]:
        lowest, highest = float(rows.min()), float(rows.max())
        if self.value_range is not None:
            black, white = map(float, self.value_range)
            if lowest < black or highest > white:
                raise ValueError(
                    f"value_range must hold all values of X, got {self.value_range!r} and values from {lowest:.6g} to "
                    f"{highest:.6g}. Leave it out, or rescale the images."
                )
            return black, white
        if rows.dtype == np.uint8:
            return 0.0, 255.0
        if lowest >= 0 and highest <= 1:
            return 0.0, 1.0
        return lowest, highest if highest > lowest else lowest + 1

    def _height_width_channels(self) -> tuple[int, int, int]:
        return _with_channels(self.image_shape_)

    def _pixel_values(self, rows: np.ndarray) -> Tensor:
        """Flat images as the model takes them, enlarged to its size by repeating the last row and column."""
        height, width, channels = self._height_width_channels()
        black, white = self.value_range_
        scaled = np.clip((rows.astype(np.float32) - black) / (white - black), 0, 1, dtype=np.float32)
        images = torch.from_numpy(scaled).to(self.model_.device)
        images = images.view(-1, height, width, channels).permute(0, 3, 1, 2)
        full_height, full_width = self.model_.config.image_size
        return F.pad(images, (0, full_width - width, 0, full_height - height), mode="replicate")

    def _batches(self, rows: np.ndarray) -> Any:
        for start in range(0, len(rows), INFERENCE_BATCH):
            yield self._pixel_values(rows[start : start + INFERENCE_BATCH])

    # --------------------------------------------------------------------------------------------------------- models

    def _new_model(self, seed: int) -> Any:
        height, width, channels = self._height_width_channels()
        fields = dict(self.config or {})
        stages = len(fields.get("hidden_channels") or AutoencoderConfig().hidden_channels)
        size = _padded(height, width, 2**stages)
        try:
            config = AutoencoderConfig(image_size=size, num_channels=channels, latent_dim=self.latent_dim, **fields)
        except StrictDataclassError as error:
            raise ValueError(f"config cannot be used: {error.__cause__ or error}") from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoencoderModel(config)

    def _given_model(self) -> Any:
        if isinstance(self.model, (str, Path)):
            folder = fetch_model(self.model, model_type=AutoencoderConfig.model_type)
            model: Any = AutoencoderModel.from_pretrained(folder, dtype=torch.float32)
        else:
            model = copy.deepcopy(self.model)  # its device may change
        config, (height, width, channels) = model.config, self._height_width_channels()
        size = _padded(height, width, config.downsampling)
        if (channels, *size) != (config.num_channels, *config.image_size):
            raise ValueError(
                f"X must hold images of {' x '.join(map(str, config.image_size))} pixels with {config.num_channels} "
                f"channels, as model was trained on, got {height} x {width} with {channels}. Resize or convert them."
            )
        return model

    def _train(self, rows: np.ndarray, seed: int) -> list[float]:
        """Trains the model; returns the mean loss of each epoch."""
        model, generator = self.model_.train(), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate)
        steps, started = self.epochs * math.ceil(len(rows) / self.batch_size), time.perf_counter()
        step, losses = 0, []
        for _ in range(self.epochs):
            total = torch.zeros((), device=model.device)
            seen = 0
            for chosen in torch.randperm(len(rows), generator=generator).split(self.batch_size):
                done = step / steps
                if self.max_seconds is not None:
                    done = max(done, (time.perf_counter() - started) / self.max_seconds)
                if done >= 1:
                    break
                for group in optimizer.param_groups:
                    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
                    group["lr"] = self.learning_rate * warmup * (1 + math.cos(math.pi * done)) / 2
                loss = self._loss(self._pixel_values(rows[chosen.numpy()]), generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(chosen)
                seen, step = seen + len(chosen), step + 1
            if not seen:
                break
            losses.append(float(total) / seen)
            if not math.isfinite(losses[-1]):
                raise ValueError(f"learning_rate {self.learning_rate} must be lower: the training diverged.")
        return losses

    def _loss(self, pixel_values: Tensor, generator: torch.Generator) -> Tensor:
        batch, device = len(pixel_values), pixel_values.device
        changes = self.model_.draw_changes(
            tuple(pixel_values.shape[1:]),
            normal=lambda *shape: torch.randn(batch, *shape, generator=generator).to(device),
            uniform=lambda *shape: torch.rand(batch, *shape, generator=generator).to(device),
        )
        return self.model_(pixel_values, **changes).loss


def _is_positive(value: Any) -> bool:
    return isinstance(value, Real) and 0 < float(value) < math.inf


def _ndim(X: Any) -> int:
    """Axes of an array, a table, or of what numpy makes an array of."""
    return X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim


def _with_channels(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(height, width, channels) of an image that may have no axis of channels."""
    height, width, channels = (*shape, 1)[:3]
    return height, width, channels


def _padded(height: int, width: int, multiple: int) -> list[int]:
    """The smallest height and width that hold an image and are divisible."""
    return [math.ceil(side / multiple) * multiple for side in (height, width)]
