"""What an entry point adds to the loop: the model, the phases of a step, and how to evaluate and sample it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import PIL.Image
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .data.feeds.batches import Batch, Feed
from .data.sources.splits import one_line
from .distributed.processes import Processes
from .randomness import BatchRNG


Model = TypeVar("Model", bound=PreTrainedModel)
Autocast: TypeAlias = Callable[[], AbstractContextManager[Any]]
# Pieces of work that all processes do at once. Before each piece, every process yields a number, and receives the
# largest of these numbers.
Steps: TypeAlias = Generator[float, Any, None]
Sample: TypeAlias = PIL.Image.Image | str


@dataclass
class Phase:
    """One optimizer's part of a step: the GAN has two, the other models have one.

    Attributes:
        name: unique within the objective.
        loss: module that is called with (batch, rng, progress), where progress is the share of the run that is done,
            and returns the loss and the values to log. Its parameters are the ones that are optimized; networks that
            only take part are not registered in it.
        learning_rate: None for --learning_rate.
        repeats: how often the phase runs in a step, on the same examples with fresh random numbers.
    """

    name: str
    loss: nn.Module
    learning_rate: float | None = None
    repeats: int = 1


@dataclass
class Metrics:
    """What was measured, and why something was not.

    Attributes:
        values: metric name -> value.
        missing: metric name -> the reason why it has no value, without a period.
        details: JSON values that say how a metric was measured. results.json and the card have them, too.
    """

    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def failed(cls, names: Iterable[str], error: Exception) -> Metrics:
        """Returns metrics that are all missing because of an error. With HFGEN_DEBUG=1, its traceback is printed."""
        if os.environ.get("HFGEN_DEBUG"):
            traceback.print_exception(error)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return cls(missing=dict.fromkeys(names, f"{kind}{one_line(error)}".removesuffix(".")))

    def __or__(self, other: Metrics) -> Metrics:
        return Metrics(self.values | other.values, self.missing | other.missing, self.details | other.details)

    def by_name(self) -> dict[str, float | None]:
        """Returns metric name -> value, or None if it is missing."""
        return {**self.values, **dict.fromkeys(self.missing)}


class Data(Protocol):
    """The examples of a run.

    Attributes:
        train: endless training batches.
    """

    train: Feed

    def eval_batches(self, batch_size: int, device: torch.device, limit: int | None = None) -> Iterator[Batch]:
        """Yields every evaluation example once, or `limit` of them, evenly spread."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns what results.json says of the data: dataset, dataset_revision, split."""
        ...


class Estimator(Protocol):
    """A metric that is not the average of one value per example."""

    def steps(self) -> Steps:
        """Does the work of this process. Every process yields as often, and makes no collective call in between."""
        ...

    def result(self) -> Metrics:
        """Returns the metric, the same in every process. Collective call, after the steps of all processes."""
        ...


class Watch(Protocol):
    """Follows the evaluations of a run. A history has a row for each of them: metric name -> value, and "step"."""

    @property
    def stops(self) -> bool:
        """Whether the run may end before its length is reached."""
        ...

    @property
    def publishes_best(self) -> bool:
        """Whether the state of the best evaluation is published, and not the last one."""
        ...

    @property
    def draws_film(self) -> bool:
        """Whether samples are drawn again and again, as frames of a film."""
        ...

    @property
    def evaluations(self) -> int:
        """How many evaluations a run has, unless --eval_steps is given."""
        ...

    def follow(self, history: list[dict[str, float]]) -> None:
        """Lets the training adapt: called at the start of a run, resumed or not, and after each evaluation."""
        ...

    def new_problems(self, history: list[dict[str, float]]) -> list[str]:
        """Returns the problems that begin with the last row, in words."""
        ...

    def is_best(self, history: list[dict[str, float]]) -> bool:
        """Whether the last row is the best one so far."""
        ...

    def stop_reason(self, history: list[dict[str, float]]) -> str | None:
        """Returns in words why the run ends now; None if it goes on."""
        ...

    def describe(self, history: list[dict[str, float]]) -> dict[str, Any]:
        """Returns what the details of the final metrics say about the course of the run."""
        ...


class Objective(Protocol[Model]):
    """The interface between an entry point and the loop: one plain class per training script.

    Attributes:
        model: the one that is trained and published.
        phases: run in order in every step.
        data: to train and to evaluate on.
        primary_metric: the one that the progress bar and the plot show.
        greater_is_better: whether large values of it are good; None if it does not say how good a model is.
        ema_prefixes: the moving average covers the weights whose names begin with one of these.
    """

    model: Model
    phases: list[Phase]
    primary_metric: str
    greater_is_better: bool | None
    ema_prefixes: tuple[str, ...]

    @property
    def watch(self) -> Watch | None:
        """What follows the evaluations of the run, if anything does besides --keep_best."""
        ...

    @property
    def data(self) -> Data: ...

    def evaluate(self, model: Model, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """Returns metric name -> one value per item; the loop averages over all items of all processes."""
        ...

    def estimator(
        self,
        model: Model,
        device: torch.device,
        processes: Processes,
        autocast: Autocast,
        limit: int | None,
        at_end: bool,
        /,
    ) -> Estimator | None:
        """Returns what measures the model on all evaluation examples at once, or on `limit` of them, evenly spread;
        None if there is nothing. `at_end` says whether the model is finished."""
        ...

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        """Returns all metrics, given those that were measured: these and the ones that follow from them."""
        ...

    def measure_samples(self, model: Model) -> Metrics:
        """Returns metrics of the finished model that need all samples at once. Called on the main process."""
        ...

    def measure_config(self, model: Model) -> dict[str, float]:
        """Returns config fields of the finished model that are measured: some of `training.config.flags.MEASURED`.
        Called on the main process."""
        ...

    def draw_samples(self, model: Model) -> dict[str, Sample]:
        """Returns name -> picture or text, among them "samples", the one that a card shows first."""
        ...

    def draw_finished(self, model: Model) -> dict[str, Sample]:
        """Returns name -> picture that is drawn of the finished model only, because it takes seconds."""
        ...

    def save_extras(self, folder: Path) -> object:
        """Writes what belongs beside the model: the image processor or the tokenizer."""
        ...
