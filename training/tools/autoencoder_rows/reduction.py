"""How well a few numbers stand for an image: errors of reconstruction, and accuracy of the nearest neighbor.

The neighbor of a test image is the training image with the closest numbers, by Euclidean distance; its class is the
prediction. `training.tools.autoencoder` runs this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from hfgen import AutoencoderModel

from ...config.flags import DataArguments
from ...data.images import ImageData, load_images
from ..measuring.runs import answer_task


ENCODED_TOGETHER = 500
Encode = Callable[[np.ndarray], np.ndarray]


def as_rows(pixels: torch.Tensor) -> np.ndarray:
    """uint8 images -> float32 rows of numbers in [0, 1], (images, numbers)."""
    return pixels.flatten(1).numpy().astype(np.float32) / 255


def error_of_mean_image(train: np.ndarray, test: np.ndarray) -> float:
    """Mean squared error of a test pixel if every image is taken for the mean of the training images."""
    return float(np.square(test - train.mean(0)).mean(dtype=np.float64))


def neighbor_accuracy(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Percentage of test rows whose nearest training row has their label."""
    neighbors = KNeighborsClassifier(n_neighbors=1, algorithm="brute").fit(train, train_labels)
    return 100 * float(neighbors.score(test, test_labels))


def measure_pca(data: ImageData, components: int) -> dict[str, Any]:
    """Fits principal components to the training images; measures them on the test images.

    Returns:
        `metrics`: mse, mean_image_mse and nearest_neighbor; and `seconds_trained`, those of the fit.
    """
    train, test = as_rows(data.train.pixels), as_rows(data.eval_pixels)  # type: ignore[attr-defined]
    started = time.perf_counter()
    pca = PCA(components, random_state=0).fit(train)
    seconds = time.perf_counter() - started
    # Pixels outside of [0, 1] are moved to its ends, as those of the Auto-Encoder are.
    restored = pca.inverse_transform(pca.transform(test)).clip(0, 1)
    return {
        "metrics": {
            "mse": float(np.square(restored - test).mean(dtype=np.float64)),
            "mean_image_mse": error_of_mean_image(train, test),
            **_accuracy(data, train, test, pca.transform),
        },
        "seconds_trained": seconds,
    }


def measure_model(data: ImageData, folder: str) -> dict[str, Any]:
    """Returns `metrics`: the nearest_neighbor in the latents of a trained Auto-Encoder."""
    model = AutoencoderModel.from_pretrained(folder)
    shape = (-1, data.num_channels, *data.image_size)

    def encode(rows: np.ndarray) -> np.ndarray:
        batches = torch.from_numpy(rows).view(shape).split(ENCODED_TOGETHER)
        with torch.inference_mode():
            return torch.cat([model.encode(batch).flatten(1) for batch in batches]).numpy()

    train, test = as_rows(data.train.pixels), as_rows(data.eval_pixels)  # type: ignore[attr-defined]
    return {"metrics": _accuracy(data, train, test, encode)}


def _accuracy(data: ImageData, train: np.ndarray, test: np.ndarray, encode: Encode) -> dict[str, float]:
    """The nearest_neighbor of encoded rows; nothing for data without classes."""
    labels, test_labels = data.train.labels, data.eval_labels  # type: ignore[attr-defined]
    if labels is None or test_labels is None:
        return {}
    return {"nearest_neighbor": neighbor_accuracy(encode(train), labels.numpy(), encode(test), test_labels.numpy())}


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Measures principal components, or the model in a folder, on the data of the task."""
    data = load_images(DataArguments(**task["data"]), 0)
    return measure_model(data, task["folder"]) if "folder" in task else measure_pca(data, task["components"])


if __name__ == "__main__":
    answer_task(__doc__, measure)
