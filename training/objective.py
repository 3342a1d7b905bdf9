"""What an entry point adds to the loop: the model, the phases of a step, and how to evaluate and sample it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .data.batches import Batch, Feed
from .data.sources import one_line
from .randomness import BatchRNG


Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass
class Phase:
    """One optimizer's part of a step: the GAN has two, the other models have one.

    Attributes:
        name: unique within the objective.
        loss: module that is called with (batch, rng) and returns the loss and the values to log. Its parameters are
            the ones that are optimized; networks that only take part are not registered in it.
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
    """

    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def failed(cls, names: Iterable[str], error: Exception) -> Metrics:
        """Returns metrics that are all missing because of an error. With HFGEN_DEBUG=1, its traceback is printed."""
        if os.environ.get("HFGEN_DEBUG"):
            traceback.print_exception(error)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return cls(missing=dict.fromkeys(names, f"{kind}{one_line(error)}".removesuffix(".")))

    def __or__(self, other: Metrics) -> Metrics:
        return Metrics({**self.values, **other.values}, {**self.missing, **other.missing})

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


class Objective(Protocol[Model]):
    """The interface between an entry point and the loop: one plain class per training script.

    Attributes:
        model: the one that is trained and published.
        phases: run in order in every step.
        data: to train and to evaluate on.
        primary_metric: the one that the progress bar and the plot show.
        ema_prefixes: the moving average covers the weights whose names begin with one of these.
    """

    model: Model
    phases: list[Phase]
    primary_metric: str
    ema_prefixes: tuple[str, ...]

    @property
    def data(self) -> Data: ...

    def evaluate(self, model: Model, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """Returns metric name -> one value per item; the loop averages over all items of all processes."""
        ...

    def evaluate_at_end(self, model: Model, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """The same for the finished model, with what is too expensive to measure during training."""
        ...

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        """Returns all metrics, given the averages: these and the ones that follow from them."""
        ...

    def measure_samples(self, model: Model) -> Metrics:
        """Returns metrics of the finished model that need all samples at once. Called on the main process."""
        ...

    def measure_config(self, model: Model) -> dict[str, float]:
        """Returns config fields of the finished model that are measured: some of `training.config.flags.MEASURED`.
        Called on the main process."""
        ...

    def draw_samples(self, model: Model, path: Path) -> None:
        """Writes one file of samples, to `path` with the suffix of its kind."""
        ...

    def save_extras(self, folder: Path) -> object:
        """Writes what belongs beside the model: the image processor or the tokenizer."""
        ...
