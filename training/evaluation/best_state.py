"""Which state of a run is published if it is the best one: --keep_best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BestStateWatch:
    """Keeps the state of the evaluation with the best value of one metric; a [`training.objective.Watch`].

    A model that is trained for many epochs on little data becomes worse on other data while its training loss still
    falls. The run goes on to its end all the same, because a learning rate that falls can bring the loss down again.

    Attributes:
        metric: the primary metric of the objective.
        greater_is_better: whether large values of it are good.
    """

    metric: str
    greater_is_better: bool = False

    stops = False
    publishes_best = True
    draws_film = False
    evaluations = 20

    def follow(self, history: list[dict[str, float]]) -> None:
        """Nothing depends on the evaluations while the run goes on."""

    def new_problems(self, history: list[dict[str, float]]) -> list[str]:
        return []

    def is_best(self, history: list[dict[str, float]]) -> bool:
        """Whether the last row is better than all before it; False if its metric is missing or not a number."""
        sign = -1.0 if self.greater_is_better else 1.0
        values = [sign * row[self.metric] for row in history if math.isfinite(row.get(self.metric, math.nan))]
        has_value = math.isfinite(history[-1].get(self.metric, math.nan))
        return has_value and all(values[-1] < earlier for earlier in values[:-1])

    def stop_reason(self, history: list[dict[str, float]]) -> str | None:
        return None

    def describe(self, history: list[dict[str, float]]) -> dict[str, Any]:
        """The number of states of which the best one is published."""
        return {"compared_states": sum(self.metric in row for row in history)}
