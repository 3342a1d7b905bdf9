"""Arguments that several commands have, and how they print a result."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


Parser = argparse.ArgumentParser


def add_model(parser: Parser, help: str | None = None) -> None:
    """A model by its folder or repository, and the revision of a repository."""
    parser.add_argument("model", metavar="MODEL", help=help or "folder, or repository on the Hub")
    add_revision(parser)


def add_revision(parser: Parser, of: str = "MODEL") -> None:
    parser.add_argument("--revision", help=f"branch, tag or commit of {of} (default: main)")


def add_json(parser: Parser, help: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=help)


def add_compressed_file(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a .hfz file")


def add_drawing(parser: Parser) -> None:
    """How images are drawn at random: seed, classes and temperature."""
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    add_labels(parser)
    parser.add_argument("--temperature", "--truncation", type=float,
                        help="below 1 for likelier and less varied images (default: 1)")  # fmt: skip


def add_labels(parser: Parser) -> None:
    parser.add_argument("--label", metavar="CLASS", action="append",
                        help="class of a conditional model, by name or number; may be repeated "
                        "(default: all, in turn)")  # fmt: skip


def print_result(arguments: argparse.Namespace, words: str, **result: Any) -> None:
    """Prints a result in words, or as JSON if --json asks for it."""
    print(json.dumps(result) if arguments.json else words)


def positive(text: str) -> int:
    """The type of an argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
