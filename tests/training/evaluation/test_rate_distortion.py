"""Rates and ratios by hand, and curves of codecs that are what they say."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.compression.lossy.image_data import tiny_codec
from training.evaluation.rate_distortion import (
    HEADER_BYTES,
    Point,
    best_points,
    codec_curve,
    measure_formats,
    mosaic,
    peak_signal_to_noise,
    psnr_at,
)
from training.output.plots import draw_rate_distortion


def photograph() -> np.ndarray:
    rows, columns = np.mgrid[:64, :96]
    return (128 + 60 * np.sin(rows / 7) + 50 * np.cos(columns / 5)).astype(np.uint8)[..., None]


def test_a_mosaic_holds_the_images_row_by_row() -> None:
    images = torch.arange(7).view(7, 1, 1, 1).expand(7, 3, 2, 2).byte()

    found = mosaic(images)

    assert found.shape == (6, 4, 3)
    assert found[::2, ::2, 0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert mosaic(images, columns=3).shape == (4, 6, 3)


def test_ratio_of_a_known_error() -> None:
    """Every pixel off by 51, a fifth of the range: 10 log10(25) = 13.98 dB."""
    original = np.full((4, 4, 1), 100, np.uint8)

    assert peak_signal_to_noise(original + 51, original) == pytest.approx(13.979, abs=1e-3)
    assert peak_signal_to_noise(original, original) == 100


def test_ratios_between_points_are_linear() -> None:
    curve = [Point(1.0, 30.0), Point(0.25, 20.0), Point(0.75, 28.0)]

    assert psnr_at(curve, 0.5) == pytest.approx(24)
    assert psnr_at(curve, 1.0) == 30 and psnr_at(curve, 0.25) == 20
    assert psnr_at(curve, 0.2) is None and psnr_at(curve, 1.1) is None


def test_formats_are_measured_by_their_files() -> None:
    pixels = photograph()

    curves = measure_formats(pixels, qualities=(20, 80))

    assert {"JPEG"} <= set(curves) <= {"JPEG", "WebP", "AVIF"}, "names as plots and tables show them"
    for name, (low, high) in curves.items():
        assert low.bits_per_pixel < high.bits_per_pixel and low.psnr < high.psnr, name
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(file, "JPEG", quality=20, optimize=True)
    assert curves["JPEG"][0].bits_per_pixel == 8 * len(file.getvalue()) / (64 * 96)
    decoded = np.asarray(Image.open(file))
    assert curves["JPEG"][0].psnr == pytest.approx(peak_signal_to_noise(decoded[..., None], pixels))


def test_only_the_best_files_are_on_a_curve() -> None:
    """The point at 0.75 is worse than a line from 0.5 to 1.0, and those at 1.5 and 0.5 than others as large."""
    points = [
        Point(1.0, 30.0),
        Point(0.5, 20.0),
        Point(0.75, 24.0),
        Point(2.0, 32.0),
        Point(1.5, 29.0),
        Point(0.5, 21.0),
    ]

    assert best_points(points) == [Point(0.5, 21.0), Point(1.0, 30.0), Point(2.0, 32.0)]


def test_formats_may_keep_color_at_full_resolution() -> None:
    """Red and green stripes of a pixel: at half the resolution nothing is left of them, at any quality."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2, 0] = pixels[:, 1::2, 1] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling="4:2:0")
    halved = peak_signal_to_noise(np.asarray(Image.open(file)), pixels)

    curves = measure_formats(pixels, qualities=(95,))

    for name in {"JPEG", "AVIF"} & set(curves):
        assert curves[name][-1].psnr > halved + 10, name


def test_the_curve_of_a_codec_has_a_point_for_each_level() -> None:
    model, pixels = tiny_codec(), photograph()

    curve = codec_curve(model, pixels)

    assert len(curve) == model.config.num_levels == 3
    image = torch.from_numpy(pixels[..., 0])[None, None] / 255
    symbols = model.encode_symbols(image, 1.0)
    expected = (float(model.code_lengths(symbols, 1.0)) + 8 * HEADER_BYTES) / (64 * 96)
    assert curve[2].bits_per_pixel == pytest.approx(expected, rel=1e-3)
    error = float((model.decode_symbols(symbols, 1.0, (64, 96)) - image).square().mean())
    assert curve[2].psnr == pytest.approx(-10 * np.log10(error), abs=0.05)


def test_the_plot_is_a_picture() -> None:
    curves = {"this model": [Point(0.2, 20.0), Point(1.0, 30.0)], "JPEG": [Point(0.3, 19.0), Point(2.0, 31.0)]}

    plot = draw_rate_distortion(curves)

    colors = plot.convert("RGB").getcolors(1 << 20)
    assert plot.size == (840, 504) and any(color == (192, 57, 43) for _, color in colors)
