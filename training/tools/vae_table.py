"""The figures of the VAEs in words: what `training.tools.vae` prints, from what it measured."""

from __future__ import annotations

import math
import statistics
from typing import Any


COLUMNS = ("all instructions", "AVX2 alone")
CIFAR_PIXELS = 3 * 32 * 32
# The runs of a line of the table in a column: one for each seed or repeat.
Runs = list[dict[str, Any]]


def figure(runs: Runs) -> str:
    """The runs of a line in words: averages over the seeds, with their range if there are several."""
    parts = [_speed(runs) if "ratio" in runs[0] else _bits(runs) if "bits_per_dim" in runs[0] else _nll(runs)]
    if "seconds_trained" in runs[0] and "ratio" not in runs[0]:
        in_all = [f"{statistics.fmean(run['seconds'] for run in runs):.0f} s in all"] if "seconds" in runs[0] else []
        trained = f"{statistics.fmean(run['seconds_trained'] for run in runs):.0f} s of training"
        parts.append(", ".join([*in_all, trained]))
    return "; ".join(parts)


def _nll(runs: Runs) -> str:
    values = [run["metrics"]["nll"] for run in runs if run["metrics"].get("nll") is not None]
    if not values:
        return "no NLL"
    details = [run.get("metrics_details", {}) for run in runs]
    errors = [entry["nll_standard_error"] for entry in details if "nll_standard_error" in entry]
    error = f" ± {math.hypot(*errors) / len(errors):.2f}" if errors else ""
    return f"NLL **{statistics.fmean(values):.2f}**{error} nats{_range(values)}"


def _bits(runs: Runs) -> str:
    values = [run["bits_per_dim"] for run in runs]
    bound = "at most " if runs[0].get("bits_from") == "elbo" else ""
    return f"{bound}**{statistics.fmean(values):.2f}** bits per dimension{_range(values)}"


def bits_of(metrics: dict[str, float | None]) -> dict[str, Any]:
    """Bits per dimension of a run on CIFAR-10, and which metric they follow from: the NLL, or else the ELBO.

    Raises:
        ValueError: the run has neither.
    """
    for name, sign in (("nll", 1), ("elbo", -1)):
        nats = metrics.get(name)
        if nats is not None:
            return {"bits_per_dim": sign * nats / (CIFAR_PIXELS * math.log(2)), "bits_from": name}
    raise ValueError(f"metrics must have nll or elbo, got {', '.join(metrics) or 'none'}. See the run's log.")


def _speed(runs: Runs) -> str:
    ratios = [run["ratio"] for run in runs]
    ours, bare = (
        statistics.median(run["images_per_second"] for run in column) for column in (runs, [r["bare"] for r in runs])
    )
    left_out = runs[0]["num_parameters"] - runs[0]["bare"]["num_parameters"]
    note = f", which has {left_out:,} weights less" if left_out else ""
    return f"**{statistics.median(ratios):.2f}** times the bare loop{note}{_range(ratios)}, {ours:,.0f} to {bare:,.0f}"


def _range(values: list[float]) -> str:
    return f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""


def table(figures: dict[str, Any], rows: list[str]) -> str:
    """The Markdown table of all lines that were measured, in the order of these rows."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for row in rows:
        for line, columns in figures.get("rows", {}).get(row, {}).items():
            cells = [figure(columns[column]) if column in columns else "" for column in COLUMNS]
            lines.append(f"| {line} | {' | '.join(cells)} |")
    return "\n".join(lines)


def trials_table(figures: dict[str, Any]) -> str:
    """The Markdown table of all trials that were run."""
    lines = ["| trial | change | prediction | result | seeds |", "|---|---|---|---|---|"]
    for name, columns in figures.get("trials", {}).items():
        for column, trial in columns.items():
            other = figures["trials"].get(trial["against"], {}).get(column)
            result = figure(trial["runs"]) + ("" if other is None else _difference(trial["runs"], other["runs"]))
            seeds = ", ".join(str(run["seed"]) for run in trial["runs"])
            label = name if column == COLUMNS[0] else f"{name}, {column}"
            lines.append(f"| {label} | {trial['change']} | {trial['prediction']} | {result} | {seeds} |")
    return "\n".join(lines)


def _difference(runs: Runs, others: Runs) -> str:
    """How the NLL differs from that of other runs with the same seeds, with the standard error over the seeds."""
    nll = {run["seed"]: run["metrics"].get("nll") for run in others}
    pairs = [(run["metrics"].get("nll"), nll.get(run["seed"])) for run in runs]
    gaps = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    if not gaps:
        return ""
    error = f" ± {statistics.stdev(gaps) / math.sqrt(len(gaps)):.2f}" if len(gaps) > 1 else ""
    return f"; NLL {statistics.fmean(gaps):+.2f}{error}"
