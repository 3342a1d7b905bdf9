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
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "training" / "recipes"
FIGURES = Path(__file__).with_suffix(".json")
# Read by oneDNN, by torch's own kernels and by MKL.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def run(recipe: str, output_dir: Path, flags: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Trains a recipe with `hfgen train`; returns what benchmark.json holds of it.

    Raises:
        ValueError: the command failed.
    """
    family = recipe.partition("-")[0]
    shutil.rmtree(output_dir, ignore_errors=True)
    # Relative, because results and cards hold the command.
    words = ["train", family, recipe, "--output_dir", os.path.relpath(output_dir, ROOT), "--disable_tqdm", *flags]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "hfgen", *words], cwd=ROOT, env={**os.environ, **environment})
    seconds = time.perf_counter() - started
    if done.returncode:
        raise ValueError(f"hfgen {' '.join(words)} must succeed, got exit status {done.returncode}. See above.")
    results = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    kept = ("metrics", "metrics_details", "steps", "examples_seen", "num_parameters", "seconds_trained",
            "seconds_other", "hardware", "choices", "versions")  # fmt: skip
    return {
        "recipe": recipe,
        "flags": flags,
        "instructions": environment,
        "seconds": round(seconds, 1),
        **{name: results[name] for name in kept},
    }


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
            figure = run(recipe, folder / recipe, flags, environment)
            new.append(figure)
            command = ("recipe", "flags", "instructions")
            figures = [old for old in figures if any(old[name] != figure[name] for name in command)] + [figure]
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except ValueError as error:
        sys.exit(str(error))
    print(table(new))


if __name__ == "__main__":
    main()
