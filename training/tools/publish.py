"""Publishes the models of the recipes, each as a repository of its own.

    python -m training.tools.publish --namespace ME                    every finished run in runs/
    python -m training.tools.publish --namespace ME runs/vae-mnist     only these folders

A published folder that has not changed gets no new commit, so the command can be repeated.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from hfgen.cards import render_card, write_card
from hfgen.hub import HubError, push_folder
from hfgen.model_folder import LoadError, check_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="publish.py", description="Publishes finished runs, each as a repository named after its folder."
    )
    parser.add_argument(
        "folders", metavar="FOLDER", nargs="*", type=Path, help="finished runs (default: all in runs/)"
    )
    parser.add_argument("--namespace", metavar="ME", required=True, help="user or organization on the Hub")
    parser.add_argument("--private", action="store_true", help="make the repositories private")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "httpx2", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False
    folders = arguments.folders or find_finished(Path("runs"))
    if not folders:
        parser.error("runs/ must hold finished runs, got none. Run the recipes first, or name folders.")
    problems = find_problems(folders)
    if problems:
        print("Nothing was published:\n- " + "\n- ".join(problems), file=sys.stderr)
        return 1
    return publish(folders, arguments.namespace, arguments.private)


def find_finished(home: Path) -> list[Path]:
    """Folders of finished runs, sorted by name."""
    return sorted(path.parent for path in home.glob("*/results.json"))


def find_problems(folders: list[Path]) -> list[str]:
    """Everything that keeps folders from being published, found before any of them is."""
    problems = []
    for folder in folders:
        try:
            check_folder(folder)
            render_card(folder)
        except ValueError as error:
            problems.append(str(error))
    names = [folder.resolve().name for folder in folders]
    problems += [
        f"Folder names must differ, got two named {name}. Rename one."
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    return problems


def publish(folders: list[Path], namespace: str, private: bool = False) -> int:
    """Pushes each folder, continuing past failures; returns the exit status."""
    published, failed = [], []
    for folder in folders:
        repo_id = f"{namespace}/{folder.resolve().name}"
        try:
            write_card(folder, repo_id)
            pushed = push_folder(folder, repo_id, private=private)
        except (HubError, LoadError) as error:
            failed.append(repo_id)
            print(f"{repo_id}: {error}", file=sys.stderr)
            continue
        published.append(pushed.repo_id)
        print(f"{pushed.url} {'is published' if pushed.is_new else 'has not changed'}.", flush=True)
    print(f"Published {len(published)} of {len(folders)}." + (f" Failed: {', '.join(failed)}." if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
