"""`hfgen compress FILE... OUT --model MODEL`"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_json, add_revision, print_result


HELP = "compress a text or images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="text in UTF-8, or images")
    parser.add_argument("output", metavar="OUT", type=Path, help="new file, OUT.hfz by custom")
    parser.add_argument("--model", required=True,
                        help="a GPT with its tokenizer, for images a codec, or with --lossless a VAE")  # fmt: skip
    add_revision(parser)
    parser.add_argument("--lossless", action="store_true",
                        help="keep every pixel of images, or of folders of images, with a VAE")  # fmt: skip
    parser.add_argument("--split", help="with --lossless, split of the dataset that FILE names")
    parser.add_argument("--quality", type=float, help="of images, from 0 to 1 (default: 0.5)")
    parser.add_argument("--verify", action="store_true",
                        help="decompress before OUT is written, which takes several times as long")  # fmt: skip
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Compresses a text without loss with a GPT; images with a codec, which keeps as much as --quality says; or images
    of one size without loss with a VAE that was trained with --prior normal. The same model is needed to decompress:
    the file names it, and holds the SHA-256 of its weights."""
    from ..compression import compress_files, describe

    container = compress_files(
        arguments.files, arguments.output, arguments.model, arguments.revision, arguments.verify, arguments.quality,
        arguments.lossless, arguments.split,
    )  # fmt: skip
    size, original = arguments.output.stat().st_size, container.original_size
    found = describe(arguments.output)
    if "pixels" in found:
        count, rate = found["images"], 8 * size / found["pixels"]
        words = f"{count:,} images in {size:,} bytes, {rate:.3f} bits per pixel."
    else:
        per_byte = f", {8 * size / original:.3f} bits per byte" if original else ""
        words = f"{original:,} bytes in {size:,}{per_byte}."
    print_result(arguments, f"Wrote {arguments.output}: {words}", output=str(arguments.output), **found)
