"""`hfgen recipes [FAMILY]`"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from .arguments import add_json
from .train import families


if TYPE_CHECKING:
    from .machine.recipe_files import Recipe

HELP = "list the recipes, and what they reached"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("family", metavar="FAMILY", nargs="?", choices=families(),
                        help="one of %(choices)s (default: all)")  # fmt: skip
    add_json(parser, "print a JSON object per recipe, with all of its flags")


def run(arguments: argparse.Namespace) -> None:
    """Lists the recipes that come with hfgen: the data, the seconds of training, and what the published run reached on
    the machine that is named. `hfgen train FAMILY RECIPE` runs one, and `hfgen doctor RECIPE` says what it takes
    here."""
    from .machine.recipe_files import read_recipe, recipe_names

    found = [read_recipe(name) for name in recipe_names(arguments.family)]
    if arguments.json:
        for recipe in found:
            print(json.dumps(_as_json(recipe)))
        return
    rows = [("recipe", "data", "time", "reached"), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip())
    for hardware in dict.fromkeys(recipe.results["hardware"] for recipe in found if recipe.results):
        print(f"\nReached on {hardware}:")
        names = [recipe.name for recipe in found if recipe.results and recipe.results["hardware"] == hardware]
        print(f"  {', '.join(names)}")


def _row(recipe: Recipe) -> tuple[str, str, str, str]:
    from ..cards import headline, short_dataset_name

    seconds = recipe.flags.get("max_train_seconds")
    data = short_dataset_name(recipe.flags.get("dataset_name") or "built-in")
    reached = [f"{label} {number}" for _, label, number in headline(recipe.results)] if recipe.results else ["-"]
    return recipe.name, data, "" if seconds is None else f"{seconds:,} s", ", ".join(reached)


def _as_json(recipe: Recipe) -> dict[str, Any]:
    results = recipe.results or {}
    return {
        "recipe": recipe.name,
        "family": recipe.family,
        "about": recipe.about,
        "flags": recipe.flags,
        "metrics": results.get("metrics"),
        "steps": results.get("steps"),
        "hardware": results.get("hardware"),
    }
