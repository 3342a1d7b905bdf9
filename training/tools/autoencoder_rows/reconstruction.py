"""The rows `start` and `reduction`: an image in a few numbers, by an Auto-Encoder and by principal components."""

from __future__ import annotations

import statistics
from typing import Any

from ..measuring.rows import Lines, Session, Training, data_of, train
from ..measuring.runs import run_task, run_training
from ..measuring.table import Runs, range_of, seconds_of


RECIPE = "autoencoder-mnist"
START_SECONDS = 15.0
COMPONENTS = 32  # the numbers that the recipe, and the defaults, compress an image to
TRAININGS = [
    Training("Auto-Encoder", RECIPE),
    Training("Auto-Encoder, for comparing images", "autoencoder-mnist-embedding"),
]


def measure_start(session: Session, row: str) -> Lines:
    """Trains for a quarter of a minute with the default flags, on the data of the recipe."""
    pca = measure_pca(session)
    yield "mean image", [{"metrics": {"mse": pca["metrics"]["mean_image_mse"]}}]
    yield f"PCA, {COMPONENTS} numbers", [without_neighbors(pca)]
    seconds = session.seconds or START_SECONDS
    data = [word for name, value in data_of(RECIPE).items() for word in (f"--{name}", value)]
    runs = []
    for seed in session.seeds:
        flags = [*data, "--seed", str(seed), "--max_train_seconds", f"{seconds:g}", *session.flags]
        output_dir = session.output_dir(row, seed, "autoencoder")
        runs.append({"seed": seed, **run_training("autoencoder", [], output_dir, flags, session.environment)})
    yield f"Auto-Encoder, default flags, {seconds:g} s", runs


def measure_reduction(session: Session, row: str) -> Lines:
    """Trains the recipes; measures errors and nearest neighbors, those of principal components too."""
    yield f"PCA, {COMPONENTS} numbers", [measure_pca(session)]
    for training in TRAININGS:
        runs = train(session, row, training)
        for run in runs:
            task = {"folder": str(session.output_dir(row, run["seed"], training.recipe))}
            run["metrics"] |= measured(session, task)["metrics"]
        yield training.line, runs


def measure_pca(session: Session) -> dict[str, Any]:
    return measured(session, {"components": COMPONENTS})


def measured(session: Session, task: dict[str, Any]) -> dict[str, Any]:
    """What [`training.tools.autoencoder_rows.reduction`] measures on the data of the recipe."""
    most = int(session.flag("max_train_samples", 0)), int(session.flag("max_eval_samples", 0))
    limits = {"max_train_samples": most[0] or None, "max_eval_samples": most[1] or None}
    task = {"data": {**data_of(RECIPE), **limits}, **task}
    return run_task("training.tools.autoencoder_rows.reduction", task, environment=session.environment)


def without_neighbors(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "metrics": {name: value for name, value in run["metrics"].items() if name != "nearest_neighbor"}}


def figure(runs: Runs) -> str:
    """The runs of a line in words: averages over the seeds, with their range if there are several."""
    parts = []
    for metric, template, decimals in (("mse", "MSE **{}**", 4), ("nearest_neighbor", "1-NN **{} %**", 2)):
        values = [run["metrics"][metric] for run in runs if metric in run["metrics"]]
        if values:
            parts.append(template.format(f"{statistics.fmean(values):.{decimals}f}") + range_of(values, decimals))
    if "seconds_trained" in runs[0]:
        parts.append(seconds_of(runs))
    return "; ".join(parts)
