"""The command of a tool that measures what the models of recipes are good for: it trains each one, unless a model is
given, and then measures it in a process of its own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .measured_runs import AVX2, ROOT, describe, run_recipe, run_task
from .measured_table import COLUMNS


def run_command(
    tool: Path,
    description: str | None,
    recipes: Sequence[str],
    measure: Callable[..., dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Measures recipes, prints the table and writes it to a JSON file beside the tool, where new figures replace those
    of the same recipe and column.

    Args:
        tool: its file, training/tools/NAME.py.
        description: of the command.
        recipes: that can be measured.
        measure: takes `model`, the path of a folder, and `recipe`; called in a process of its own.
        table: the figures in Markdown.
    """
    default = tool.with_suffix(".json")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipes", nargs="+", choices=recipes, default=recipes, help="to measure (default: all)")
    parser.add_argument(
        "--model", type=Path, help="folder of a model that the only recipe trained (default: train it)"
    )
    parser.add_argument("--avx2", action="store_true", help="use no instructions beyond AVX2, and so none for bf16")
    parser.add_argument("--figures", type=Path, default=default, help=f"file of the figures (default: {default.name})")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args, flags = parser.parse_known_args()
    if args.child is not None:
        print(json.dumps(measure(**args.child)))
        return
    if args.model is not None and (flags or len(args.recipes) > 1):
        parser.error(
            f"--model must come with one of --recipes and no flags of a training, got {args.recipes}, {flags}"
        )
    environment = AVX2 if args.avx2 else {}
    figures = json.loads(args.figures.read_text(encoding="utf-8")) if args.figures.is_file() else {"columns": {}}
    for recipe in args.recipes:
        model, trained = args.model, None
        if model is None:
            model = ROOT / ("runs-avx2" if args.avx2 else "runs") / recipe
            trained = run_recipe(recipe, model, flags, environment)
        task = {"model": str(model.resolve()), "recipe": recipe}
        measured = run_task(f"training.tools.{tool.stem}", task, environment=environment)
        found = {"machine": describe(), "training": trained, "measured": measured}
        figures["columns"].setdefault(COLUMNS[args.avx2], {})[recipe] = found
        args.figures.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table(figures))
