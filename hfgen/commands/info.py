"""`hfgen info FILE`"""

from __future__ import annotations

import argparse
import json

from .arguments import add_compressed_file, add_json


HELP = "describe a compressed file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_compressed_file(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Shows what a compressed file holds, and which model it needs; the model itself is not read."""
    from ..compression import describe

    found = describe(arguments.file)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if isinstance(value, float) else repr(value)
        print(f"{name.replace('_', ' '):20} {'none' if value is None else shown}")
