"""`hfgen score MODEL IMAGES...`"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_json, add_model


HELP = "find anomalies among images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "folder or repository of an Auto-Encoder")
    parser.add_argument("images", metavar="IMAGES", type=Path, nargs="+", help="image files, and folders of them")
    add_json(parser, "print a JSON object per line instead of a table")
    parser.add_argument("--maps", metavar="FOLDER", type=Path,
                        help="write each image there, painted red where it is strange")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Prints how strange each image is to an Auto-Encoder, and which are anomalies by the threshold that its training
    set. The exit status is 0 unless a file cannot be read. It runs hfgen's own code, never the code that comes with
    the model."""
    from .images.scores import score

    return score(arguments.model, arguments.images, arguments.json, arguments.maps, arguments.revision)
