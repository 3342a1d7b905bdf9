"""The command of a tool that measures tables, row after row, on the machine that it runs on.

    python training/tools/X.py [ROW ...] [--avx2 | --both]     rows of the table
    python training/tools/X.py --trials [NAME ...]             experiments, from X_trials.yaml

Flags that are not the command's own go to the trainings.
Each line of the table goes to X.json as soon as it is measured, and replaces the figures of the same line and column.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from .runs import AVX2, RECIPES, ROOT, as_words, describe, has_bf16_tiles, run_recipe
from .table import AVX2_ALONE, NO_TILES, TILES, InWords, RowTable, Runs, table, trials_table


@dataclass(frozen=True)
class Training:
    """A line of the table that is a recipe, run as a user runs it.

    Attributes:
        line: what the table calls it.
        recipe: its name.
        flags: in addition to those of the recipe.
    """

    line: str
    recipe: str
    flags: tuple[str, ...] = ()


@dataclass
class Session:
    """What the command line says, and the figures so far.

    Attributes:
        column: one of `COLUMNS`.
        folder: for the models.
        figures: the content of the tool's JSON file.
        seconds: of each training, None for what its row says.
        seeds: of the trainings.
        flags: for each of the trainings.
        options: the tool's own flags.
    """

    column: str
    folder: Path
    figures: dict[str, Any]
    seconds: float | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    flags: list[str] = field(default_factory=list)
    options: argparse.Namespace = field(default_factory=argparse.Namespace)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that limit the processor to the instructions of the column."""
        return AVX2 if self.column == AVX2_ALONE else {}

    @property
    def length(self) -> list[str]:
        """The flag for the length of a training, if one was given."""
        return [] if self.seconds is None else ["--max_train_seconds", f"{self.seconds:g}"]

    def flag(self, name: str, default: float) -> float:
        """The value of one of the flags for trainings, for what is measured beside them in the same way."""
        return float(self.flags[self.flags.index(f"--{name}") + 1]) if f"--{name}" in self.flags else default

    def output_dir(self, row: str, seed: int, recipe: str) -> Path:
        """Where a training leaves its model."""
        return self.folder / row / f"seed-{seed}" / recipe


# Lines of the table, each as soon as it is measured.
Lines = Iterator[tuple[str, Runs]]


@dataclass(frozen=True)
class Trial:
    """An experiment: an entry of X_trials.yaml.

    Attributes:
        name: of the trial.
        change: what differs from `against`.
        prediction: of the metric, written before the run.
        flags: of the training, by name.
        recipe: that the flags are added to.
        seeds: one run for each.
        against: the trial to compare with, or None.
    """

    name: str
    change: str
    prediction: str
    flags: dict[str, Any]
    recipe: str
    seeds: tuple[int, ...] = (0,)
    against: str | None = None


@dataclass(frozen=True)
class Tool:
    """What a table is made of.

    Attributes:
        file: of the tool; its figures and trials are beside it.
        rows: what measures each row, by its name.
        in_words: what a cell of the table says of its runs.
        metric: the one by which trials are compared.
        decimals: of this metric.
        tables: the rows that are tables of their own, by name; all others share one.
        check: refuses flags of the tool's own that do not fit the rows, by a ValueError.
    """

    file: Path
    rows: dict[str, Callable[[Session, str], Lines]]
    in_words: InWords
    metric: str
    decimals: int = 2
    tables: dict[str, RowTable] = field(default_factory=dict)
    check: Callable[[Session], None] = lambda session: None

    @property
    def trials(self) -> Path:
        return self.file.with_name(f"{self.file.stem}_trials.yaml")


def own_column() -> str:
    """The column of this machine with all of its instructions."""
    return TILES if has_bf16_tiles() else NO_TILES


def seed_flags(seed: int) -> list[str]:
    """Without a seed the command is the recipe, unchanged."""
    return ["--seed", str(seed)] if seed else []


def train(session: Session, row: str, training: Training) -> Runs:
    """Runs a recipe once for each seed.

    Raises:
        ValueError: there is no such recipe, or a run failed.
    """
    runs = []
    for seed in session.seeds:
        flags = [*training.flags, *seed_flags(seed), *session.length, *session.flags]
        output_dir = session.output_dir(row, seed, training.recipe)
        runs.append({"seed": seed, **run_recipe(training.recipe, output_dir, flags, session.environment)})
    return runs


def read_recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def data_of(recipe: str) -> dict[str, Any]:
    """The flags of a recipe that name its data."""
    return {name: value for name, value in read_recipe(recipe).items() if name.startswith("dataset_")}


