"""The rows `stopping` and `broken`: does a run end when it has converged, and does its log name what goes wrong?"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from ...config.scripts import SCRIPTS
from ..measuring.rows import Lines, Session, data_of, seed_flags
from ..measuring.runs import as_words, run_training
from ..measuring.table import Runs, range_of
from .on_mnist import RECIPE, chosen_data


LIMIT_SECONDS, BROKEN_SECONDS = 900.0, 120.0
# What the evaluations of a run compare samples by.
QUALITY = "eval_quick_fid"
STOPPING_DATA = {"MNIST": data_of(RECIPE), "digits": {"dataset_name": "digits"}}
BROKEN = {
    "learning rate times 30": ["--learning_rate", f"{30 * SCRIPTS['gan'].defaults['learning_rate']:g}"],
    "50 images": ["--max_train_samples", "50"],
}


def measure_stopping(session: Session, row: str) -> Lines:
    """Trains until the run itself says that it has converged, or to the limit."""
    limit = session.seconds or LIMIT_SECONDS
    for name, data in STOPPING_DATA.items():
        flags = [*as_words(data), "--stop_when_converged"]
        yield f"stop when converged, {name}", run_watched(session, row, name, flags, limit)


def measure_broken(session: Session, row: str) -> Lines:
    """Trains in ways that must go wrong."""
    for name, flags in BROKEN.items():
        # Losses that are not finite must not end the run before its evaluations have seen anything.
        words = [*as_words(chosen_data(session)), *flags, "--on_nonfinite", "skip"]
        yield f"broken: {name}", run_watched(session, row, name, words, session.seconds or BROKEN_SECONDS)


def run_watched(session: Session, row: str, name: str, flags: list[str], seconds: float) -> Runs:
    """Trains once for each seed, and reads what the evaluations of the run saw.

    Returns:
        what [`run_training`] records, and its `course`.

    Raises:
        ValueError: a training failed.
    """
    runs = []
    for seed in session.seeds:
        output_dir = session.output_dir(row, seed, name.replace(" ", "-"))
        words = [*flags, "--max_train_seconds", f"{seconds:g}", *seed_flags(seed), *session.flags]
        run = run_training("gan", [], output_dir, words, session.environment)
        runs.append({"seed": seed, **run, "course": course_of(output_dir, run["metrics_details"], seconds)})
    return runs


def course_of(output_dir: Path, details: dict[str, Any], limit: float) -> dict[str, Any]:
    """What the evaluations in the middle of a run saw.

    Args:
        output_dir: of the run.
        details: `metrics_details` of its results.
        limit: the seconds that it was allowed to take.

    Returns:
        limit; stop_reason, None if the run took all of its time; published_over_best, the distance of the published
        state over the smallest one that an evaluation saw; and problems, each with the number of the `evaluation` that
        named it.
    """
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row.get(QUALITY) is not None]
    distances = {row["step"]: row[QUALITY] for row in rows}
    steps = sorted(distances)
    published = distances.get(details.get("published_step") or (steps[-1] if steps else None))
    return {
        "limit": limit,
        "stop_reason": details.get("stop_reason"),
        "published_over_best": None if published is None else published / min(distances.values()),
        "problems": [
            {**problem, "evaluation": 1 + sum(step < problem["step"] for step in steps)}
            for problem in details.get("problems", [])
        ],
    }


def stopping_figure(runs: Runs) -> str:
    """When runs stopped, in words, and how good what they published is."""
    courses = [run["course"] for run in runs]
    stopped = sum(course["stop_reason"] is not None for course in courses)
    seconds = [run["seconds_trained"] for run in runs]
    text = (
        f"{stopped} of {len(runs)} stopped before the limit of {courses[0]['limit']:.0f} s, "
        f"training took {statistics.fmean(seconds):.0f} s{range_of(seconds, 0)}"
    )
    ratios = [course["published_over_best"] for course in courses if course["published_over_best"] is not None]
    return f"{text}, published at **{max(ratios):.2f}** times the best distance seen" if ratios else text


def problems_figure(runs: Runs) -> str:
    """What the log named first, in words."""
    first = [run["course"]["problems"][:1] for run in runs]
    named = [f"{problem['kind']} at evaluation {problem['evaluation']}" for found in first for problem in found]
    silent = len(runs) - len(named)
    return "; ".join([*named, *([f"nothing in {silent} of {len(runs)}"] if silent else [])])
