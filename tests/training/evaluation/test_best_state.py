"""Which state --keep_best takes for the best one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from training.config.flags import RunArguments
from training.evaluation.best_state import BestStateWatch
from training.watching import find_watch


def is_best(watch: BestStateWatch, *values: float | None) -> list[bool]:
    """Whether each evaluation is the best one when it is made; None for one that measured nothing."""
    rows = [{"step": float(step)} | ({} if value is None else {"x": value}) for step, value in enumerate(values)]
    return [watch.is_best(rows[: count + 1]) for count in range(len(rows))]


def test_the_best_state_has_the_smallest_loss_and_the_first_of_equals_stays() -> None:
    assert is_best(BestStateWatch("x"), 3, 2, 2.5, 2, 1) == [True, True, False, False, True]


def test_the_best_state_has_the_largest_value_of_a_metric_that_is_better_the_greater_it_is() -> None:
    assert is_best(BestStateWatch("x", greater_is_better=True), -3, -2, -2.5, -2, -1) == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_evaluations_without_a_value_are_never_the_best() -> None:
    assert is_best(BestStateWatch("x"), None, 3, float("nan"), 2, None) == [False, True, False, True, False]
    assert BestStateWatch("x").describe([{"step": 1}, {"step": 2, "x": 3.0}]) == {"compared_states": 1}


def test_only_the_flag_replaces_the_watch_of_an_objective_and_a_gan_refuses_it() -> None:
    objective: Any = SimpleNamespace(watch="its own", primary_metric="elbo", greater_is_better=True)
    assert find_watch(objective, RunArguments()) == "its own"
    assert find_watch(objective, RunArguments(keep_best=True)) == BestStateWatch("elbo", True)
    objective.greater_is_better = None
    with pytest.raises(ValueError, match=r"--keep_best must be left out for this model.*--stop_when_converged"):
        find_watch(objective, RunArguments(keep_best=True))
