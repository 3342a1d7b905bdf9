"""`hfgen check MODEL`"""

from __future__ import annotations

import argparse

from .arguments import add_json, add_model, print_result


HELP = "check whether a model would load"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Checks whether a model would load, without running its code: whole files, safetensors, and weights that fit the
    config."""
    from ..hub import fetch_model

    folder = fetch_model(arguments.model, arguments.revision)
    words = f"{arguments.model} would load ({folder})."
    print_result(arguments, words, model=arguments.model, folder=str(folder))
