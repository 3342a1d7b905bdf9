"""Evaluation and samples of the model as it would be published now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ..config.flags import RunArguments
from ..data.batches import Batch
from ..distributed.signals import StopRequest
from ..objective import Objective
from ..randomness import BatchRNG


def evaluate(
    objective: Objective,
    model: PreTrainedModel,
    accelerator: Accelerator,
    run: RunArguments,
    stop: StopRequest,
    is_final: bool = False,
) -> dict[str, float] | None:
    """All metrics over the evaluation split, each example counted once whatever the number of processes.

    Random numbers belong to the batch, so that they do not depend on the number of processes either.

    Returns:
        the metrics, the same in every process; None if a signal came, and then the evaluation was not completed.
    """
    sums: dict[str, Tensor] = {}
    if accelerator.num_processes > 1:
        # Batch normalisation's averages differ a little from process to process, and those of the main one are saved.
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    with torch.no_grad(), evaluation_mode(model):
        for index, weight, batch in _own_batches(objective, accelerator, run.per_device_eval_batch_size):
            if stop.agree()[0]:
                return None
            rows = len(next(iter(batch.values())))
            rng = BatchRNG((run.seed, "evaluation", index), rows, slice(0, rows), accelerator.device)
            for name, values in objective.evaluate(model, batch, rng, is_final).items():
                items = values.cpu().double()
                part = weight * torch.stack([items.sum(), torch.tensor(float(items.numel()))])
                sums[name] = sums[name] + part if name in sums else part
    totals = torch.stack(list(sums.values()))
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(totals.to(accelerator.device), "sum")
    return objective.summarize({name: total / count for name, (total, count) in zip(sums, totals.tolist())})


def _own_batches(objective: Objective, accelerator: Accelerator, size: int) -> Iterator[tuple[int, float, Batch]]:
    """(index, weight, batch) of this process: as many in each process, as a sharded model needs all of them at once.

    A process for which none is left measures an earlier one with weight 0.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    batches = enumerate(objective.eval_batches(size, accelerator.device))
    while group := list(islice(batches, processes)):
        index, batch = group[rank] if rank < len(group) else group[0]
        yield index, float(rank < len(group)), batch


def draw_samples(objective: Objective, model: PreTrainedModel, path: Path) -> None:
    """Writes a file of samples, without a trace in the random numbers of training."""
    path.parent.mkdir(exist_ok=True)
    with torch.no_grad(), torch.random.fork_rng(), evaluation_mode(model):
        objective.draw_samples(model, path)


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """`model.eval()` for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        if isinstance(model, FSDPModule):  # without a backward pass, some weights stay gathered
            model.reshard()
