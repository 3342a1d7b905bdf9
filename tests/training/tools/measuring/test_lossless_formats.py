"""The bits of an image format are counted right."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from training.evaluation.rate_distortion import mosaic
from training.tools.measuring.lossless_formats import codec_bits


def test_mosaic_places_images_row_by_row() -> None:
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 2, 4).contiguous()
    found = mosaic(images, 3)
    assert found.shape == (4, 12, 3)
    assert found[::2, ::4, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("channels", [1, 3])
def test_bits_are_those_of_the_files(channels: int) -> None:
    noise = torch.randint(256, (9, channels, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    bits = codec_bits(noise)
    # Noise cannot be compressed, and a mosaic pays for one header instead of nine.
    assert all(value >= 8 for name, value in bits.items() if channels == 3 or name.startswith("PNG")), bits
    assert bits["PNG, a mosaic"] < bits["PNG, a file each"]
    assert codec_bits(noise[:1].expand(9, -1, -1, -1).contiguous())["WebP-lossless, a mosaic"] < 6
    file = io.BytesIO()
    pixels = mosaic(noise[:9], 3)
    Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(file, "PNG", optimize=True)
    assert bits["PNG, a mosaic"] == pytest.approx(8 * len(file.getvalue()) / noise.numel())
