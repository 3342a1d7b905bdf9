"""A recipe run as by a user, a module in a process of its own, and the machine in words."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[3]
RECIPES = ROOT / "training" / "recipes"
# Read by oneDNN, by torch's own kernels and by MKL.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
CPUINFO = Path("/proc/cpuinfo")


def has_bf16_tiles() -> bool:
    """Whether the processor has AMX tiles for bf16; False where the system does not say."""
    return CPUINFO.is_file() and "amx_bf16" in CPUINFO.read_text(encoding="utf-8").split()


def family_of(recipe: str) -> str:
    """The family of models that a recipe trains: what its name begins with, as `ladder-vae-mnist` of `ladder_vae`.

    Raises:
        ValueError: there is no such family.
    """
    from ...config.scripts import SCRIPTS

    fitting = [family for family in SCRIPTS if recipe.startswith(f"{family.replace('_', '-')}-")]
    if not fitting:
        raise ValueError(f"recipe must begin with a family ({', '.join(SCRIPTS)}) and a hyphen, got {recipe!r}.")
    return max(fitting, key=len)


def run_recipe(recipe: str, output_dir: Path, flags: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Trains a recipe with `hfgen train`.

    Args:
        recipe: its name.
        output_dir: emptied first.
        flags: in addition to those of the recipe.
        environment: variables that limit the processor, such as `AVX2`; none for all of its instructions.

    Returns:
        what the tools record of a run: the command's `seconds`, and the numbers of its results.json.

    Raises:
        ValueError: there is no such recipe, or the command failed.
    """
    if not (RECIPES / f"{recipe}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise ValueError(f"recipe must be one of {known}, got {recipe!r}.")
    return {"recipe": recipe, **run_training(family_of(recipe), [recipe], output_dir, flags, environment)}


def run_training(
    family: str, recipe: list[str], output_dir: Path, flags: list[str], environment: dict[str, str]
) -> dict[str, Any]:
    """Trains with `hfgen train`, as [`run_recipe`] does.

    Args:
        family: of the model.
        recipe: its name; empty to train with the default flags.
        output_dir, flags, environment: as there.

    Returns:
        the same without the recipe.

    Raises:
        ValueError: the command failed.
    """
    shutil.rmtree(output_dir, ignore_errors=True)
    # Relative, because results and cards hold the command.
    words = ["train", family, *recipe, "--output_dir", os.path.relpath(output_dir, ROOT), "--disable_tqdm", *flags]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "hfgen", *words], cwd=ROOT, env={**os.environ, **environment})
    seconds = time.perf_counter() - started
    if done.returncode:
        raise ValueError(f"hfgen {' '.join(words)} must succeed, got exit status {done.returncode}. See above.")
    results = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    kept = ("metrics", "metrics_details", "steps", "examples_seen", "num_parameters", "seconds_trained",
            "seconds_other", "hardware", "choices", "versions")  # fmt: skip
    return {
        "flags": flags,
        "instructions": environment,
        "seconds": round(seconds, 1),
        "metrics_details": results.get("metrics_details", {}),
        **{name: results[name] for name in kept},
    }


def run_task(
    module: str, task: dict[str, Any], python: str | Path = sys.executable, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Runs `python -m module --child TASK` in a fresh process, with the task as JSON.

    Returns:
        the JSON object that it prints on the last line of its output.

    Raises:
        ValueError: the process failed; the message ends with what it printed.
    """
    command = [str(python), "-m", module, "--child", json.dumps(task)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"{module} must succeed with {task}, got exit status {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def answer_task(description: str | None, measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The command of a module that [`run_task`] runs: takes the task, and prints what was measured.

    Args:
        description: for --help.
        measure: from the task to a JSON object.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", required=True, type=json.loads, metavar="TASK", help="what to measure, as JSON")
    print(json.dumps(measure(parser.parse_args().child)))


def as_words(flags: dict[str, Any]) -> list[str]:
    """Returns flags as words of a command line."""
    words = []
    for name, value in flags.items():
        values = value if isinstance(value, list) else [] if value is True else [value]
        if value is not False:
            words += [f"--{name}", *map(str, values)]
    return words


def describe() -> dict[str, Any]:
    """Returns cores, hardware and versions."""
    import torch

    from ...output.results import describe_machine

    machine = describe_machine(1, torch.device("cpu"))
    return {"cores": len(os.sched_getaffinity(0)), "hardware": machine["hardware"], "versions": machine["versions"]}
