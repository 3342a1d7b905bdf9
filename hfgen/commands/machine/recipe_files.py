"""The recipes that come with hfgen, and what they reached where they were published."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..train import families
from .installation import CHECKOUT, PACKAGE, find_training


@dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes:
        name: as in `hfgen train FAMILY NAME`.
        family: of the architecture.
        path: of its file.
        flags: its content.
        about: the comment that it begins with.
        results: results.json of the published run; None if there is none.
    """

    name: str
    family: str
    path: Path
    flags: dict[str, Any]
    about: str
    results: dict[str, Any] | None


def recipe_names(family: str | None = None) -> list[str]:
    """The names of all recipes, or of those of a family, without reading them."""
    home, _ = find_training()
    names = [path.stem for path in sorted((home / "recipes").glob("*.yaml"))]
    return [name for name in names if family is None or family_of(name) == family]


def read_recipe(name: str) -> Recipe:
    """Reads a recipe.

    Raises:
        ValueError: there is none of that name.
    """
    import yaml

    name = name.removesuffix(".yaml")
    if name not in recipe_names():
        raise ValueError(f"RECIPE must be one of {', '.join(recipe_names())}, got {name!r}. Check the spelling.")
    home, _ = find_training()
    path = home / "recipes" / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    return Recipe(name, family_of(name), path, yaml.safe_load(text) or {}, _comment(text), _published(name))


def family_of(name: str) -> str:
    """The family of a recipe, which its name begins with: "ladder-vae-mnist" is of the family ladder_vae."""
    return next(family for family in families() if name.startswith(f"{family.replace('_', '-')}-"))


def _comment(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def _published(name: str) -> dict[str, Any] | None:
    """The results beside the model card: in the installed package, or next to it in a checkout."""
    for folder in (PACKAGE / "model_cards", CHECKOUT / "model_cards"):
        path = folder / name / "results.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return None
