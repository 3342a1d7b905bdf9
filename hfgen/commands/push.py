"""`hfgen push FOLDER REPO`"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_json, print_result


if TYPE_CHECKING:
    from ..hub import Pushed

HELP = "publish a folder as one commit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="output folder of a training, or a saved model")
    parser.add_argument("repo", metavar="REPO", help="owner/name on the Hub, or a name in your own namespace")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, created if needed (default: main)")
    parser.add_argument("--checkpoints", choices=("none", "last", "all"), default="none",
                        help="training state to include (default: none)")  # fmt: skip
    parser.add_argument("--layout", choices=("hfgen", "native"), default="hfgen",
                        help="native publishes a GPT that needs no custom code (default: hfgen)")  # fmt: skip
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Publishes a folder as one commit, or makes none if the repository already holds everything. Training state,
    logs, pickles and hidden files are left out. With --layout native, a GPT is published in the layout of the class of
    transformers that computes the same, so that nobody needs trust_remote_code."""
    from ..hub import push_folder

    if not arguments.folder.is_dir():
        raise ValueError(f"FOLDER must be a folder, got {str(arguments.folder)!r}. Check the spelling.")
    options: dict[str, Any] = {
        "private": arguments.private, "revision": arguments.revision, "checkpoints": arguments.checkpoints
    }  # fmt: skip
    if arguments.layout == "native":
        pushed = _push_native(arguments.folder, arguments.repo, **options)
    else:
        pushed = push_folder(arguments.folder, arguments.repo, **options)
    words = f"{pushed.url} {'is now at' if pushed.is_new else 'already held everything, at'} commit {pushed.commit}."
    if pushed.left_out:
        words = f"Left out: {', '.join(pushed.left_out)}.\n{words}"
    print_result(arguments, words, **asdict(pushed))


def _push_native(folder: Path, repo: str, **options: Any) -> Pushed:
    """Publishes a folder with its model in the native layout. The training state is published as it is."""
    from ..convert.folders import convert_folder
    from ..hub import push_command, push_folder

    with tempfile.TemporaryDirectory() as home:
        converted = Path(home) / folder.resolve().name
        convert_folder(folder, converted, "native", repo)
        if options["checkpoints"] != "none" and (folder / "checkpoints").is_dir():
            (converted / "checkpoints").symlink_to((folder / "checkpoints").resolve())
        command = f"{push_command(folder, repo, **options)} --layout native"
        return push_folder(converted, repo, command=command, **options)
