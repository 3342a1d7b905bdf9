"""The row `variations`: do the default settings train on any small images, and better than the preset dcgan does?"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..measuring.rows import Lines, Session, seed_flags
from ..measuring.runs import ROOT, as_words, describe, run_task, run_training
from ..measuring.table import RowFigures, Runs, heading, markdown, range_of, tables_by_column
from .image_sets import one_class


SECONDS = 120.0
MNIST, CIFAR = "../shared/data/mnist", "../shared/data/cifar10"
MODELS = {"default settings": [], "preset dcgan": ["--preset", "dcgan"]}
DEFAULT, DCGAN = MODELS


@dataclass(frozen=True)
class Variation:
    """Images to train on, and how.

    Attributes:
        name: in the table.
        dataset: as of --dataset_name, with classes.
        flags: of both trainings.
        label: the only class, by number, or None for all.
    """

    name: str
    dataset: str
    flags: dict[str, Any] = field(default_factory=dict)
    label: int | None = None


# CIFAR-10 is the copy that was JPEG-compressed.
VARIATIONS = [
    Variation("digits, 8 x 8", "digits"),
    Variation("MNIST", MNIST),
    Variation("MNIST, only the digit 8", MNIST, label=8),
    Variation("MNIST, 16 x 16", MNIST, {"image_size": 16}),
    Variation("MNIST, 64 x 64", MNIST, {"image_size": 64}),
    Variation("MNIST, 200 images", MNIST, {"max_train_samples": 200}),
    Variation("MNIST in RGB, batches of 16", MNIST, {"num_channels": 3, "per_device_train_batch_size": 16}),
    Variation("MNIST, batches of 256", MNIST, {"per_device_train_batch_size": 256}),
    Variation("CIFAR-10", CIFAR),
    Variation("CIFAR-10, only horses", CIFAR, label=7),
    Variation("CIFAR-10 in gray, 64 x 64", CIFAR, {"num_channels": 1, "image_size": 64}),
    Variation("CIFAR-10, 16 x 16, 2,000 images", CIFAR, {"image_size": 16, "max_train_samples": 2000}),
]


def check(session: Session) -> None:
    """Raises ValueError if --variations has a number that is none of theirs."""
    numbers = session.options.variations or []
    if wrong := [number for number in numbers if not 1 <= number <= len(VARIATIONS)]:
        raise ValueError(f"--variations must be numbers from 1 to {len(VARIATIONS)}, got {' '.join(map(str, wrong))}")


def measure_variations(session: Session, row: str) -> Lines:
    """Trains both kinds of models on each variation, or on those that were asked for, and measures them.

    Raises:
        ValueError: trainings failed; all other variations were measured.
    """
    failures = []
    numbers = session.options.variations or range(1, len(VARIATIONS) + 1)
    for variation in (VARIATIONS[number - 1] for number in numbers):
        try:
            runs = [measure_variation(session, row, variation, seed) for seed in session.seeds]
        except ValueError as error:
            failures.append(f"{variation.name}: {error}")
        else:
            yield variation.name, runs
    if failures:
        raise ValueError("\n".join(failures))


def measure_variation(session: Session, row: str, variation: Variation, seed: int) -> dict[str, Any]:
    """Trains both kinds of models on a variation, and measures them.

    Returns:
        what is recorded of each training by model, the machine, and what [`training.tools.gan_rows.sample_check`]
        measured.

    Raises:
        ValueError: a training failed.
    """
    trainings, folders = {}, {}
    for name, flags in MODELS.items():
        output_dir = session.output_dir(row, seed, f"{slug(variation.name)}-{slug(name)}")
        words = flags_of(session, variation) + flags + seed_flags(seed) + session.flags
        # A step whose loss is not finite is left out and counted, so that a divergence is measured like the rest.
        words += ["--quality_samples", "0", "--on_nonfinite", "skip"]
        trainings[name] = run_training("gan", [], output_dir, words, session.environment)
        trainings[name]["skipped_steps"] = skipped_steps(output_dir)
        folders[name] = str(output_dir.resolve())
    task = {"models": folders, "dataset": variation.dataset, "label": variation.label,
            "samples": int(session.flag("quality_samples", 10_000)),
            "max_eval_samples": int(session.flag("max_eval_samples", 0)) or None}  # fmt: skip
    found = run_task("training.tools.gan_rows.sample_check", task, environment=session.environment)
    for name, figures in found["models"].items():
        if trainings[name]["skipped_steps"]:
            figures["state"] = "diverged"
    return {"seed": seed, "trainings": trainings, "machine": describe(), "measured": found}


def flags_of(session: Session, variation: Variation) -> list[str]:
    """Data, settings and length of a variation, as words of a command line."""
    name = variation.dataset
    if variation.label is not None:
        name = os.path.relpath(one_class(resolved(name), variation.label, session.folder / "data"), ROOT)
    length = session.length or ["--max_train_seconds", f"{SECONDS:g}"]
    return ["--dataset_name", name, *as_words(variation.flags), *length]


def resolved(dataset: str) -> str:
    """A dataset as of --dataset_name, whose path begins at the checkout, for a process that was started anywhere."""
    return str(ROOT / dataset) if (ROOT / dataset).exists() else dataset


def slug(name: str) -> str:
    """A name as part of a file's."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def skipped_steps(output_dir: Path) -> int:
    """Number of updates of a run that were left out because something was not finite."""
    return json.loads((output_dir / "results.json").read_text(encoding="utf-8"))["skipped_steps"]


