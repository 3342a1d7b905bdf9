"""notebook.ipynb of a model's repository, which the button in its card opens in Colab.

    write_notebook("runs/vae-mnist", "me/vae-mnist")        beside the card, and with the card
    name_notebook(text, "me/vae-mnist")                     the same one for another repository

It is made for the model of the folder: it loads it without hfgen, draws, reconstructs or writes with it, and looks
inside. Its text and code are in the Jinja template `model_cards/notebook.md`, a Markdown file whose blocks of Python
become cells.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from .convert.native import NATIVE_TYPES, config_in_words_of_hfgen
from .model_folder import read_json
from .models import MODELS
from .templates import find_template


NOTEBOOK = "notebook.ipynb"
NO_BUTTON = "<!-- The button that opens the notebook in Colab: once the repository is known. -->"
_BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
_BUTTON_LINE = re.compile(rf"^(?:{re.escape(NO_BUTTON)}|{re.escape(_BADGE)}\(.*\))$", flags=re.MULTILINE)
_TEMPLATE = "notebook.md"
_CODE = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_REPO_LINE = re.compile(r'^repo = ".*"$', flags=re.MULTILINE)
_LINK = re.compile(r"\[card\]\(https://huggingface\.co/[^)]*\)")
_MOST_COLUMNS = 16


def write_notebook(folder: str | Path, repo_id: str) -> Path:
    """Writes notebook.ipynb into the folder of a model, replacing an earlier one.

    Args:
        folder: of a model, with its config.json.
        repo_id: repository, or path, that the notebook loads from.

    Raises:
        LoadError: config.json is missing or damaged.
        ValueError: the model is none of hfgen's architectures.
    """
    target = Path(folder) / NOTEBOOK
    temporary = target.with_name(f".{NOTEBOOK}")
    temporary.write_text(render_notebook(folder, repo_id), encoding="utf-8", errors="replace")
    os.replace(temporary, target)
    return target


def render_notebook(folder: str | Path, repo_id: str) -> str:
    """The text that [`write_notebook`] writes: JSON in the form 4.5 of nbformat, without outputs."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=False)
    template = environment.from_string(find_template(_TEMPLATE).read_text(encoding="utf-8"))
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(_CODE.split(template.render(_describe(Path(folder), repo_id)))):
        # Between the blocks of code, which are every second part, lies text.
        is_code = number % 2 == 1
        source = part.strip("\n") if is_code else re.sub(r"\n{3,}", "\n\n", part.strip())
        if source:
            cells.append(_cell("code" if is_code else "markdown", source, len(cells)))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return _to_json({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def name_notebook(notebook: str, repo_id: str) -> str:
    """The notebook with its code loading from this repository; everything else stays, whoever wrote it.

    What is no notebook comes back as it is.
    """
    try:
        content = json.loads(notebook)
        for cell in content["cells"]:
            source = "".join(cell["source"])
            source = _LINK.sub(f"[card](https://huggingface.co/{repo_id})", source)
            cell["source"] = _REPO_LINE.sub(f'repo = "{repo_id}"', source).splitlines(keepends=True)
    except (ValueError, TypeError, KeyError):
        return notebook
    return _to_json(content)


def with_button(card: str, repo_id: str) -> str:
    """The card with the button that opens the notebook of a repository. Its place is the line `NO_BUTTON`, or that of
    an earlier button; a card without either stays as it is."""
    address = f"https://colab.research.google.com/#fileId=https://huggingface.co/{repo_id}/blob/main/{NOTEBOOK}"
    return _BUTTON_LINE.sub(f"{_BADGE}({address})", card)


def without_button(card: str) -> str:
    """A card without its button, or the comment in its place."""
    return _BUTTON_LINE.sub("", card)


def _describe(folder: Path, repo_id: str) -> dict[str, Any]:
    """What the template names."""
    config, native_class = read_json(folder / "config.json"), None
    if config.get("model_type") in NATIVE_TYPES:
        native_class, config = config["architectures"][0], config_in_words_of_hfgen(config)
    model_type = str(config.get("model_type"))
    if model_type not in MODELS:
        raise ValueError(f"The model_type of {folder} must be one of {', '.join(MODELS)}, got {model_type!r}.")
    num_labels = len(config.get("id2label") or {}) if "image_size" in config else 0
    return {
        "repo_id": repo_id,
        "name": repo_id.rpartition("/")[2],
        "family": MODELS[model_type].family,
        "title": MODELS[model_type].title,
        "config": config,
        "native_class": native_class,
        "num_labels": num_labels,
        "columns": num_labels if 1 < num_labels <= _MOST_COLUMNS else 8,
        "is_grayscale": config.get("num_channels") == 1,
        "shape": ", ".join(map(str, [config.get("num_channels"), *(config.get("image_size") or [])])),
    }


def _cell(kind: str, source: str, number: int) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": source.splitlines(keepends=True)}


def _to_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
