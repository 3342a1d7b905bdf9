"""Measures the images of a model or of a folder beside those of a dataset: the work of `hfgen evaluate`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfgen.hub import fetch_model
from hfgen.image_processing import IMAGE_SUFFIXES, to_pixel_values
from hfgen.model_folder import read_json
from hfgen.models import MODELS

from .config.flags import DataArguments
from .data.images import ImageData, load_images
from .evaluation.reference import Reference
from .evaluation.sample_quality import measure_images, sample_quality
from .objective import Metrics


logger = logging.getLogger(__name__)
READ_AT_ONCE = 1000  # files


@dataclass
class Evaluation:
    """What was measured, and on what."""

    source: str
    data: ImageData
    metrics: Metrics

    def to_json(self) -> dict[str, Any]:
        """Returns it under the names that results.json has."""
        return {
            "source": self.source,
            **self.data.describe(),
            "metrics": self.metrics.by_name(),
            "metrics_missing": self.metrics.missing,
            "metrics_details": self.metrics.details,
        }


def evaluate_images(source: str, dataset: DataArguments, count: int, revision: str | None = None) -> Evaluation:
    """Compares generated images with the evaluation split of a dataset, in the features of the dataset's classifier.

    Args:
        source: a folder of images; or a folder or Hub repository of a model that draws images.
        dataset: the real images.
        count: the largest number of generated images; never more than there are real ones.
        revision: branch, tag or commit of the model's repository.

    Raises:
        ValueError: there are no images, one of them cannot be read, or the model draws none.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        data = load_images(dataset, seed=0)
        pixels = read_folder(Path(source), data, min(count, data.num_eval_examples))
        return Evaluation(source, data, measure_images(pixels, Reference(data, device)))
    model = load_sampler(source, revision).to(device)
    config = model.config
    data = load_images(dataset, 0, list(config.image_size), config.num_channels, bool(config.num_labels))
    if config.num_labels and len(data.label_names) != config.num_labels:
        raise ValueError(
            f"DATASET must have the {config.num_labels} classes of {source}, got {len(data.label_names)} in "
            f"{data.name}. Name the column of its classes with --label_column, or use the model's own dataset."
        )
    return Evaluation(source, data, sample_quality(model, data, count, Reference(data, device)))


def load_sampler(name_or_path: str, revision: str | None = None) -> Any:
    """Returns a model that draws images, in evaluation mode. It runs hfgen's own code only.

    Raises:
        ValueError: the model cannot be loaded, or draws no images.
    """
    folder = fetch_model(name_or_path, revision)
    model_type = read_json(folder / "config.json").get("model_type", "")
    architecture = MODELS.get(model_type)
    if architecture is None or architecture.samples != "images":
        able = ", ".join(name for name, entry in MODELS.items() if entry.samples == "images")
        raise ValueError(
            f"The model_type of {name_or_path} must be one of {able}, got {model_type!r}. Give the folder of images "
            "that another model has drawn."
        )
    return architecture.base_model_class.from_pretrained(folder).eval()


def read_folder(folder: Path, data: ImageData, count: int) -> Tensor:
    """Returns images of a folder and of the folders in it, in the order of their names, in size and color like those
    of the dataset.

    Args:
        folder: hidden files and folders in it are left out.
        data: the real images. Images of another size are resized, with a warning.
        count: the largest number of images: evenly spread ones, if there are more.

    Returns:
        uint8 (images, channels, height, width).

    Raises:
        ValueError: there are no images, or one of them cannot be read.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise ValueError(
            f"MODEL_OR_FOLDER must hold a model or images, got {folder}, which has no config.json, and no file with a "
            "usual suffix such as .png or .jpg. Check the name."
        )
    if len(files) > count:
        files = [files[index * len(files) // count] for index in range(count)]
    _warn_of_another_size(files[0], data)
    parts = []
    for start in range(0, len(files), READ_AT_ONCE):
        try:
            parts.append(to_pixel_values(files[start : start + READ_AT_ONCE], data.num_channels, data.image_size))
        except ValueError:
            _raise_for_one(files[start : start + READ_AT_ONCE], data)
            raise
    return torch.cat(parts)


def _warn_of_another_size(file: Path, data: ImageData) -> None:
    try:
        height, width = to_pixel_values([file], data.num_channels).shape[2:]
    except ValueError:
        return  # reported where all are read
    if (height, width) != tuple(data.image_size):
        logger.warning(
            "Images of %s x %s pixels, such as %s, are resized to the %s x %s of %s, which changes what is measured.",
            height, width, file, *data.image_size, data.name,
        )  # fmt: skip


def _raise_for_one(files: list[Path], data: ImageData) -> None:
    """Raises the error of the first file at fault, with its name."""
    for file in files:
        try:
            to_pixel_values([file], data.num_channels, data.image_size)
        except ValueError as error:
            raise ValueError(f"{file}: {str(error).removeprefix('images, position 0: ')}") from None
