"""Runs the recipes as a user does, and shows what the command's time went to.

    python -m training.tools.benchmark                          # every recipe, on an otherwise idle machine
    python -m training.tools.benchmark --avx2                   # as on a processor without AVX-512 and bf16
    python -m training.tools.benchmark gpt-tiny-shakespeare --max_train_seconds 17

The models are left in runs/, or in runs-avx2/, for `python -m training.tools.collect`. The figures go to
benchmark.json beside this file, with the machine's description, and replace those of an earlier run of the same
command.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .measuring.runs import AVX2, RECIPES, ROOT, run_recipe


FIGURES = Path(__file__).with_suffix(".json")


def table(figures: list[dict[str, Any]]) -> str:
    """One line for each run: the whole command, the training in it, and the other parts."""
    parts = list(dict.fromkeys(part for figure in figures for part in figure["seconds_other"]))
    lines = [["recipe", "command", "training", *parts, "other"]]
    for figure in figures:
        others = figure["seconds_other"]
        rest = figure["seconds"] - figure["seconds_trained"] - sum(others.values())
        seconds = [figure["seconds"], figure["seconds_trained"], *(others.get(part, 0.0) for part in parts), rest]
        lines.append([figure["recipe"], *(f"{value:.1f} s" for value in seconds)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


def main() -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", default=names, help=f"default: {' '.join(names)}")
    parser.add_argument("--avx2", action="store_true", help="use no instructions beyond AVX2, and so none for bf16")
    args, flags = parser.parse_known_args()
    figures: list[dict[str, Any]] = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else []
    folder, environment = (ROOT / "runs-avx2", AVX2) if args.avx2 else (ROOT / "runs", {})
    new = []
    try:
        for recipe in args.recipes:
            figure = run_recipe(recipe, folder / recipe, flags, environment)
            new.append(figure)
            command = ("recipe", "flags", "instructions")
            figures = [old for old in figures if any(old[name] != figure[name] for name in command)] + [figure]
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except ValueError as error:
        sys.exit(str(error))
    print(table(new))


if __name__ == "__main__":
    main()