def read_trials(path: Path) -> dict[str, Trial]:
    """Returns the trials by name.

    Raises:
        ValueError: two have one name, or one is compared with a trial that does not exist.
    """
    trials: dict[str, Trial] = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        if entry["name"] in trials:
            raise ValueError(f"name must be new in {path.name}, got {entry['name']!r} again. Rename the trial.")
        trials[entry["name"]] = Trial(**entry)
    for trial in trials.values():
        if trial.against is not None and trial.against not in trials:
            raise ValueError(f"against must be a trial ({', '.join(trials)}), got {trial.against!r}.")
    return trials


def run_trial(session: Session, trial: Trial) -> dict[str, Any]:
    """Returns what the tool's JSON file holds of a trial in a column."""
    seeds = replace(session, seeds=list(trial.seeds))
    training = Training(trial.name, trial.recipe, tuple(as_words(trial.flags)))
    return {**vars(trial), "runs": train(seeds, f"trials/{trial.name}", training)}


def record(figures: dict[str, Any], row: str, line: str, column: str, runs: Runs) -> None:
    """Replaces the figures of a line in a column; all others stay."""
    figures.setdefault("rows", {}).setdefault(row, {}).setdefault(line, {})[column] = runs


def save(figures: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps({"machine": describe(), **figures}, indent=1) + "\n", encoding="utf-8")


def run_command(tool: Tool, description: str | None, *own: argparse.ArgumentParser) -> None:
    """Parses the command line, measures, and prints the tables.

    Args:
        tool: whose command it is.
        description: for --help.
        own: parsers of the tool's own flags, which `Session.options` then has; made with `add_help=False`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, parents=own
    )
    figures_path = tool.file.with_suffix(".json")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default: {' '.join(tool.rows)}")
    instructions = parser.add_mutually_exclusive_group()
    instructions.add_argument(
        "--avx2", action="store_true", help="use no instructions beyond AVX2, and so none for bf16"
    )
    instructions.add_argument("--both", action="store_true", help="measure everything twice, without and with --avx2")
    parser.add_argument("--seconds", type=float, help="of each training (default: what its recipe or row says)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="a run for each (default: 0)")
    parser.add_argument(
        "--figures", type=Path, default=figures_path, help=f"file of the figures (default: {figures_path.name})"
    )
    parser.add_argument("--trials", nargs="*", metavar="NAME", help="run trials instead of rows (default: all)")
    args, flags = parser.parse_known_args()
    figures = json.loads(args.figures.read_text(encoding="utf-8")) if args.figures.is_file() else {}
    figures.pop("machine", None)
    columns = [own_column(), AVX2_ALONE] if args.both else [AVX2_ALONE if args.avx2 else own_column()]
    sessions = [
        Session(column, ROOT / ("runs-avx2" if column == AVX2_ALONE else "runs"), figures, args.seconds, args.seeds,
                flags, args)
        for column in columns
    ]  # fmt: skip
    try:
        tool.check(sessions[0])
    except ValueError as error:
        parser.error(str(error))
    failures = [
        failure for session in sessions for failure in run_all(tool, session, args.rows, args.trials, args.figures)
    ]
    if args.trials is None:
        print(tables(tool, figures))
    else:
        print(trials_table(figures, tool.in_words, tool.metric, tool.decimals))
    if failures:
        sys.exit("\n".join(failures))


def tables(tool: Tool, figures: dict[str, Any]) -> str:
    """All that was measured: the table that rows share, and those of rows that have their own."""
    shared = table(figures, [row for row in tool.rows if row not in tool.tables], tool.in_words)
    measured = figures.get("rows", {})
    return "\n\n".join([shared, *(draw(row, measured[row]) for row, draw in tool.tables.items() if row in measured)])


def run_all(tool: Tool, session: Session, rows: list[str], trials: list[str] | None, path: Path) -> list[str]:
    """Measures rows, or runs trials, and saves each as soon as it is there.

    Returns:
        a sentence for each that failed; the others are measured all the same.

    Raises:
        SystemExit: a name is unknown; nothing was run.
    """
    known: Any = tool.rows if trials is None else read_trials(tool.trials)
    names = (rows if trials is None else trials) or list(known)
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"name must be one of {', '.join(known)}, got {', '.join(unknown)}.")
    failures = []
    for name in names:
        try:
            if trials is None:
                for line, runs in known[name](session, name):
                    record(session.figures, name, line, session.column, runs)
                    save(session.figures, path)
            else:
                of_trial = session.figures.setdefault("trials", {}).setdefault(name, {})
                of_trial[session.column] = run_trial(session, known[name])
                save(session.figures, path)
        except ValueError as error:
            failures.append(f"{name}: {error}")
    return failures
