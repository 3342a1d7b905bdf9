"""What lossless images are compared with: general formats and compressors, each in the form that suits it best."""

from __future__ import annotations

import bz2
import io
import lzma
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ...evaluation.rate_distortion import mosaic
from ..measuring.lossless_formats import CODECS


LARGEST_WEBP = 16383  # pixels of a side
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "bz2 -9": lambda content: bz2.compress(content, 9),
    "xz -9e": lambda content: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
}


def smallest_forms(images: Tensor) -> dict[str, dict[str, Any]]:
    """What all images together take by each format and compressor, in the smallest of its forms.

    Images stand below each other, or in a mosaic. Pixels of two values are bits as well as bytes.

    Args:
        images: uint8 (images, channels, height, width), gray or RGB.

    Returns:
        by name, the `size` in bytes and the `form` in words.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, form, size in _sizes(images):
        if name not in found or size < found[name]["size"]:
            found[name] = {"size": size, "form": form}
    return found


def _sizes(images: Tensor) -> Iterator[tuple[str, str, int]]:
    """Name, form and bytes of everything that is tried."""
    is_binary = bool(((images == 0) | (images == 255)).all())
    for layout, columns in (("mosaic", _most_square(len(images))), ("column", 1)):
        pixels = mosaic(images, columns)
        for name, options in CODECS.items():
            if name != "WebP-lossless" or max(pixels.shape[:2]) <= LARGEST_WEBP:
                yield name, layout, _file_size(pixels, options)
                if is_binary and name == "PNG":
                    yield name, f"{layout} of bits", _file_size(pixels, options, mode="1")
        contents = {layout: pixels.tobytes()}
        if is_binary:
            contents[f"{layout} of bits"] = np.packbits(pixels > 0).tobytes()
        for form, content in contents.items():
            for name, compress in COMPRESSORS.items():
                yield name, form, len(compress(content))


def _most_square(count: int) -> int:
    """How many columns a mosaic of `count` images has that leaves none out and is as close to a square as possible."""
    return next(columns for columns in range(math.isqrt(count), 0, -1) if count % columns == 0)


def _file_size(pixels: np.ndarray, options: dict[str, Any], mode: str | None = None) -> int:
    image, file = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels), io.BytesIO()
    image.convert(mode or image.mode).save(file, **options)
    return len(file.getvalue())
