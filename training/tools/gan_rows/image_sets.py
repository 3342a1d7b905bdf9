"""Datasets that rows need and nobody publishes: one class of another dataset, and stacked MNIST.

Each is a folder with a Parquet file for a split, as any local dataset, and is made once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...config.flags import DataArguments
from ...data.images import ImageData, load_images


Splits = dict[str, Tensor]


def one_class(dataset: str, label: int, folder: Path) -> Path:
    """The images of one class, without labels.

    Args:
        dataset: as of --dataset_name, with classes.
        label: number of the class.
        folder: that is to hold made datasets.

    Returns:
        the folder of this dataset.
    """

    def choose(data: ImageData) -> Splits:
        pixels, labels = training_images(data)
        return {"train": pixels[labels == label], "test": data.eval_pixels[data.eval_labels == label]}

    return make(folder / f"{Path(dataset).name}-class-{label}", dataset, choose)


def stacked(dataset: str, folder: Path) -> Path:
    """Color images whose channels are three independent gray images of a dataset: of MNIST, it is stacked MNIST (Metz
    et al. 2016, https://arxiv.org/abs/1611.02163). Each image of the dataset is once in each channel.

    Args:
        dataset: as of --dataset_name, of gray images.
        folder: that is to hold made datasets.

    Returns:
        the folder of this dataset.
    """

    def stack(data: ImageData) -> Splits:
        generator = torch.Generator().manual_seed(0)
        splits = {"train": training_images(data)[0], "test": data.eval_pixels}
        return {
            name: torch.cat([pixels[torch.randperm(len(pixels), generator=generator)] for _ in range(3)], dim=1)
            for name, pixels in splits.items()
        }

    return make(folder / f"{Path(dataset).name}-stacked", dataset, stack)


def make(folder: Path, dataset: str, splits_of: Callable[[ImageData], Splits]) -> Path:
    """Writes a dataset that follows from another one, unless it is there.

    Args:
        folder: to write; whole or not at all.
        dataset: the other one.
        splits_of: from it to uint8 images (images, channels, height, width) by split.

    Raises:
        ValueError: the other one cannot be read.
    """
    if folder.is_dir():
        return folder
    data = load_images(DataArguments(dataset_name=dataset, in_memory=True), seed=0)
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for split, pixels in splits_of(data).items():
        write_images(temporary / f"{split}.parquet", pixels)
    temporary.rename(folder)
    return folder


def write_images(path: Path, pixels: Tensor) -> None:
    """Writes uint8 images (images, channels, height, width), gray or RGB, as a column of a Parquet file."""
    import datasets
    from PIL import Image

    layout = pixels.squeeze(1) if pixels.shape[1] == 1 else pixels.permute(0, 2, 3, 1)
    images = [Image.fromarray(array) for array in layout.contiguous().numpy()]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(path)


def training_images(data: ImageData) -> tuple[Tensor, Tensor]:
    """Pixels and labels of the training images that are held in memory.

    Raises:
        ValueError: they have no labels.
    """
    pixels, labels = data.train.pixels, data.train.labels  # type: ignore[attr-defined]
    if labels is None:
        raise ValueError(f"The images must have classes, got {data.name}, which has none. Use another dataset.")
    return pixels, labels
