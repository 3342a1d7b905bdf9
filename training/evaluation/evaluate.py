"""Evaluation and samples of the model as it would be published now."""

from __future__ import annotations

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
from ..distributed.processes import Processes
from ..distributed.signals import StopRequest
from ..objective import Objective
from ..randomness import BatchRNG
from .means import ItemMeans


def evaluate(
    objective: Objective[Any],
    model: PreTrainedModel,
    run: RunArguments,
    device: torch.device,
    stop: StopRequest,
    at_end: bool = False,
    limit: int | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float] | None:
    """Measures all metrics on the evaluation split, each example counted once whatever the number of processes.

    Random numbers belong to the batch, so they do not depend on the number of processes either. Collective call.

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
    measure = objective.evaluate_at_end if at_end else objective.evaluate
    # Batch normalization's averages differ a little between processes, and those of the main process are saved.
    stop.processes.copy_from_main(model.buffers())
    means = ItemMeans()
    with torch.no_grad(), evaluation_mode(model):
        batches = objective.data.eval_batches(run.per_device_eval_batch_size, device, limit)
        for index, weight, batch in _own_batches(batches, stop.processes):
            before_batch()
            if stop.agree()[0]:
                return None
            rows = len(next(iter(batch.values())))
            rng = BatchRNG((run.seed, "evaluation", index), rows, slice(0, rows), device)
            means.add(measure(model, batch, rng), weight)
    return objective.derive(means.compute(stop.processes))


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


def draw_samples(objective: Objective[Any], model: PreTrainedModel, path: Path) -> None:
    """Writes a file of samples without changing the random numbers of training."""
    path.parent.mkdir(exist_ok=True)
    with torch.no_grad(), torch.random.fork_rng(), evaluation_mode(model):
        objective.draw_samples(model, path)


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
