"""What an entry point adds to the loop: the model, the phases of a step, how to measure and how to draw samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .data.batches import Batch, Feed
from .randomness import BatchRNG


Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass
class Phase:
    """One optimizer's part of a step: the GAN has two, the other models one.

    Attributes:
        name: unique within the objective.
        loss: module that is called with (batch, rng) and returns the loss and the values to log. Its parameters are
            the ones that are optimized; networks that only take part are not registered in it.
        learning_rate: None for the run's.
        repeats: how often the phase is run in a step, on the same examples with fresh random numbers.
    """

    name: str
    loss: nn.Module
    learning_rate: float | None = None
    repeats: int = 1


@dataclass
class Objective(Generic[Model]):
    """What an entry point adds to the loop.

    Attributes:
        model: what is published.
        phases: run in order in every step.
        feed: training examples.
        eval_batches: (batch size, device) -> every evaluation example once.
        evaluate: (model, batch, rng, is_final) -> metric name -> one value an item; the loop averages over all items
            of all processes.
        summarize: averages -> all metrics, with those that derive from averages.
        primary_metric: the metric that the progress bar and the plot show.
        dataset: what results.json says of the data: name, revision, split.
        draw_samples: (model, path without suffix) -> writes one file of samples.
        final_metrics: model -> metrics that need all samples at once, at the end, in the main process.
        save_extras: (folder) -> writes image processor or tokenizer beside the model.
        ema_prefixes: prefixes of the weights whose moving average is published.
    """

    model: Model
    phases: list[Phase]
    feed: Feed
    eval_batches: Callable[[int, torch.device], Iterator[Batch]]
    evaluate: Callable[[Model, Batch, BatchRNG, bool], dict[str, Tensor]]
    summarize: Callable[[dict[str, float]], dict[str, float]]
    primary_metric: str
    dataset: dict[str, Any]
    draw_samples: Callable[[Model, Path], None]
    save_extras: Callable[[Path], None]
    final_metrics: Callable[[Model], dict[str, float]] | None = None
    ema_prefixes: tuple[str, ...] = ("",)
