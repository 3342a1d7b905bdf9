"""The rows on MNIST: default settings, presets and a bare loop in equal time, a conditional GAN, and the speed."""

from __future__ import annotations

import os
import statistics
from typing import Any

from ...config.scripts import GAN_PRESETS
from ..measuring.rows import Lines, Session, Training, data_of, seed_flags, train
from ..measuring.runs import as_words, run_task, run_training
from ..measuring.table import Runs


RECIPE = "gan-mnist"
SECONDS, PRESET_SECONDS, THROUGHPUT_SECONDS = 600.0, 240.0, 30.0
DEFAULT = "default settings"
BARE_LOOP = "training.tools.gan_rows.bare_dcgan"
# Runs compare if their lengths differ by no more than this share.
EQUAL_TIME = 0.05


def measure_default(session: Session, row: str) -> Lines:
    """Trains with no flag but the data and the length."""
    yield DEFAULT, train_gan(session, row, "default", [], SECONDS)


def measure_dcgan(session: Session, row: str) -> Lines:
    """Trains with the preset dcgan for as long."""
    runs = train_gan(session, row, "dcgan", ["--preset", "dcgan"], SECONDS)
    yield "preset dcgan", beside_default(session, runs)


def measure_example(session: Session, row: str) -> Lines:
    """Trains the networks of the preset dcgan in a bare loop for as long."""
    seconds = session.seconds or SECONDS
    runs = [{"seed": seed, **run_bare_loop(session, seed, seconds, with_quality=True)} for seed in session.seeds]
    yield "DCGAN in a bare loop", beside_default(session, runs)


def measure_conditional(session: Session, row: str) -> Lines:
    """Trains the recipe, but for longer."""
    yield "conditional", train(session, row, Training(row, RECIPE, ("--max_train_seconds", f"{SECONDS:g}")))


def measure_presets(session: Session, row: str) -> Lines:
    """Trains with every preset for the same time, and without one."""
    yield f"{DEFAULT}, beside presets", train_gan(session, row, "default", [], PRESET_SECONDS)
    for preset in GAN_PRESETS:
        runs = train_gan(session, row, preset, ["--preset", preset], PRESET_SECONDS)
        yield f"preset {preset}, beside others", runs


def measure_throughput(session: Session, row: str) -> Lines:
    """Trains the preset dcgan and the bare loop in turns: A B A B ..."""
    seconds = session.seconds or THROUGHPUT_SECONDS
    # Nothing is measured at the end but the speed.
    flags = [*as_words(chosen_data(session)), "--preset", "dcgan", "--max_train_seconds", f"{seconds:g}",
             *session.flags, "--quality_samples", "0", "--max_eval_samples", "256"]  # fmt: skip
    runs = []
    for number in range(session.options.repeats):
        output_dir = session.folder / row / f"run-{number}" / "dcgan"
        ours = run_training("gan", [], output_dir, flags, session.environment)
        bare = run_bare_loop(session, 0, seconds, with_quality=False)
        speed = ours["examples_seen"] / ours["seconds_trained"]
        runs.append({**ours, "seed": 0, "images_per_second": speed, "bare": bare,
                     "ratio": speed / bare["images_per_second"]})  # fmt: skip
    yield "preset dcgan, images/s", runs


def train_gan(session: Session, row: str, name: str, flags: list[str], seconds: float) -> Runs:
    """Trains a GAN with the default settings and these flags, once for each seed.

    Args:
        session, row: of the table.
        name: of the folder of the model.
        flags: in addition to those of data, length and seed.
        seconds: of training, unless the command line says otherwise.

    Raises:
        ValueError: a training failed.
    """
    runs = []
    length = session.length or ["--max_train_seconds", f"{seconds:g}"]
    for seed in session.seeds:
        words = [*as_words(chosen_data(session)), *flags, *length, *seed_flags(seed), *session.flags]
        output_dir = session.output_dir(row, seed, name)
        runs.append({"seed": seed, **run_training("gan", [], output_dir, words, session.environment)})
    return runs


def run_bare_loop(session: Session, seed: int, seconds: float, with_quality: bool) -> dict[str, Any]:
    """Trains a DCGAN with [`training.tools.gan_rows.bare_dcgan`] on the same data."""
    limits = {name: int(session.flag(name, 0)) or None for name in ("max_train_samples", "max_eval_samples")}
    task = {"data": {**chosen_data(session), **limits}, "seconds": seconds, "seed": seed,
            "threads": len(os.sched_getaffinity(0)),
            "quality_samples": int(session.flag("quality_samples", 10_000)) if with_quality else 0}  # fmt: skip
    return run_task(BARE_LOOP, task, environment=session.environment)


def chosen_data(session: Session) -> dict[str, Any]:
    """The flags that name the data: those of the recipe, unless the command line names other data."""
    if "--dataset_name" not in session.flags:
        return data_of(RECIPE)
    return {"dataset_name": session.flags[session.flags.index("--dataset_name") + 1]}


def beside_default(session: Session, runs: Runs) -> Runs:
    """The runs, each with the classifier FID of the default settings that was measured before in the same column, if
    it was trained for as long."""
    others = session.figures.get("rows", {}).get("default", {}).get(DEFAULT, {}).get(session.column, [])
    trained = [statistics.fmean(run["seconds_trained"] for run in column) for column in (runs, others) if column]
    distances = [run["metrics"].get("classifier_fid") for run in others]
    if len(trained) < 2 or abs(trained[1] / trained[0] - 1) > EQUAL_TIME or None in distances:
        return runs
    return [{**run, "default_fid": statistics.fmean(distances)} for run in runs]