def table(row: str, figures: RowFigures) -> str:
    """The row as a table: a line for each variation, and below it how many of the trainings were stable and better."""

    def draw(column: str, lines: dict[str, Runs]) -> str:
        cells = [line_of(name, runs) for name, runs in lines.items()]
        runs = next(iter(lines.values()))
        seconds = statistics.fmean(run["trainings"][DEFAULT]["seconds_trained"] for run in runs)
        what = f"classifier FID, coverage and course of trainings of {seconds:.0f} s"
        header = ["variation", DEFAULT, DCGAN, "ratio of FID", "FID of training images"]
        return "\n\n".join([heading(row, column, runs[0], what), markdown(header, cells), summary(lines)])

    return tables_by_column(figures, draw)


def line_of(name: str, runs: Runs) -> list[str]:
    """The cells of a variation: averages over the seeds, and the course of each."""
    cells = [name]
    for model in MODELS:
        found = [run["measured"]["models"][model] for run in runs]
        coverages = [figures["coverage"] for figures in found if "coverage" in figures]
        coverage = f", {statistics.fmean(coverages):.2f}" if coverages else ""
        states = ", ".join(sorted({figures["state"] for figures in found}))
        distances = range_of([figures["classifier_fid"] for figures in found], 1)
        cells.append(f"**{mean_fid(runs, model):.1f}**{distances}{coverage}, {states}")
    floor = statistics.fmean(run["measured"]["real"]["classifier_fid"] for run in runs)
    return [*cells, f"{mean_fid(runs, DEFAULT) / mean_fid(runs, DCGAN):.2f}", f"{floor:.1f}"]


def mean_fid(runs: Runs, model: str) -> float:
    return statistics.fmean(run["measured"]["models"][model]["classifier_fid"] for run in runs)


def summary(lines: dict[str, Runs]) -> str:
    """How many variations have only stable trainings, by model, and in how many the default settings are better."""
    stable = {
        model: sum(
            all(run["measured"]["models"][model]["state"] == "stable" for run in runs) for runs in lines.values()
        )
        for model in MODELS
    }
    better = sum(mean_fid(runs, DEFAULT) < mean_fid(runs, DCGAN) for runs in lines.values())
    return (
        f"Of {len(lines)} variations, {stable[DEFAULT]} are stable with the {DEFAULT} and {stable[DCGAN]} with the "
        f"{DCGAN}; the {DEFAULT} have the smaller distance in {better}."
    )
