"""The figures of the VAEs in words: what `training.tools.vae` prints, from what it measured."""

from __future__ import annotations

import math
import statistics
from typing import Any

from ..measuring.table import Runs, range_of, seconds_of


CIFAR_PIXELS = 3 * 32 * 32


def figure(runs: Runs) -> str:
    """The runs of a line in words: averages over the seeds, with their range if there are several."""
    parts = [_speed(runs) if "ratio" in runs[0] else _bits(runs) if "bits_per_dim" in runs[0] else _nll(runs)]
    if "seconds_trained" in runs[0] and "ratio" not in runs[0]:
        parts.append(seconds_of(runs))
    return "; ".join(parts)


def _nll(runs: Runs) -> str:
    values = [run["metrics"]["nll"] for run in runs if run["metrics"].get("nll") is not None]
    if not values:
        return "no NLL"
    details = [run.get("metrics_details", {}) for run in runs]
    errors = [entry["nll_standard_error"] for entry in details if "nll_standard_error" in entry]
    error = f" ± {math.hypot(*errors) / len(errors):.2f}" if errors else ""
    return f"NLL **{statistics.fmean(values):.2f}**{error} nats{range_of(values)}"


def _bits(runs: Runs) -> str:
    values = [run["bits_per_dim"] for run in runs]
    bound = "at most " if runs[0].get("bits_from") == "elbo" else ""
    return f"{bound}**{statistics.fmean(values):.2f}** bits per dimension{range_of(values)}"


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
    spread = range_of(ratios)
    return f"**{statistics.median(ratios):.2f}** times the bare loop{note}{spread}, {ours:,.0f} to {bare:,.0f}"
