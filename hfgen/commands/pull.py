"""`hfgen pull REPO [FOLDER]`"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_json, add_revision, print_result


HELP = "download a checked copy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", metavar="REPO", help="owner/name on the Hub")
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?", help="new folder (default: the name of REPO)"
    )
    add_revision(parser, of="REPO")
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Downloads a model into a folder, which appears only once everything is there and has been checked. The model's
    code is not run."""
    from ..hub import pull

    folder = pull(arguments.repo, arguments.folder, arguments.revision)
    print_result(arguments, f"{arguments.repo} is in {folder}.", repo=arguments.repo, folder=str(folder))
