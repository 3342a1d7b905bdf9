"""What the processes of a run tell each other: decisions, checkpoints, errors.

All of it goes through the memory of the hosts, so that no device has to wait for it. The main process alone reads and
writes the output folder and tells the others what it found: several machines need no disk in common.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor


T = TypeVar("T")


class Processes:
    """The processes of a run, and which one this is; a run of one process when torch.distributed is not set up."""

    def __init__(self) -> None:
        is_distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if is_distributed else 0
        self.count = dist.get_world_size() if is_distributed else 1
        self._group = None
        if self.count > 1:
            # NCCL would move every word through the GPUs, behind the work that waits there.
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def on_main(self, function: Callable[[], T]) -> T:
        """What the function gives on the main process, which alone calls it.

        Raises:
            ValueError, OSError: what the function raised there, in every process: none is left waiting.
        """
        if self.count == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except (ValueError, OSError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank, in all of them."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values

    def largest(self, values: list[float]) -> list[float]:
        """The largest of each value over all processes."""
        if self.count == 1:
            return values
        table = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(table, dist.ReduceOp.MAX, group=self._group)
        return table.tolist()

    def share(self, read: Callable[[], Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor that the main process alone reads.

        Args:
            read: called there; gives the tensor on the CPU.
            shape, dtype: its own, known to every process.
        """
        if self.count == 1:
            return read()
        tensor = read().contiguous() if self.is_main else torch.empty(shape, dtype=dtype)
        if tensor.numel():
            dist.broadcast(tensor.view(-1).view(torch.uint8), src=0, group=self._group)
        return tensor

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            dist.barrier(group=self._group)
