"""`hfgen decompress FILE [OUT]`"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_compressed_file, add_json, add_revision, print_result


HELP = "restore a compressed file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_compressed_file(parser)
    parser.add_argument("output", metavar="OUT", type=Path, nargs="?",
                        help="new file, or folder for images (default: FILE less .hfz)")  # fmt: skip
    parser.add_argument("--model", help="where the model is (default: the repository that FILE names)")
    add_revision(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Restores a compressed file: a text byte for byte, images as PNG files in a new folder. It appears only once its
    checksum is right."""
    from ..compression import decompress

    output = decompress(arguments.file, arguments.output, arguments.model, arguments.revision)
    print_result(arguments, f"Wrote {output}.", output=str(output))
