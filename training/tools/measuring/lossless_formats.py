"""How many bits lossless image formats take: the opponents of a model's bits per dimension."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ...evaluation.rate_distortion import mosaic


# The most thorough settings of both. `exact` keeps the colors of transparent pixels, and there are none.
CODECS: dict[str, dict[str, Any]] = {
    "WebP-lossless": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6, "exact": True},
    "PNG": {"format": "PNG", "optimize": True},
}


def codec_bits(images: Tensor) -> dict[str, float]:
    """Bits per dimension of images in each format, in one large mosaic and in a file for each image.

    A mosaic favors the formats: they pay for their header and for what they learn of the images once.

    Args:
        images: uint8 (images, channels, height, width), gray or RGB.

    Returns:
        name of the format and of the way -> bits per pixel and channel. A mosaic is as square as it can be and holds
        as many of the first images as fill its rows.
    """
    found = {}
    for name, options in CODECS.items():
        columns = math.isqrt(len(images))
        whole = images[: len(images) // columns * columns]
        found[f"{name}, a mosaic"] = 8 * _size(mosaic(whole, columns), options) / whole.numel()
        found[f"{name}, a file each"] = 8 * sum(_size(_hwc(image), options) for image in images) / images.numel()
    return found


def _hwc(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def _size(pixels: np.ndarray, options: dict[str, Any]) -> int:
    """Bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, **options)
    return len(file.getvalue())
