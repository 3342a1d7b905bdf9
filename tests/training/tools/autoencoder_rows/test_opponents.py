"""Opponents get the form of the images that makes them smallest."""

from __future__ import annotations

import bz2
import io
import lzma

import numpy as np
import pytest
import torch
from PIL import Image

from training.evaluation.rate_distortion import mosaic
from training.tools.autoencoder_rows import opponents
from training.tools.autoencoder_rows.opponents import smallest_forms


def noise(values: int) -> torch.Tensor:
    """16 images of as many values, from 0 to 255."""
    drawn = torch.randint(values, (16, 1, 20, 20), generator=torch.Generator().manual_seed(0))
    return (drawn * (255 // (values - 1))).to(torch.uint8)


def test_pixels_of_two_values_become_bits() -> None:
    found = smallest_forms(noise(2))

    bits = [np.packbits(mosaic(noise(2), columns) > 0).tobytes() for columns in (4, 1)]
    assert found["bz2 -9"]["size"] == min(len(bz2.compress(content)) for content in bits)
    strongest = 9 | lzma.PRESET_EXTREME
    assert found["xz -9e"]["size"] == min(len(lzma.compress(content, preset=strongest)) for content in bits)
    assert 16 * 400 / 8 < found["PNG"]["size"] < 1000 and found["PNG"]["form"] == "mosaic of bits"


def test_other_pixels_stay_bytes() -> None:
    found = smallest_forms(noise(256))

    assert {form["form"] for form in found.values()} <= {"mosaic", "column"}
    assert all(form["size"] > 0.95 * 16 * 400 for form in found.values()), "noise has 8 bits per pixel"
    assert set(found) == {"PNG", "WebP-lossless", "bz2 -9", "xz -9e"}


def test_no_image_is_left_out_of_a_mosaic() -> None:
    """Of 16 images, 4 in a row; a prime number of them is a column."""
    sizes = []
    for count, columns in ((16, 4), (13, 1)):
        images = noise(256)[:count]
        file = io.BytesIO()
        Image.fromarray(mosaic(images, columns)[..., 0]).save(file, "PNG", optimize=True)
        sizes.append((smallest_forms(images)["PNG"]["size"], len(file.getvalue())))
    assert all(found <= expected for found, expected in sizes) and sizes[1][0] == sizes[1][1]


def test_the_order_that_suits_a_compressor_is_found() -> None:
    """Two pictures in turns repeat every 40 rows of a column."""
    turns = noise(256)[:2].repeat(40, 1, 1, 1)
    found = smallest_forms(turns)
    column = len(bz2.compress(mosaic(turns, 1).tobytes()))
    square = len(bz2.compress(mosaic(turns, 8).tobytes()))
    assert found["bz2 -9"]["size"] == min(column, square) and column != square


def test_a_column_that_is_too_long_for_webp_is_left_to_the_mosaic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opponents, "LARGEST_WEBP", 100)
    assert smallest_forms(noise(2))["WebP-lossless"]["form"] == "mosaic"
