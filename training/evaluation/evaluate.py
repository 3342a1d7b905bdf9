"""Evaluation and samples of the model as it would be published now."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ..config.flags import RunArguments
from ..data.batches import Batch
from ..data.sources import one_line
from ..distributed.processes import Processes
from ..distributed.signals import StopRequest
from ..objective import Metrics, Objective
from ..randomness import BatchRNG
from .means import ItemMeans


logger = logging.getLogger(__name__)


def evaluate(
    objective: Objective[Any],
    model: PreTrainedModel,
    run: RunArguments,
    device: torch.device,
    stop: StopRequest,
    at_end: bool = False,
    limit: int | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> Metrics | None:
    """Measures all metrics on the evaluation split, each example counted once whatever the number of processes.

    Random numbers belong to the batch, so they do not depend on the number of processes either. An error costs the
    metrics and not the training, unless the model is sharded: others would wait in its forward pass. Collective call.

    Args:
        objective: what to measure.
        model: of the objective's class, in every process; it may be sharded.
        run: the flags.
        device: of this process.
        stop: asked before every batch; knows the processes of the run.
        at_end: whether to measure as the finished model is measured.
        limit: number of examples to measure, evenly spread over the split; None for all.
        before_batch: called before every batch.

    Returns:
        the metrics, the same in every process; None if a signal interrupted the evaluation.
    """
    processes = stop.processes
    # Batch normalization's averages differ a little between processes, and those of the main process are saved.
    processes.copy_from_main(model.buffers())
    means = ItemMeans()
    with torch.no_grad(), evaluation_mode(model):
        batches = objective.data.eval_batches(run.per_device_eval_batch_size, device, limit)
        measured = _measure_batches(objective, model, run, device, _own_batches(batches, processes), at_end, means)
        failure, is_left = None, True
        while is_left:
            before_batch()
            try:
                is_left = next(measured, False)
            except Exception as error:
                if isinstance(model, FSDPModule):
                    raise
                failure = Metrics.failed([objective.primary_metric], error)
            # One collective for both: a process that failed must not leave the others waiting.
            signaled, failed = processes.max([float(stop.requested), float(failure is not None)])
            if failed:
                return next(found for found in processes.gather(failure) if found is not None)
            if is_left and signaled:
                return None
    return _derive(objective, means.compute(processes))


def _measure_batches(
    objective: Objective[Any],
    model: PreTrainedModel,
    run: RunArguments,
    device: torch.device,
    batches: Iterator[tuple[int, float, Batch]],
    at_end: bool,
    means: ItemMeans,
) -> Iterator[bool]:
    """Adds the values of this process's batches to `means`; yields True before each."""
    measure = objective.evaluate_at_end if at_end else objective.evaluate
    for index, weight, batch in batches:
        yield True
        rows = len(next(iter(batch.values())))
        rng = BatchRNG((run.seed, "evaluation", index), rows, slice(0, rows), device)
        means.add(measure(model, batch, rng), weight)


def _derive(objective: Objective[Any], means: dict[str, float]) -> Metrics:
    """All metrics, given the averages; those that are not finite count as missing."""
    try:
        found = objective.derive(means)
    except Exception as error:
        return Metrics.failed([objective.primary_metric], error)
    return Metrics(
        {name: value for name, value in found.items() if math.isfinite(value)},
        {name: f"the value is {value}" for name, value in found.items() if not math.isfinite(value)},
    )


def _own_batches(batches: Iterator[Batch], processes: Processes) -> Iterator[tuple[int, float, Batch]]:
    """Yields (index, weight, batch) of this process.

    Every process gets the same number, because a sharded forward pass is collective: one for which no batch is left
    measures an earlier one with weight 0.
    """
    numbered = enumerate(batches)
    while group := list(islice(numbered, processes.count)):
        is_own = processes.rank < len(group)
        index, batch = group[processes.rank] if is_own else group[0]
        yield index, float(is_own), batch


def report_missing(metrics: Metrics) -> None:
    """Warns of metrics that have no value, once for each reason."""
    for reason in dict.fromkeys(metrics.missing.values()):
        names = ", ".join(name for name, other in metrics.missing.items() if other == reason)
        logger.warning("Not measured: %s (%s).", names, reason)


def draw_samples(objective: Objective[Any], model: PreTrainedModel, path: Path) -> None:
    """Writes a file of samples without changing the random numbers of training. A failure is a warning."""
    try:
        path.parent.mkdir(exist_ok=True)
        with torch.no_grad(), torch.random.fork_rng(), evaluation_mode(model):
            objective.draw_samples(model, path)
    except Exception as error:
        logger.warning("No samples were drawn: %s: %s", type(error).__name__, one_line(error))


def measure_config(objective: Objective[Any], model: PreTrainedModel) -> dict[str, float]:
    """Fills in the config fields that are measured on the finished model. A failure is a warning, and leaves them as
    they are.

    Returns:
        the fields that were filled in.
    """
    try:
        with torch.no_grad(), evaluation_mode(model):
            measured = objective.measure_config(model)
        if not all(map(math.isfinite, measured.values())):
            raise ValueError(f"the values are {measured}")
    except Exception as error:
        logger.warning("No config fields were measured: %s: %s", type(error).__name__, one_line(error))
        return {}
    for name, value in measured.items():
        setattr(model.config, name, value)
    return measured


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Switches to `model.eval()` inside."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        if isinstance(model, FSDPModule):  # without a backward pass, some weights stay gathered
            model.reshard()
