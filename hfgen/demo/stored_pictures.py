"""Pictures that a page shows beside a model: points on the map, and neighbors of what one draws."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cards import short_dataset_name
from ..embedding import Embedder, encode_latents, is_conditional
from ..image_datasets import image_column, open_dataset
from ..image_processing import to_pil
from ..model_folder import read_json


MOST_PICTURES = 1000
MOST_PIXELS = 2**22  # of all pictures together: a page has to load them
COLUMNS = 32


@dataclass
class StoredPictures:
    """Pictures, and where the model sees them.

    Attributes:
        pixel_values: (pictures, channels, height, width) in [0, 1].
        latents: (pictures, numbers), flattened.
        labels: the class of each, or None.
        class_names: of the labels.
        words: where the pictures are from.
        are_real: False if the model has drawn them.
    """

    pixel_values: Tensor
    latents: np.ndarray
    labels: np.ndarray | None
    class_names: list[str]
    words: str
    are_real: bool = True

    def sheet(self) -> Any:
        """All pictures as one PIL image, `COLUMNS` in a row, without gaps."""
        count, channels, height, width = self.pixel_values.shape
        rows = -(-count // COLUMNS)
        sheet = torch.zeros(rows * COLUMNS, channels, height, width)
        sheet[:count] = self.pixel_values
        sheet = sheet.view(rows, COLUMNS, channels, height, width).permute(2, 0, 3, 1, 4)
        return to_pil(sheet.reshape(1, channels, rows * height, COLUMNS * width))[0]


def find_images(source: Path) -> tuple[list[str], str | None] | None:
    """The images that a model was evaluated on, if they and what reads them are on this machine: a name and a split,
    or None."""
    results = read_json(source / "results.json") if (source / "results.json").is_file() else {}
    dataset, split = results.get("dataset"), results.get("split")
    reader = "sklearn" if dataset == "digits" else "datasets"
    if not isinstance(dataset, str) or importlib.util.find_spec(reader) is None:
        return None
    if dataset == "digits" or Path(dataset).exists():
        # A part that a run held out by itself is described in words, "10 % of train", and is no split of the dataset.
        is_split = isinstance(split, str) and re.fullmatch(r"\w+(\.\w+)*(\[.+\])?", split) is not None
        return [dataset], split if is_split else None
    return None


def read_pictures(
    model: Any, source: Path, data: Sequence[str], split: str | None, label_column: str = "label"
) -> StoredPictures:
    """Pictures of a dataset, evenly spread over it.

    Args:
        model: encodes images; in evaluation mode.
        source: the model's folder, which says how images are resized.
        data: as for [`hfgen.image_datasets.open_dataset`], or "digits", scikit-learn's.
        split: of the dataset; test, validation or the first one if None.
        label_column: where the classes are; a dataset need not have it, unless the model is conditional.

    Raises:
        ValueError: there are no such images, or they cannot be used.
    """
    images, given, names, split = _digits() if list(data) == ["digits"] else _dataset(data, split, label_column, model)
    if not len(images):
        raise ValueError(f"--images must hold images, got none in {', '.join(data[:3])}.")
    if is_conditional(model.config):
        names = list(model.config.id2label.values())
        if given is None:
            raise ValueError(
                f"--images must have the column of classes {label_column!r}, got none. This model encodes images "
                "given their classes."
            )
    embedder = Embedder(source, label_column=label_column, device="cpu")
    pixel_values = embedder.pixel_values(images)
    labels = None if given is None else np.array([int(label) for label in given])
    latents = _encode(model, pixel_values, labels)
    where = short_dataset_name(data[0]) + (f" ({split})" if split else "")
    return StoredPictures(pixel_values, latents, labels, names, f"{len(images):,} pictures of {where}")


@torch.no_grad()
def draw_pictures(model: Any, labels_of: Sequence[str]) -> StoredPictures:
    """Pictures that the model draws itself, for where there are no others."""
    height, width = model.config.image_size
    count = min(MOST_PICTURES // 2, MOST_PIXELS // (height * width * model.config.num_channels))
    labels = np.arange(count) % len(labels_of) if labels_of else None
    generator = torch.Generator().manual_seed(0)
    pixel_values = model.sample(count, labels=None if labels is None else torch.tensor(labels), generator=generator)
    words = f"{count:,} pictures that the model has drawn itself"
    latents = _encode(model, pixel_values, labels)
    return StoredPictures(pixel_values, latents, labels, list(labels_of), words, are_real=False)


@torch.no_grad()
def _encode(model: Any, pixel_values: Tensor, labels: np.ndarray | None) -> np.ndarray:
    """The latents that the exported encoder gives. Of a Ladder VAE, those of all levels."""
    given = torch.tensor(labels) if labels is not None and is_conditional(model.config) else None
    parts = []
    for start in range(0, len(pixel_values), 100):
        part = slice(start, start + 100)
        classes = None if given is None else given[part]
        if hasattr(model.config, "level_shapes"):
            encoded = model.encode(pixel_values[part], classes, return_dict=True).latent_dist.mode()
        else:
            encoded = encode_latents(model, pixel_values[part], classes)
        parts.append(encoded.flatten(1).float().numpy())
    return np.concatenate(parts)


def _digits() -> tuple[list[Any], list[int] | None, list[str], str | None]:
    """The test images of the built-in dataset of trainings, scikit-learn's digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(
            "--images digits needs scikit-learn, which is not installed. Run: pip install 'hfgen[embedding]'"
        ) from None
    digits = load_digits()
    images = np.round(digits.images[-MOST_PICTURES:] * (255 / 16)).astype(np.uint8)
    return list(images), digits.target[-MOST_PICTURES:].tolist(), [str(digit) for digit in range(10)], None


def _dataset(
    data: Sequence[str], split: str | None, label_column: str, model: Any
) -> tuple[list[Any], list[int] | None, list[str], str | None]:
    splits = open_dataset(data, split, None, None, streaming=False)
    name = next((known for known in ("test", "validation") if known in splits), next(iter(splits)))
    rows = splits[name]
    height, width = model.config.image_size
    most = min(MOST_PICTURES, max(1, MOST_PIXELS // (height * width * model.config.num_channels)))
    if len(rows) > most:
        rows = rows.select([index * len(rows) // most for index in range(most)])
    column = image_column(rows.features, None)
    images = list(rows[column])
    if label_column not in rows.features:
        return images, None, [], name
    feature, values = rows.features[label_column], list(rows[label_column])
    if getattr(feature, "names", None):
        return images, values, list(feature.names), name
    names = sorted({str(value) for value in values}, key=lambda text: (not text.isdecimal(), len(text), text))
    if is_conditional(model.config):
        names = list(model.config.id2label.values())
        unknown = next((value for value in values if str(value) not in names), None)
        if unknown is not None:
            raise ValueError(f"Classes of --images must be some of {', '.join(names)}, got {unknown!r}.")
    return images, [names.index(str(value)) for value in values], names, name
