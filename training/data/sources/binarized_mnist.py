"""Larochelle's fixed binarization of MNIST, the benchmark of the literature on likelihoods.

Three text files hold an image per line: 784 times 0 or 1, separated by spaces. They are downloaded when the dataset is
first used, 110 MB, and kept as images in the cache of `datasets`. There are no labels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from .downloads import download


SIDE = 28
URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/binarized_mnist_{}.amat"
# As TensorFlow Datasets publishes them.
FILES = {
    "train": ("train", "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
    "validation": ("valid", "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
    "test": ("test", "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
}


def load_binarized_mnist(mirror: str | None = None) -> dict[str, Any]:
    """50,000 images to train on, 10,000 to validate and 10,000 to test, black and white, 28 x 28.

    Args:
        mirror: As in [`download`].

    Returns:
        A `datasets.Dataset` per split, with the column `image`. One process of a machine writes them, others wait.

    Raises:
        ValueError: The files cannot be downloaded, or the disk is full.
    """
    builder = _BinarizedMnist(mirror)
    try:
        builder.download_and_prepare()
    except (datasets.exceptions.DatasetGenerationError, OSError) as error:
        raise ValueError(
            f"binarized-mnist cannot be written to {builder.cache_dir}: {error.__cause__ or error}. Free some space "
            "or set HF_DATASETS_CACHE to a folder on another disk."
        ) from error
    return dict(builder.as_dataset())


def read_amat(path: Path) -> np.ndarray:
    """The images of a file, bool (images, 28, 28)."""
    text = np.fromfile(path, np.uint8).reshape(
        -1, 2 * SIDE * SIDE
    )  # each digit is followed by a space or a line's end
    return (text[:, ::2] == ord("1")).reshape(-1, SIDE, SIDE)


class _BinarizedMnist(datasets.GeneratorBasedBuilder):
    VERSION = datasets.Version("1.0.0")  # raise it when the code would write other images

    def __init__(self, mirror: str | None):
        self.mirror = mirror
        super().__init__(dataset_name="hfgen-binarized-mnist")

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features({"image": datasets.Image()}))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        paths = {split: download(URL.format(name), sha256, self.mirror) for split, (name, sha256) in FILES.items()}
        return [datasets.SplitGenerator(split, {"path": path}) for split, path in paths.items()]

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, pixels in enumerate(read_amat(path)):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            yield number, {"image": {"bytes": file.getvalue(), "path": None}}
