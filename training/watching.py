"""What an evaluation in the middle of a run leads to: problems are named, the best state is kept, the run may end."""

from __future__ import annotations

import logging
import math
from typing import Any

from .config.flags import RunArguments
from .evaluation.best_state import BestStateWatch
from .objective import Metrics, Objective, Watch
from .progress import Progress
from .state import TrainState
from .step import StepResult


logger = logging.getLogger(__name__)


def find_watch(objective: Objective[Any], run: RunArguments) -> Watch | None:
    """Returns what follows the evaluations of a run: the objective's own watch, or that of --keep_best; None for none.

    Raises:
        ValueError: --keep_best was given, and the objective does not measure how good a model is.
    """
    if not run.keep_best:
        return objective.watch
    if objective.greater_is_better is None:
        raise ValueError(
            "--keep_best must be left out for this model, whose loss does not say how good it is, got true. A GAN has "
            "--stop_when_converged, which watches the quality of its samples."
        )
    return BestStateWatch(objective.primary_metric, objective.greater_is_better)


def note_gradients(progress: Progress, phase: str, result: StepResult) -> None:
    """Adds the gradient norms of a step to those since the last evaluation."""
    norms = [norm for norm in result.gradient_norms if math.isfinite(norm)]
    total, count = progress.gradient_norms.get(phase, [0.0, 0])
    progress.gradient_norms[phase] = [total + sum(norms), count + len(norms)]


def watch_evaluation(state: TrainState, watch: Watch, metrics: Metrics) -> None:
    """Adds an evaluation to the history of the run, and does what follows from it.

    All processes have the same metrics, and so come to the same conclusions.

    Args:
        state: of the run; its model is the one that was measured.
        watch: of the objective.
        metrics: of the evaluation.
    """
    progress = state.progress
    errors = {name: value for name, value in metrics.details.items() if name.endswith("_standard_error")}
    sums = progress.gradient_norms
    norms = {f"gradient_norm_{name}": total / count for name, (total, count) in sums.items() if count}
    row = {"step": progress.step, "skipped_steps": progress.skipped_steps, **metrics.values, **errors, **norms}
    # A run that resumes after its last checkpoint repeats its last evaluation.
    progress.history = [past for past in progress.history if past["step"] < progress.step] + [row]
    progress.gradient_norms = {}
    watch.follow(progress.history)
    for problem in watch.new_problems(progress.history):
        logger.warning("%s", problem)
    if watch.publishes_best and watch.is_best(progress.history):
        state.keep_as_best()
    progress.stop_reason = watch.stop_reason(progress.history)
    if progress.stop_reason is not None:
        logger.info("%s", progress.stop_reason)


def describe_course(state: TrainState, watch: Watch) -> Metrics:
    """Returns no metrics, but details for results.json and the card: problems, why the run ended, what is saved."""
    progress = state.progress
    details = {**watch.describe(progress.history), "stop_reason": progress.stop_reason}
    if watch.publishes_best:
        details["published_step"] = progress.best_step
    return Metrics(details=details)
