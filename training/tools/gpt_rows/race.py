"""Who reaches a loss sooner: `hfgen train gpt`, or the usual small GPT in a bare loop?

All of the command's time counts on both sides: imports, the training, and one evaluation of the whole validation split
in windows without overlap; for `hfgen train gpt` also the samples, the card, the report and everything else that a run
leaves behind.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from ..measuring.rows import Lines, Session, read_recipe, seed_flags
from ..measuring.runs import ROOT, describe, run_recipe, run_task
from ..measuring.table import RowFigures, Runs, heading, markdown, range_of, tables_by_column


RECIPE = "gpt-tiny-shakespeare"
TARGET = 1.89  # nats per character
OURS, BARE = "hfgen train gpt", "bare loop"
# 130 steps ended at 1.882 with seed 2. Evaluations and samples in the middle of a run are a matter of choice, and the
# race does without; those at the end are part of it.
FLAGS = ("--max_train_steps", "140", "--max_train_seconds", "3600", "--hidden_size", "64", "--num_hidden_layers", "2",
         "--num_attention_heads", "2", "--per_device_train_batch_size", "64", "--learning_rate", "12e-3",
         "--zero_init", "--eval_steps", "100000", "--sample_steps", "100000")  # fmt: skip


def text_path(recipe: str = RECIPE) -> Path:
    """The file of a recipe's text on this machine.

    Raises:
        ValueError: it is not there.
    """
    path = ROOT / read_recipe(recipe)["dataset_path"]
    if not path.is_file():
        raise ValueError(f"{path} must be the text of the recipe {recipe}, got no such file. Download it there.")
    return path


def measure_race(session: Session, row: str) -> Lines:
    """Trains both, in turns, once for each seed. Each line is there as soon as a seed is done."""
    path = text_path()
    ours: Runs = []
    bare: Runs = []
    command = f"{time.time():.0f}"
    for seed in session.seeds:
        machine = describe()
        flags = [*FLAGS, *seed_flags(seed), *session.flags]
        run = run_recipe(RECIPE, session.output_dir(row, seed, RECIPE), flags, session.environment)
        ours.append({"seed": seed, "command": command, "machine": machine, **run})
        yield OURS, ours
        task = {"path": str(path), "target": TARGET, "seed": seed, "setting": session.options.setting}
        found = run_task("training.tools.gpt_rows.bare_gpt", task, environment=session.environment)
        bare.append({"seed": seed, "command": command, "machine": machine, **found, "seconds": _to_the_end(found)})
        yield BARE, bare


def _to_the_end(found: dict[str, Any]) -> float:
    """Seconds of the bare loop's process without the evaluations in the middle."""
    return found["seconds_of_start"] + found["seconds_trained"] + found["seconds_of_evaluation"]


def draw_race(row: str, figures: RowFigures) -> str:
    """The table of the race."""

    def draw(column: str, runs: dict[str, Runs]) -> str:
        ours, bare = runs.get(OURS, []), runs.get(BARE, [])
        lines = [_line(OURS, ours), _line(BARE, bare)] if bare else [_line(OURS, ours)]
        title = heading(row, column, ours[0], f"time to a loss of {TARGET} with a context of 64, start-up included")
        times = markdown(["", "parameters", "loss", "seconds in all"], lines)
        return "\n".join([title, "", times, "", _verdict(runs)])

    return tables_by_column(figures, draw)


def loss_of(run: dict[str, Any]) -> float:
    return run["metrics"]["loss"] if "metrics" in run else run["loss"]


def _line(name: str, runs: Runs) -> list[str]:
    losses, seconds = [loss_of(run) for run in runs], [run["seconds"] for run in runs]
    return [name, f"{runs[0]['num_parameters']:,}", f"{statistics.fmean(losses):.3f}{range_of(losses, 3)}",
            f"{statistics.median(seconds):.1f}{range_of(seconds, 1)}"]  # fmt: skip


def _verdict(runs: dict[str, Runs]) -> str:
    """The ratio of the times in words, or why there is none."""
    ours = {run["seed"]: run for run in runs.get(OURS, [])}
    # Lines are kept one by one, so that after a failure those of two commands may stand beside each other.
    commands = {run["command"] for run in ours.values()}
    bare = {run["seed"]: run for run in runs.get(BARE, []) if run["command"] in commands}
    if missed := [f"seed {seed} ended at {loss_of(run):.3f}" for seed, run in ours.items() if loss_of(run) > TARGET]:
        return f"{OURS} missed the target: {', '.join(missed)}."
    ratios = [bare[seed]["seconds"] / run["seconds"] for seed, run in ours.items() if seed in bare]
    if not ratios:
        return "The bare loop was not measured."
    reached = [run["seconds_of_start"] + run["seconds_to_target"] for run in bare.values() if run["seconds_to_target"]]
    own = f"It does not reach {TARGET} with every seed"
    if len(reached) == len(bare):
        own = f"It reaches {TARGET} after {statistics.median(reached):.1f} s"
    return (
        f"The bare loop takes **{statistics.median(ratios):.1f}** times as long{range_of(ratios, 1)} to its end. "
        f"{own}."
    )
