"""`hfgen push FOLDER REPO`"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from .arguments import add_json, print_result


HELP = "publish a folder as one commit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="output folder of a training, or a saved model")
    parser.add_argument("repo", metavar="REPO", help="owner/name on the Hub, or a name in your own namespace")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, created if needed (default: main)")
    parser.add_argument("--checkpoints", choices=("none", "last", "all"), default="none",
                        help="training state to include (default: none)")  # fmt: skip
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Publishes a folder as one commit, or makes none if the repository already holds everything. Training state,
    logs, pickles and hidden files are left out."""
    from ..hub import push_folder

    if not arguments.folder.is_dir():
        raise ValueError(f"FOLDER must be a folder, got {str(arguments.folder)!r}. Check the spelling.")
    pushed = push_folder(
        arguments.folder, arguments.repo, private=arguments.private, revision=arguments.revision,
        checkpoints=arguments.checkpoints,
    )  # fmt: skip
    words = f"{pushed.url} {'is now at' if pushed.is_new else 'already held everything, at'} commit {pushed.commit}."
    if pushed.left_out:
        words = f"Left out: {', '.join(pushed.left_out)}.\n{words}"
    print_result(arguments, words, **asdict(pushed))
