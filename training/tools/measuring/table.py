"""Measured figures as Markdown tables: a line for each thing measured, a column for each kind of processor."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any


# Kinds of processors. Tiles are those of AMX; "AVX2 alone" is any of them with its other instructions switched off.
COLUMNS = ("bf16 tiles", "no bf16 tiles", "AVX2 alone")
TILES, NO_TILES, AVX2_ALONE = COLUMNS
# The runs of a line of the table in a column: one for each seed or repeat.
Runs = list[dict[str, Any]]
InWords = Callable[[Runs], str]
# The lines of a row, and of each the runs by column.
RowFigures = dict[str, dict[str, Runs]]
# A row as a table of its own, from its name and its figures.
RowTable = Callable[[str, RowFigures], str]


def table(figures: dict[str, Any], rows: list[str], in_words: InWords) -> str:
    """The table of all lines that were measured, with the columns in which any was.

    Args:
        figures: the content of the tool's JSON file.
        rows: in this order.
        in_words: what a cell says of its runs.
    """
    measured = [line for row in rows for line in figures.get("rows", {}).get(row, {}).items()]
    shown = [column for column in COLUMNS if any(column in columns for _, columns in measured)]
    lines = [
        [line, *(in_words(columns[column]) if column in columns else "" for column in shown)]
        for line, columns in measured
    ]
    return markdown(["", *shown], lines)


def trials_table(figures: dict[str, Any], in_words: InWords, metric: str, decimals: int = 2) -> str:
    """The table of all trials that were run.

    Args:
        figures: the content of the tool's JSON file.
        in_words: what a cell says of its runs.
        metric: the one whose difference from the trial in `against` is shown.
        decimals: of this difference.
    """
    lines = []
    for name, columns in figures.get("trials", {}).items():
        for column, trial in columns.items():
            other = figures["trials"].get(trial["against"], {}).get(column)
            result = in_words(trial["runs"])
            if other is not None:
                result += _difference(trial["runs"], other["runs"], metric, decimals)
            seeds = ", ".join(str(run["seed"]) for run in trial["runs"])
            label = name if len(columns) == 1 else f"{name}, {column}"
            lines.append([label, str(trial["change"]), str(trial["prediction"]), result, seeds])
    return markdown(["trial", "change", "prediction", "result", "seeds"], lines)


def tables_by_column(figures: RowFigures, draw: Callable[[str, dict[str, Runs]], str]) -> str:
    """A table for each column that was measured.

    Args:
        figures: of a row.
        draw: a table, from the column and the runs of its lines.
    """
    found = []
    for column in COLUMNS:
        runs = {line: columns[column] for line, columns in figures.items() if column in columns}
        if runs:
            found.append(draw(column, runs))
    return "\n\n".join(found)


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    found = ["|" + "".join(f" {name} |" if name else " |" for name in header), "|---" * len(header) + "|"]
    return "\n".join([*found, *(f"| {' | '.join(cells)} |" for cells in lines)])


def heading(row: str, column: str, run: dict[str, Any], what: str) -> str:
    """The line above a table of one column: which row, where it was measured, and on what.

    Args:
        row, column: of the table.
        run: one with the `machine` of `describe`.
        what: was measured.
    """
    machine = run["machine"]
    return f"**{row}**, {column} ({machine['hardware']}, {machine['cores']} cores): {what}"


def range_of(values: list[float], decimals: int = 2) -> str:
    """The smallest and the largest value in words, if there are several."""
    return f" ({min(values):.{decimals}f} to {max(values):.{decimals}f})" if len(values) > 1 else ""


def seconds_of(runs: Runs) -> str:
    """What the command and the training in it took, on average over the seeds."""
    in_all = [f"{statistics.fmean(run['seconds'] for run in runs):.0f} s in all"] if "seconds" in runs[0] else []
    trained = f"{statistics.fmean(run['seconds_trained'] for run in runs):.0f} s of training"
    return ", ".join([*in_all, trained])


def _difference(runs: Runs, others: Runs, metric: str, decimals: int) -> str:
    """How a metric differs from that of other runs with the same seeds, with the standard error over the seeds."""
    theirs = {run["seed"]: run["metrics"].get(metric) for run in others}
    pairs = [(run["metrics"].get(metric), theirs.get(run["seed"])) for run in runs]
    gaps = [ours - other for ours, other in pairs if ours is not None and other is not None]
    if not gaps:
        return ""
    error = f" ± {statistics.stdev(gaps) / math.sqrt(len(gaps)):.{decimals}f}" if len(gaps) > 1 else ""
    return f"; {metric.upper()} {statistics.fmean(gaps):+.{decimals}f}{error}"
