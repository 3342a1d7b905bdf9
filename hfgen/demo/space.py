"""The explorer as a static Space on the Hub."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData

from ..cards import is_hub_id
from ..hub import Pushed, push_files


# Files that a newer explorer replaces, or drops.
OWN_FILES = re.compile(r"(onnx|runtime)/.+|[^/]+\.(js|css|html|json|bin)|pictures\.png")


def render_card(about: dict[str, Any], name: str) -> str:
    """README.md of a Space, which says how to serve it.

    Args:
        about: what is in explorer.json.
        name: of the model.
    """
    data = SpaceCardData(
        title=f"{about['title'].rpartition('/')[2]} explorer"[:100],
        emoji="✍️" if about["view"] == "text" else "🗺️",
        colorFrom="yellow",
        colorTo="red",
        sdk="static",
        app_file="index.html",
        pinned=False,
        models=[name] if is_hub_id(name) else None,
        tags=["hfgen", "onnxruntime-web"],
    )
    model = f"[{name}](https://huggingface.co/{name})" if is_hub_id(name) else about["title"]
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {about['title']}\n\nA page to play with {model} in a browser, written by "
        "`hfgen demo`. The model runs in the browser: any server of static files will do, such as "
        "`python -m http.server` in this folder.\n"
    )


def push_space(folder: str | Path, repo_id: str, *, private: bool = False) -> Pushed:
    """Publishes a folder that [`hfgen.demo.write_explorer`] wrote, as one commit or none.

    Args:
        folder: of the explorer.
        repo_id: owner/name of the Space, created if needed, or a name in your own namespace.
        private: make a new Space private.

    Raises:
        HubError: the push failed; the Space is unchanged.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    command = shlex.join(["hf", "upload", repo_id, str(folder), ".", "--repo-type", "space"])
    return push_files(
        files, repo_id, private=private, message="Explorer by hfgen", command=command, repo_type="space",
        own_files=OWN_FILES,
    )  # fmt: skip
