"""`hfgen card FOLDER`"""

from __future__ import annotations

import argparse
from pathlib import Path


HELP = "rewrite README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="output folder of a training")
    parser.add_argument("--repo", help="repository named in the card (default: --hub_model_id, or the folder's name)")


def run(arguments: argparse.Namespace) -> None:
    """Rewrites README.md of a run from its results.json, config.json and newest samples."""
    from ..cards import write_card

    print(f"Wrote {write_card(arguments.folder, arguments.repo)}.")
