"""The rows `lossless-mnist` and `lossless-binarized`: how small does `hfgen compress --lossless` make images?

Beside it stand PNG, WebP, bz2 and xz.

All images that a recipe holds out are in one file; its size counts all headers and initial bits, and not the model.
The others get the same images together, so that they pay for a header once and learn from one image for the next, in
the form that suits them best (opponents.py). Beside the size stands the evidence lower bound, which is the size that
bits back can reach. Seconds are those of the commands, from pixels to a file and from there to PNG files.

This module measures a model, too, in a process of its own.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hfgen.compression import compress_lossless, decompress
from hfgen.compression import describe as describe_file
from hfgen.compression.lossless.lossless_files import load_vae

from ...config.flags import DataArguments
from ...data.images import load_images
from ..measuring.rows import Lines, Session, data_of
from ..measuring.runs import answer_task
from ..measuring.table import RowFigures, Runs, heading, markdown, tables_by_column
from .models import mean_of, measure_models, measured_here, trained_for
from .opponents import smallest_forms


RECIPES = {
    "lossless-mnist": "ladder-vae-mnist-lossless",
    "lossless-binarized": "ladder-vae-binarized-mnist-lossless",
}
MODULE = "training.tools.autoencoder_rows.lossless_images"
OURS = "hfgen compress --lossless"
_BATCH = 256


def measure_lossless(session: Session, row: str) -> Lines:
    """Trains the recipe, and measures the file of its held-out images, and those of other formats."""
    yield OURS, measure_models(session, row, RECIPES[row], MODULE)
    images = held_out_images(RECIPES[row])
    for name, form in smallest_forms(images).items():
        bits = 8 * form["size"] / images.numel()
        yield name, [measured_here({**form, "images": len(images), "bits_per_pixel": bits})]


def held_out_images(recipe: str) -> Tensor:
    """All evaluation images of a recipe, uint8 (images, channels, height, width)."""
    data = load_images(DataArguments(**data_of(recipe)), 0)
    batches = data.eval_batches(_BATCH, torch.device("cpu"), None)
    return torch.cat([(255 * batch["pixel_values"]).round().to(torch.uint8) for batch in batches])


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """What the process measures: a model, on what its recipe holds out."""
    return measure_model(task["model"], held_out_images(task["recipe"]))


def measure_model(model: str, images: Tensor) -> dict[str, Any]:
    """Size, seconds and the evidence lower bound of all images in one file.

    Raises:
        ValueError: the pixels did not come back.
    """
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder, "images.hfz")
        started = time.perf_counter()
        compress_lossless(images.numpy(), packed, model)
        between = time.perf_counter()
        restored = decompress(packed, Path(folder, "images"), model)
        seconds = {"seconds_to_compress": between - started, "seconds_to_decompress": time.perf_counter() - between}
        for path, image in zip(sorted(restored.iterdir()), images.permute(0, 2, 3, 1).numpy(), strict=True):
            if not np.array_equal(np.asarray(Image.open(path)), image.squeeze(2) if image.shape[2] == 1 else image):
                raise ValueError(f"The decompressed images must be those of the recipe, got another {path.name}.")
        content = describe_file(packed)
    bits = 8 * content["size"] / images.numel()
    return {"images": len(images), "size": content["size"], "bits_per_pixel": bits,
            "elbo_bits_per_pixel": evidence_bits(model, images), "initial_bytes": content["initial_bytes"],
            **seconds}  # fmt: skip


def evidence_bits(model: str, images: Tensor) -> float:
    """The negative evidence lower bound in bits per pixel and channel."""
    vae, total = load_vae(Path(model)).float(), 0.0
    torch.manual_seed(0)
    with torch.inference_mode():
        for batch in images.split(_BATCH):
            total += sum(terms.sum().item() for terms in vae.evidence_terms(batch.float() / 255))
    return total / math.log(2) / images.numel()


def table(row: str, figures: RowFigures) -> str:
    """The row as tables, a line for each format."""

    def draw(column: str, lines: dict[str, Runs]) -> str:
        first = next(iter(lines.values()))[0]
        what = f"{first['measured']['images']:,} images that {RECIPES[row]} holds out"
        header = ["", "bits per pixel", "its ELBO", "images/s, compress", "decompress", "form"]
        above = heading(row, column, first, what + trained_for(lines.get(OURS, [])))
        return f"{above}\n\n{markdown(header, [[name, *_cells(runs)] for name, runs in lines.items()])}"

    return tables_by_column(figures, draw)


def _cells(runs: Runs) -> list[str]:
    measured = runs[0]["measured"]
    shown = [f"{mean_of(runs, 'bits_per_pixel'):.4f}"]
    if "elbo_bits_per_pixel" not in measured:
        return [*shown, "", "", "", measured["form"]]
    speeds = [measured["images"] / mean_of(runs, f"seconds_to_{way}") for way in ("compress", "decompress")]
    return [*shown, f"{mean_of(runs, 'elbo_bits_per_pixel'):.4f}", *(f"{speed:,.0f}" for speed in speeds), ""]


if __name__ == "__main__":
    answer_task(__doc__, measure)
