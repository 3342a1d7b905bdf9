"""How small does `hfgen compress --lossless` make images, beside PNG, WebP, bz2 and xz?

    python training/tools/lossless_compression.py           # trains both recipes, as a user would
    python training/tools/lossless_compression.py --recipes ladder-vae-mnist-lossless --model runs/mine
    python training/tools/lossless_compression.py --avx2    # as without AVX-512 and bf16

All images that a recipe holds out are in one file; its size counts all headers and initial bits, and not the model.
The others get a mosaic of 2,500 of these images, which favors them: they pay for a header once, and learn from one
image for the next. Beside the size stands the evidence lower bound, which is the size that bits back can reach.
Seconds are those of the commands, from pixels to a file and from there to PNG files.

It prints the table and writes lossless_compression.json beside this file: new figures replace those of the same recipe
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

import bz2
import io
import lzma
import math
import tempfile
import time
from typing import TYPE_CHECKING, Any

import yaml

from .image_codecs import CODECS, mosaic
from .measured_recipes import run_command
from .measured_runs import RECIPES


if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LOSSLESS = ("ladder-vae-binarized-mnist-lossless", "ladder-vae-mnist-lossless")
OURS = "hfgen compress --lossless"
MOSAIC_COLUMNS = 50
_BATCH = 256


def held_out_images(recipe: str) -> Tensor:
    """All evaluation images of a recipe, uint8 (images, channels, height, width)."""
    import torch

    from ..config.flags import DataArguments
    from ..data.images import load_images

    flags = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))
    data = load_images(
        DataArguments(**{name: value for name, value in flags.items() if name.startswith("dataset_")}), 0
    )
    batches = data.eval_batches(_BATCH, torch.device("cpu"), None)
    return torch.cat([(255 * batch["pixel_values"]).round().to(torch.uint8) for batch in batches])


def measure(model: str, recipe: str) -> dict[str, Any]:
    """What the child process measures."""
    images = held_out_images(recipe)
    chosen = images[:: max(1, len(images) // MOSAIC_COLUMNS**2)][: MOSAIC_COLUMNS**2]
    sizes = general_sizes(mosaic(chosen, MOSAIC_COLUMNS), bool(((images == 0) | (images == 255)).all()))
    others = {name: {"size": size, "bits_per_pixel": 8 * size / chosen.numel()} for name, size in sizes.items()}
    return {"images": len(images), "mosaic": len(chosen), "rows": {OURS: measure_model(model, images), **others}}


def general_sizes(pixels: np.ndarray, is_binary: bool) -> dict[str, int]:
    """Bytes that general formats and compressors need for an image.

    Args:
        pixels: uint8 (height, width, channels).
        is_binary: whether all are 0 or 255. PNG then has one bit per pixel; the compressors get bits or bytes,
            whichever they make smaller.
    """
    import numpy as np
    from PIL import Image

    found = {}
    for name, options in CODECS.items():
        image, file = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels), io.BytesIO()
        (image.convert("1") if is_binary and name == "PNG" else image).save(file, **options)
        found[name] = len(file.getvalue())
    forms = [pixels.tobytes(), *([np.packbits(pixels > 0).tobytes()] if is_binary else [])]
    found["bz2 -9"] = min(len(bz2.compress(form, 9)) for form in forms)
    found["xz -9e"] = min(len(lzma.compress(form, preset=9 | lzma.PRESET_EXTREME)) for form in forms)
    return found


def measure_model(model: str, images: Tensor) -> dict[str, Any]:
    """Size, seconds and the evidence lower bound of all images in one file.

    Raises:
        ValueError: the pixels did not come back.
    """
    import numpy as np
    from PIL import Image

    from hfgen.compression import compress_lossless, decompress
    from hfgen.compression import describe as describe_file

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
    bound = evidence_bits(model, images)
    return {"size": content["size"], "bits_per_pixel": bits, "elbo_bits_per_pixel": bound,
            "initial_bytes": content["initial_bytes"], **seconds}  # fmt: skip


def evidence_bits(model: str, images: Tensor) -> float:
    """The negative evidence lower bound in bits per pixel and channel."""
    import torch

    from hfgen.compression.lossless.lossless_files import load_vae

    vae, total = load_vae(Path(model)).float(), 0.0
    torch.manual_seed(0)
    with torch.inference_mode():
        for batch in images.split(_BATCH):
            total += sum(terms.sum().item() for terms in vae.evidence_terms(batch.float() / 255))
    return total / math.log(2) / images.numel()


def table(figures: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = []
    for column, by_recipe in figures["columns"].items():
        for recipe, found in by_recipe.items():
            machine, measured = found["machine"], found["measured"]
            ours = measured["rows"][OURS]
            lines += [f"{machine['hardware']}, {machine['cores']} cores, {column}; {measured['images']:,} images that "
                      f"{recipe} holds out, and for the others {measured['mosaic']:,} of them in a mosaic", "",
                      "| | bits per pixel | its ELBO | images/s, compress | decompress |",
                      "|---|---|---|---|---|"]  # fmt: skip
            for name, row in measured["rows"].items():
                shown = ["", "", ""]
                if name == OURS:
                    speeds = [measured["images"] / ours[f"seconds_to_{way}"] for way in ("compress", "decompress")]
                    shown = [f"{ours['elbo_bits_per_pixel']:.4f}", *(f"{speed:,.0f}" for speed in speeds)]
                lines.append(f"| {name} | {row['bits_per_pixel']:.4f} | {' | '.join(shown)} |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    run_command(Path(__file__), __doc__, LOSSLESS, measure, table)


if __name__ == "__main__":
    main()
