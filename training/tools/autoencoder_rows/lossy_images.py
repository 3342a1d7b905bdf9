"""The rows `codec-mnist` and `codec-cifar10`: how good are images of `hfgen compress`, beside JPEG, WebP and AVIF?

The image is a mosaic of a million pixels of images that the recipe holds out. Sizes are those of whole files, headers
included; the model is not counted, and neither is a program. Ratios are interpolated at 0.5 bits per pixel between two
qualities. Speeds are those of everything between pixels and bytes, at the quality nearest to that rate.

This module measures a model, too, in a process of its own.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hfgen import CodecModel
from hfgen.compression import compress_images, decompress
from hfgen.compression.lossy import image_codec

from ...config.flags import DataArguments
from ...data.images import load_images
from ...evaluation.rate_distortion import (
    RATE,
    Curve,
    Point,
    evaluation_mosaic,
    measure_formats,
    peak_signal_to_noise,
    psnr_at,
)
from ..measuring.rows import Lines, Session, data_of
from ..measuring.runs import answer_task
from ..measuring.table import RowFigures, Runs, heading, markdown, tables_by_column
from .models import mean_of, measure_models, measured_here, trained_for


# Of each row; it is called as its recipe is.
RECIPES = {"codec-mnist": "codec-mnist", "codec-cifar10": "codec-cifar10"}
MODULE = "training.tools.autoencoder_rows.lossy_images"
OURS = "hfgen compress"


def measure_codec(session: Session, row: str) -> Lines:
    """Trains the recipe, and measures its files, and those of other formats."""
    yield OURS, measure_models(session, row, RECIPES[row], MODULE)
    pixels = load_mosaic(RECIPES[row])
    for name, curve in measure_formats(pixels).items():
        yield name, [measured_here(as_figures(curve, pixels))]


def load_mosaic(recipe: str) -> np.ndarray:
    """The mosaic of a recipe's evaluation images, uint8 (height, width, channels)."""
    return evaluation_mosaic(load_images(DataArguments(**data_of(recipe)), 0))


def as_figures(curve: Curve, pixels: np.ndarray) -> dict[str, Any]:
    return {"pixels": pixels.shape[0] * pixels.shape[1], "curve": [asdict(point) for point in curve]}


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """What the process measures of a model: its curve on the mosaic of the recipe, and its speed."""
    pixels, model = load_mosaic(task["recipe"]), Path(task["model"])
    curve = measure_files(model, pixels)
    nearest = min(range(len(curve)), key=lambda level: abs(curve[level].bits_per_pixel - RATE))
    return {**as_figures(curve, pixels), **measure_speed(model, pixels, nearest / (len(curve) - 1))}


def measure_files(model: Path, pixels: np.ndarray) -> Curve:
    """Compresses and decompresses an image as a user does, at each level of quality.

    Args:
        model: a folder.
        pixels: uint8 (height, width, channels).
    """
    count, levels, curve = pixels.shape[0] * pixels.shape[1], CodecModel.from_pretrained(model).config.num_levels, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(folder / "mosaic.png")
        for level in range(levels):
            packed, restored = folder / f"{level}.hfz", folder / str(level)
            compress_images([folder / "mosaic.png"], packed, model, level / (levels - 1))
            decompress(packed, restored, model)
            found = np.asarray(Image.open(restored / "mosaic.png")).reshape(pixels.shape)
            curve.append(Point(8 * packed.stat().st_size / count, peak_signal_to_noise(found, pixels)))
    return curve


def measure_speed(model: Path, pixels: np.ndarray, quality: float) -> dict[str, float]:
    """Seconds from pixels to bytes and back; the best of three."""
    codec = CodecModel.from_pretrained(model).eval()
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    seconds: dict[str, list[float]] = {"seconds_to_compress": [], "seconds_to_decompress": []}
    for _ in range(3):
        started = time.perf_counter()
        parameters, payload, digest = image_codec.encode([("mosaic.png", image)], codec, quality)
        between = time.perf_counter()
        list(image_codec.decode(parameters, payload, codec, digest))
        seconds["seconds_to_compress"].append(between - started)
        seconds["seconds_to_decompress"].append(time.perf_counter() - between)
    return {name: min(found) for name, found in seconds.items()}


def table(row: str, figures: RowFigures) -> str:
    """The row as tables: a line for each format, and each kind of processor by itself."""

    def draw(column: str, lines: dict[str, Runs]) -> str:
        first = next(iter(lines.values()))
        pixels = first[0]["measured"]["pixels"]
        what = f"a mosaic of {pixels:,} pixels that the recipe holds out, at {RATE} bits per pixel"
        cells = [[name, *_cells(runs, name == OURS)] for name, runs in lines.items()]
        header = ["", "PSNR, dB", "megapixels/s, compress", "decompress"]
        above = heading(row, column, first[0], what + trained_for(lines.get(OURS, [])))
        return f"{above}\n\n{markdown(header, cells)}"

    return tables_by_column(figures, draw)


def _cells(runs: Runs, is_ours: bool) -> list[str]:
    ratios = [psnr_at([Point(**point) for point in run["measured"]["curve"]], RATE) for run in runs]
    known = [ratio for ratio in ratios if ratio is not None]
    speeds = ["", ""]
    if is_ours:
        megapixels = runs[0]["measured"]["pixels"] / 1e6
        speeds = [f"{megapixels / mean_of(runs, f'seconds_to_{way}'):.2f}" for way in ("compress", "decompress")]
    return [f"{statistics.fmean(known):.2f}" if known else "none", *speeds]


if __name__ == "__main__":
    answer_task(__doc__, measure)
