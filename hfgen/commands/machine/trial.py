"""A few seconds of a recipe on this machine, to say what the whole of it will take.

The data is built in, in the shape of the recipe's own, so that nothing is downloaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .recipe_files import Recipe


# Height, width and channels of the images of datasets that recipes use.
SHAPES = {"ylecun/mnist": (28, 1), "binarized-mnist": (28, 1), "uoft-cs/cifar10": (32, 3)}
FLAGS = ("--dataloader_num_workers", "0", "--disable_tqdm", "--max_eval_samples", "32", "--report_to", "none")
# Measurements of the finished model, which would take longer than the trial.
OWN_FLAGS = {
    "vae": ("--nll_samples", "0"),
    "ladder_vae": ("--nll_samples", "0"),
    "gan": ("--quality_samples", "0"),
}


def try_recipe(recipe: Recipe, seconds: int) -> dict[str, Any]:
    """Trains a recipe for some seconds in a process of its own, in a folder that is removed.

    Args:
        recipe: to try.
        seconds: of training; starting takes a few more.

    Returns:
        "steps_per_second", "memory_bytes" (the most that the process held, None if unknown), "seconds" and "steps" of
        the whole recipe here, and "published": seconds, steps and hardware of the published run, or None.

    Raises:
        ValueError: the recipe's data has a shape that is not known here, or the training failed.
    """
    with tempfile.TemporaryDirectory(prefix="hfgen-trial-") as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "hfgen", "train", recipe.family, str(recipe.path), *_data_flags(recipe),
                   *FLAGS, *OWN_FLAGS.get(recipe.family, ()), "--output_dir", str(output),
                   "--max_train_seconds", str(seconds)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"The trial of {recipe.name} failed: {' '.join(done.stderr.split())[-500:]}")
        results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return _extrapolate(recipe, results)


def _data_flags(recipe: Recipe) -> list[str]:
    """Flags for built-in data in the shape of the recipe's."""
    if recipe.family == "gpt":
        return ["--dataset_name", "python-docs"]
    name = str(recipe.flags.get("dataset_name"))
    if name not in SHAPES:
        raise ValueError(f"RECIPE must be of one of the datasets {', '.join(SHAPES)}, or of text, got {name!r}.")
    side, channels = SHAPES[name]
    size = [] if "image_size" in recipe.flags else ["--image_size", str(side)]
    return ["--dataset_name", "digits", *size, "--num_channels", str(channels)]


def _extrapolate(recipe: Recipe, results: dict[str, Any]) -> dict[str, Any]:
    rate = results["steps"] / results["seconds_trained"]
    seconds = recipe.flags.get("max_train_seconds") or recipe.flags["max_train_steps"] / rate
    published = recipe.results and {
        "seconds": recipe.results["seconds_trained"],
        "steps": recipe.results["steps"],
        "hardware": recipe.results["hardware"],
    }
    return {
        "name": recipe.name,
        "steps_per_second": round(rate, 3),
        "seconds": seconds,
        "steps": round(rate * seconds),
        "mixed_precision": results["mixed_precision"],
        "num_parameters": results["num_parameters"],
        "memory_bytes": _peak_memory(),
        "published": published,
    }


def _peak_memory() -> int | None:
    """The most memory that one of the processes started here has held; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
