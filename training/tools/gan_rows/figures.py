"""The figures of the GANs in words: what `training.tools.gan` prints, from what it measured."""

from __future__ import annotations

import statistics

from ..measuring.table import Runs, range_of, seconds_of
from .course import problems_figure, stopping_figure


def figure(runs: Runs) -> str:
    """The runs of a line in words: averages over the seeds, with their range if there are several."""
    if "ratio" in runs[0]:
        return _speed(runs)
    if "times_plain" in runs[0]:
        return _cost(runs)
    if "course" in runs[0]:
        is_of_stopping = "--stop_when_converged" in runs[0]["flags"]
        return f"{_quality(runs)}; {stopping_figure(runs) if is_of_stopping else problems_figure(runs)}"
    first = _modes(runs) if "modes" in runs[0] else _quality(runs)
    return "; ".join([first, seconds_of(runs)] if "seconds_trained" in runs[0] else [first])


def _quality(runs: Runs) -> str:
    distances = _values(runs, "classifier_fid")
    if not distances:
        return "no classifier FID"
    mean = statistics.fmean(distances)
    text = f"classifier FID **{mean:.2f}**{range_of(distances)}"
    others = [run["default_fid"] for run in runs if "default_fid" in run]
    if others:
        other = statistics.fmean(others)
        text += f", {mean / other:.2f} times the {other:.2f} of the default settings"
    parts = [text]
    if coverages := _values(runs, "coverage"):
        parts.append(f"coverage {statistics.fmean(coverages):.3f}{range_of(coverages, 3)}")
    if accuracies := _values(runs, "label_accuracy"):
        parts.append(f"taken for their class {100 * statistics.fmean(accuracies):.1f} %")
    return ", ".join(parts)


def _values(runs: Runs, metric: str) -> list[float]:
    return [run["metrics"][metric] for run in runs if run["metrics"].get(metric) is not None]


def _modes(runs: Runs) -> str:
    modes, divergences = [run["modes"] for run in runs], [run["kl"] for run in runs]
    return (
        f"**{statistics.fmean(modes):.0f}** of 1,000 modes{range_of(modes, 0)}, "
        f"KL **{statistics.fmean(divergences):.3f}**{range_of(divergences, 3)}"
    )


def _speed(runs: Runs) -> str:
    ratios = [run["ratio"] for run in runs]
    ours, bare = (
        statistics.median(run["images_per_second"] for run in column) for column in (runs, [r["bare"] for r in runs])
    )
    return f"**{statistics.median(ratios):.2f}** times the bare loop{range_of(ratios)}, {ours:,.0f} to {bare:,.0f}"


def _cost(runs: Runs) -> str:
    (run,) = runs
    ratios = run["times_plain"]
    milliseconds = f"{1000 * run['seconds_per_step']:.1f} ms per step"
    if not ratios:
        return milliseconds
    return f"**{statistics.median(ratios):.2f}** times the plain step{range_of(ratios)}, {milliseconds}"
