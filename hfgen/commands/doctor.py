"""`hfgen doctor [RECIPE]`"""

from __future__ import annotations

import argparse
import json
from typing import Any

from .arguments import add_json, positive


HELP = "what is installed, what this machine is fast at, what a recipe takes here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="measure this recipe; `hfgen recipes` lists them")
    parser.add_argument("--seconds", type=positive, default=10, help="length of that measurement (default: 10)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Says what is installed and what this machine is fast at: the measurement of a tenth of a second from which a
    training chooses precision, attention kernel and memory layout. With a recipe, it trains that recipe for some
    seconds on built-in data of the same shape, and says what the whole of it will take here. The exit status is 1 if
    hfgen lacks a package that it always needs."""
    from .machine.recipe_files import read_recipe

    recipe = read_recipe(arguments.recipe) if arguments.recipe else None

    from .machine.diagnosis import diagnose
    from .machine.trial import try_recipe

    found = diagnose()
    if not arguments.json:
        _print_diagnosis(found)
    if recipe is not None:
        found["recipe"] = try_recipe(recipe, arguments.seconds)
        if not arguments.json:
            _print_trial(found["recipe"])
    if arguments.json:
        print(json.dumps(found, indent=2))
    return 1 if found["missing"] else 0


def _print_diagnosis(found: dict[str, Any]) -> None:
    packages = [f"{name} {version or '(missing)'}" for name, version in found["packages"].items()]
    _print_row("installed", f"python {found['python']}, {', '.join(packages)}")
    if found["missing"]:
        _print_row("missing", ", ".join(found["missing"]))
    for name, missing in found["extras"].items():
        lacks = f"lacks {', '.join(missing)}. Run: pip install 'hfgen[{name}]'"
        _print_row(f"hfgen[{name}]", lacks if missing else "complete")
    machine, hub, choices = found["machine"], found["hub"], found["choices"]
    memory = f", {_gigabytes(machine['memory_bytes'])} of memory" if machine["memory_bytes"] else ""
    processor = choices.get("processor", "an unknown processor")
    _print_row("machine", f"{processor}, cores: {machine['cores']}{memory}")
    _print_row("GPU", ", ".join(machine["gpus"]) or "none")
    _print_row("Hub", f"{hub['endpoint']}, {'logged in' if hub['logged_in'] else 'not logged in: hf auth login'}")
    _print_row("cache", f"{hub['cache']}, {_gigabytes(machine['free_disk_bytes'])} free")
    if "unknown" in choices:
        _print_row("training", choices["unknown"])
        return
    for kind in ("images", "text"):
        for name, reason in choices[kind]["reasons"].items():
            if choices[kind][name] is not None and not reason.startswith("the model has no"):
                _print_row(f"{kind}: {name}", f"{choices[kind][name]} ({reason})")


def _print_trial(trial: dict[str, Any]) -> None:
    memory = f", {_gigabytes(trial['memory_bytes'])} of memory" if trial["memory_bytes"] else ""
    _print_row(
        trial["name"],
        f"{trial['seconds']:,.0f} s of training take about {trial['steps']:,} steps here "
        f"({trial['steps_per_second']:.3g} per second{memory})",
    )
    if published := trial["published"]:
        length = f"{published['steps']:,} steps in {published['seconds']:,.0f} s"
        _print_row("published run", f"{length} on {published['hardware']}")


def _print_row(name: str, value: str) -> None:
    print(f"{name:28}{value}", flush=True)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
