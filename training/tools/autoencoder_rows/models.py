"""Which models does a row measure? Those that it trains as a user does, or the one that it is given."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..measuring.rows import Session, Training, train
from ..measuring.runs import describe, run_task
from ..measuring.table import Runs


def models_of(session: Session, row: str, recipe: str) -> Iterator[tuple[dict[str, Any], Path]]:
    """What is recorded of the training of each model, and its folder: one for each seed, or that of --model.

    Raises:
        ValueError: there is no such recipe, or a training failed.
    """
    given = session.options.model
    if given is not None:
        yield {}, given
        return
    for run in train(session, row, Training(row, recipe)):
        yield run, session.output_dir(row, run["seed"], recipe)


def measure_models(session: Session, row: str, recipe: str, module: str, **more: Any) -> Runs:
    """Measures each model in a process of its own, limited to the instructions of the column.

    Args:
        session, row, recipe: see [`models_of`].
        module: that [`run_task`] runs; its task has `model`, the path of a folder, and `recipe`.
        more: of the task.

    Returns:
        of each model what is recorded of its training, the `machine`, and what the module `measured`.

    Raises:
        ValueError: there is no such recipe, or something failed.
    """
    runs = []
    for run, folder in models_of(session, row, recipe):
        task = {"model": str(folder.resolve()), "recipe": recipe, **more}
        found = run_task(module, task, environment=session.environment)
        runs.append({**run, **measured_here(found)})
    return runs


def measured_here(found: dict[str, Any]) -> dict[str, Any]:
    """Figures as they are recorded, with the machine that they are of."""
    return {"machine": describe(), "measured": found}


def mean_of(runs: Runs, name: str) -> float:
    """Of a figure, over the seeds."""
    return statistics.fmean(run["measured"][name] for run in runs)


def trained_for(runs: Runs) -> str:
    """How long models were trained, in words, if that is known."""
    seconds = [run["seconds_trained"] for run in runs if "seconds_trained" in run]
    return f"; trained for {statistics.fmean(seconds):.0f} s" if seconds else ""
