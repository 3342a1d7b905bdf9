"""How good are the images of `hfgen compress` at a given size, beside those of JPEG, WebP and AVIF?

    python training/tools/image_compression.py                                  # trains both recipes, as a user would
    python training/tools/image_compression.py --recipes codec-mnist --model runs/codec-mnist  # with a trained model
    python training/tools/image_compression.py --avx2                           # as without AVX-512 and bf16

The image is a mosaic of a million pixels of images that the recipe holds out. Sizes are those of whole files, headers
included; the model is not counted, and neither is a program. Ratios are interpolated at 0.5 bits per pixel between two
qualities. Speeds are those of everything between pixels and bytes, at the quality nearest to that rate.

It prints the table and writes image_compression.json beside this file: new figures replace those of the same recipe
and column.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


if __name__ == "__main__" and not __package__:  # started as a file: run it again as a module of its package
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    runpy.run_module(f"training.tools.{Path(__file__).stem}", run_name="__main__", alter_sys=True)
    sys.exit()

import tempfile
import time
from dataclasses import asdict
from typing import Any

import yaml

from .measured_recipes import run_command
from .measured_runs import RECIPES


CODECS = ("codec-mnist", "codec-cifar10")
OURS = "hfgen compress"


def load_mosaic(recipe: str) -> Any:
    """The mosaic of a recipe's evaluation images, uint8 (height, width, channels)."""
    from ..config.flags import DataArguments
    from ..data.images import load_images
    from ..evaluation.rate_distortion import evaluation_mosaic

    flags = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))
    data = {name: value for name, value in flags.items() if name.startswith("dataset_")}
    return evaluation_mosaic(load_images(DataArguments(**data), 0))


def measure(model: str, recipe: str) -> dict[str, Any]:
    """What the child process measures: the points of each codec's curve, and the speed of the model."""
    from ..evaluation.rate_distortion import measure_formats

    pixels = load_mosaic(recipe)
    points, seconds = measure_files(Path(model), pixels)
    curves = {OURS: points, **measure_formats(pixels)}
    return {
        "pixels": pixels.shape[0] * pixels.shape[1],
        "curves": {name: [asdict(point) for point in curve] for name, curve in curves.items()},
        **seconds,
    }


def measure_files(model: Path, pixels: Any) -> tuple[list[Any], dict[str, float]]:
    """Compresses and decompresses an image as a user does, at each level of quality.

    Args:
        model: a folder.
        pixels: uint8 (height, width, channels).

    Returns:
        the points of the curve, and the seconds of both ways at the level nearest to the rate of comparison.
    """
    import numpy as np
    from PIL import Image

    from hfgen import CodecModel
    from hfgen.compression import compress_images, decompress

    from ..evaluation.rate_distortion import RATE, Point, peak_signal_to_noise

    count, levels, points = pixels.shape[0] * pixels.shape[1], CodecModel.from_pretrained(model).config.num_levels, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(folder / "mosaic.png")
        for level in range(levels):
            packed, restored = folder / f"{level}.hfz", folder / str(level)
            compress_images([folder / "mosaic.png"], packed, model, level / (levels - 1))
            decompress(packed, restored, model)
            found = np.asarray(Image.open(restored / "mosaic.png")).reshape(pixels.shape)
            points.append(Point(8 * packed.stat().st_size / count, peak_signal_to_noise(found, pixels)))
    nearest = min(range(levels), key=lambda level: abs(points[level].bits_per_pixel - RATE))
    return points, measure_speed(model, pixels, nearest / (levels - 1))


def measure_speed(model: Path, pixels: Any, quality: float) -> dict[str, float]:
    """Seconds from pixels to bytes and back; the best of three."""
    import torch

    from hfgen import CodecModel
    from hfgen.compression.lossy import image_codec

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


def table(figures: dict[str, Any]) -> str:
    """The figures in Markdown."""
    from ..evaluation.rate_distortion import RATE, Point, psnr_at

    lines = []
    for column, by_recipe in figures["columns"].items():
        for recipe, found in by_recipe.items():
            machine, measured = found["machine"], found["measured"]
            lines += [f"{machine['hardware']}, {machine['cores']} cores, {column}; a mosaic of {measured['pixels']:,} "
                      f"pixels that {recipe} holds out, at {RATE} bits per pixel", "",
                      "| | PSNR, dB | megapixels/s, compress | decompress |", "|---|---|---|---|"]  # fmt: skip
            for name, curve in measured["curves"].items():
                ratio = psnr_at([Point(**point) for point in curve], RATE)
                speeds = ["", ""]
                if name == OURS:
                    ways = ("compress", "decompress")
                    speeds = [f"{measured['pixels'] / 1e6 / measured[f'seconds_to_{way}']:.2f}" for way in ways]
                lines.append(f"| {name} | {'none' if ratio is None else f'{ratio:.2f}'} | {' | '.join(speeds)} |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    run_command(Path(__file__), __doc__, CODECS, measure, table)


if __name__ == "__main__":
    main()
