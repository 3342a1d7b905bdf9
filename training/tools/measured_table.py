"""Measured figures as Markdown tables: a line for each thing measured, a column for each kind of processor."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any


COLUMNS = ("all instructions", "AVX2 alone")
# The runs of a line of the table in a column: one for each seed or repeat.
Runs = list[dict[str, Any]]
InWords = Callable[[Runs], str]


def table(figures: dict[str, Any], rows: list[str], in_words: InWords) -> str:
    """The table of all lines that were measured.

    Args:
        figures: the content of the tool's JSON file.
        rows: in this order.
        in_words: what a cell says of its runs.
    """
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for row in rows:
        for line, columns in figures.get("rows", {}).get(row, {}).items():
            cells = [in_words(columns[column]) if column in columns else "" for column in COLUMNS]
            lines.append(f"| {line} | {' | '.join(cells)} |")
    return "\n".join(lines)


def trials_table(figures: dict[str, Any], in_words: InWords, metric: str, decimals: int = 2) -> str:
    """The table of all trials that were run.

    Args:
        figures: the content of the tool's JSON file.
        in_words: what a cell says of its runs.
        metric: the one whose difference from the trial in `against` is shown.
        decimals: of this difference.
    """
    lines = ["| trial | change | prediction | result | seeds |", "|---|---|---|---|---|"]
    for name, columns in figures.get("trials", {}).items():
        for column, trial in columns.items():
            other = figures["trials"].get(trial["against"], {}).get(column)
            result = in_words(trial["runs"])
            if other is not None:
                result += _difference(trial["runs"], other["runs"], metric, decimals)
            seeds = ", ".join(str(run["seed"]) for run in trial["runs"])
            label = name if column == COLUMNS[0] else f"{name}, {column}"
            lines.append(f"| {label} | {trial['change']} | {trial['prediction']} | {result} | {seeds} |")
    return "\n".join(lines)


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
