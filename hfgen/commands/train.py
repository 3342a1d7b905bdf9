"""`hfgen train FAMILY [RECIPE] [--flag value ...]`"""

from __future__ import annotations

import argparse
from pathlib import Path


HELP = "train a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("family", metavar="FAMILY", choices=families(), help="one of %(choices)s")
    parser.add_argument("words", metavar="[RECIPE] [--flag value ...]", nargs=argparse.REMAINDER,
                        help="a recipe's name or path, and flags: `hfgen train FAMILY --help` lists them")  # fmt: skip


def families() -> list[str]:
    """The architectures, from the names of their files: importing them takes seconds."""
    files = sorted((Path(__file__).parents[1] / "models").glob("modeling_*.py"))
    return [file.stem.removeprefix("modeling_") for file in files]


def run(arguments: argparse.Namespace) -> int:
    """Trains a model with accelerate's launcher. Flags of the launcher (--num_processes, --mixed_precision, ...) may
    stand among those of the training."""
    from .machine.launch import train

    return train(arguments.family, arguments.words)
