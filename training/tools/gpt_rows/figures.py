"""The figures of the GPTs in words: what `training.tools.gpt` prints, from what it measured."""

from __future__ import annotations

import statistics

from ..measuring.table import Runs, range_of, seconds_of


def figure(runs: Runs) -> str:
    """The runs of a line in words: averages over the seeds, with their range if there are several."""
    losses = [run["metrics"]["loss"] for run in runs if run["metrics"].get("loss") is not None]
    if not losses:
        return "no loss"
    tokens = f"{runs[0]['num_parameters'] / 1e6:.1f} M parameters"
    steps = [run.get("metrics_details", {}).get("published_step") for run in runs]
    published = f"the best state is that of step {', '.join(map(str, steps))}" if None not in steps else ""
    parts = [f"**{statistics.fmean(losses):.3f}** nats per character{range_of(losses, 3)}", tokens, seconds_of(runs)]
    return "; ".join([*parts, *([published] if published else [])])
