"""Evaluation and samples of the model as it would be published now."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ..config.flags import RunArguments
from ..data.feeds.batches import Batch
from ..data.sources.splits import one_line
from ..distributed.processes import Processes
from ..distributed.signals import StopRequest
from ..objective import Autocast, Estimator, Metrics, Objective, Sample, Steps
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
    autocast: Autocast = nullcontext,
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
        at_end: whether the model is finished, and all of it is to be measured.
        limit: number of examples to measure, evenly spread over the split; None for all.
        before_batch: called before every batch.
        autocast: the precision of training. Only the likelihood is estimated in it: over so many passes, rounding
            errors average out.

    Returns:
        the metrics, the same in every process; None if a signal interrupted the evaluation.
    """
    processes = stop.processes
    # Batch normalization's averages differ a little between processes, and those of the main process are saved.
    processes.copy_from_main(model.buffers())
    means = ItemMeans()
    estimator = objective.estimator(model, device, processes, autocast, limit, at_end)
    with torch.no_grad(), evaluation_mode(model):
        batches = objective.data.eval_batches(run.per_device_eval_batch_size, device, limit)
        own = _own_batches(batches, processes)
        steps = _steps(_measure_batches(objective, model, run, device, own, means), estimator)
        failure, is_left, largest = None, True, None
        while is_left:
            before_batch()
            value = 0.0
            try:
                value = steps.send(largest)
            except StopIteration:
                is_left = False
            except Exception as error:
                if isinstance(model, FSDPModule):
                    raise
                failure = Metrics.failed([objective.primary_metric], error)
            # One collective for all: a process that failed must not leave the others waiting.
            signaled, failed, largest = processes.max([float(stop.requested), float(failure is not None), value])
            if failed:
                return next(found for found in processes.gather(failure) if found is not None)
            if is_left and signaled:
                return None
    averages = means.compute(processes)
    if estimator is None:
        return _derive(objective, averages)
    estimate = estimator.result()
    derived = _derive(objective, averages | estimate.values)
    return replace(derived, missing=derived.missing | estimate.missing, details=estimate.details)


def _steps(measured: Steps, estimator: Estimator | None) -> Steps:
    """The work of an evaluation in pieces: first the batches, then what is estimated from all of them."""
    yield from measured
    if estimator is not None:
        yield from estimator.steps()


def _measure_batches(
    objective: Objective[Any],
    model: PreTrainedModel,
    run: RunArguments,
    device: torch.device,
    batches: Iterator[tuple[int, float, Batch]],
    means: ItemMeans,
) -> Steps:
    """Adds the values of this process's batches to `means`."""
    for index, weight, batch in batches:
        yield 0.0
        rows = len(next(iter(batch.values())))
        rng = BatchRNG((run.seed, "evaluation", index), rows, slice(0, rows), device)
        means.add(objective.evaluate(model, batch, rng), weight)


def _derive(objective: Objective[Any], means: dict[str, float]) -> Metrics:
    """All metrics, given those that were measured; those that are not finite count as missing."""
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


def draw_samples(
    draw: Callable[[Any], dict[str, Sample]], model: PreTrainedModel, folder: Path, step: int
) -> dict[str, Sample]:
    """Writes samples as step-N.png, or .txt for a text, and what else is drawn as step-N-NAME.png.

    The random numbers of training do not change. A failure is a warning.

    Args:
        draw: `draw_samples` or `draw_finished` of the objective.
        model: of the objective's class, whole.
        folder: created if it is missing.
        step: N, written with six digits.

    Returns:
        name -> picture or text; empty after a failure.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(), evaluation_mode(model):
            samples = draw(model)
        folder.mkdir(exist_ok=True)
        for name, sample in samples.items():
            path = folder / (f"step-{step:06d}" if name == "samples" else f"step-{step:06d}-{name}")
            if isinstance(sample, str):
                path.with_suffix(".txt").write_text(sample, encoding="utf-8")
            else:
                sample.save(path.with_suffix(".png"))
    except Exception as error:
        logger.warning("No samples were drawn: %s: %s", type(error).__name__, one_line(error))
        return {}
    return samples


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
