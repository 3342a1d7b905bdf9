"""Rate and distortion of codecs: what a mosaic of images takes, and what is left of it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from hfgen import CodecModel

from ..data.images import ImageData


RATE = 0.5  # bits per pixel at which codecs are compared
MOSAIC_PIXELS = 2**20
# More bytes than the headers of a .hfz file with one image take.
HEADER_BYTES = 256
# Each with the settings of Pillow that may suit it best: color at half the resolution, as is usual, saves bits at low
# rates, and limits what higher rates can reach. WebP has no choice.
FORMATS: dict[str, list[dict[str, Any]]] = {
    "JPEG": [{"optimize": True, "subsampling": "4:2:0"}, {"optimize": True, "subsampling": "4:4:4"}],
    "WebP": [{"method": 6}],
    "AVIF": [{"speed": 6, "subsampling": "4:2:0"}, {"speed": 6, "subsampling": "4:4:4"}],
}
QUALITIES = (0, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80)


@dataclass(frozen=True)
class Point:
    """One file: its size in bits per pixel, all headers included, and the peak signal-to-noise ratio in dB."""

    bits_per_pixel: float
    psnr: float


Curve: TypeAlias = list[Point]


def mosaic(images: Tensor, columns: int | None = None) -> np.ndarray:
    """Images (images, channels, height, width) side by side, (rows * height, columns * width, channels).

    By default, it is as square as it can be, and holds as many of the first images as fill its rows.
    """
    columns = math.isqrt(len(images)) if columns is None else columns
    images = images[: len(images) // columns * columns]
    _, channels, height, width = images.shape
    grid = images.view(-1, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return grid.reshape(-1, columns * width, channels).numpy()


def evaluation_mosaic(data: ImageData) -> np.ndarray:
    """A mosaic of about a million pixels, uint8 (height, width, channels), of evaluation images from all of the
    split."""
    height, width = data.image_size
    limit = max(1, MOSAIC_PIXELS // (height * width))
    batches = data.eval_batches(256, torch.device("cpu"), limit)
    return mosaic(torch.cat([(255 * batch["pixel_values"]).round().to(torch.uint8) for batch in batches]))


@torch.no_grad()
def codec_curve(model: CodecModel, pixels: np.ndarray) -> Curve:
    """A point for each level of quality of a model with tables.

    Args:
        model: in evaluation mode.
        pixels: uint8 (height, width, channels).
    """
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(model.device, torch.float32) / 255
    image = image.contiguous(memory_format=torch.channels_last)
    levels, (height, width) = model.config.num_levels, pixels.shape[:2]
    curve = []
    for level in range(levels):
        symbols = model.encode_symbols(image, level / (levels - 1))
        bits = float(model.code_lengths(symbols, level / (levels - 1))) + 8 * HEADER_BYTES
        decoded = model.decode_symbols(symbols, level / (levels - 1), (height, width))
        found = (255 * decoded[0]).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        curve.append(Point(bits / (height * width), peak_signal_to_noise(found, pixels)))
    return curve


def measure_formats(pixels: np.ndarray, qualities: Iterable[int] = QUALITIES) -> dict[str, Curve]:
    """Curves of JPEG, WebP and AVIF, as far as Pillow writes them here, by name: the best files of all settings.

    Args:
        pixels: uint8 (height, width, channels).
        qualities: from 0 to 100.
    """
    known = {"WebP": features.check("webp"), "AVIF": features.check("avif")}
    return {
        name: best_points(
            _measure_file(pixels, name, {"quality": quality, **options})
            for quality in qualities
            for options in settings[: 1 if pixels.shape[2] == 1 else None]  # without color, they are the same
        )
        for name, settings in FORMATS.items()
        if known.get(name, True)
    }


def best_points(points: Iterable[Point]) -> Curve:
    """The upper hull of points, from the smallest file to the one with the highest ratio: no other point and no line
    between two points lies above it."""
    curve: Curve = []
    for point in sorted(points, key=lambda point: (point.bits_per_pixel, -point.psnr)):
        if curve and point.psnr <= curve[-1].psnr:
            continue
        while len(curve) > 1 and _slope(curve[-2], curve[-1]) <= _slope(curve[-1], point):
            curve.pop()
        curve.append(point)
    return curve


def _slope(low: Point, high: Point) -> float:
    return (high.psnr - low.psnr) / (high.bits_per_pixel - low.bits_per_pixel)


def psnr_at(curve: Curve, bits_per_pixel: float) -> float | None:
    """The ratio at a rate, linear between two points of a curve; None outside of them."""
    points = sorted(curve, key=lambda point: point.bits_per_pixel)
    for low, high in zip(points, points[1:]):
        if low.bits_per_pixel <= bits_per_pixel <= high.bits_per_pixel:
            share = (bits_per_pixel - low.bits_per_pixel) / max(high.bits_per_pixel - low.bits_per_pixel, 1e-12)
            return low.psnr + share * (high.psnr - low.psnr)
    return None


def peak_signal_to_noise(decoded: np.ndarray, original: np.ndarray) -> float:
    """Of uint8 pixels, in dB; at most 100, which 8 bits cannot resolve."""
    mse = float(np.square(decoded.astype(np.float64) - original).mean()) / 255**2
    return min(100.0, -10 * math.log10(max(mse, 1e-10)))


def _measure_file(pixels: np.ndarray, name: str, options: dict[str, Any]) -> Point:
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    image.save(file, name, **options)
    decoded = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert(image.mode)).reshape(pixels.shape)
    return Point(8 * len(file.getvalue()) / (pixels.shape[0] * pixels.shape[1]), peak_signal_to_noise(decoded, pixels))
