"""What the processes of a run tell each other: decisions, checkpoints, errors.

All of it goes through the memory of the hosts, so that no device has to wait for it. The main process alone reads and
writes the output folder and tells the others what it found: several machines need no disk in common.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import parse_flag_from_env
from torch import Tensor


T = TypeVar("T")


def join_after_restart() -> None:
    """Brings together the processes that the launcher of one machine has started anew; accelerate does it elsewhere.

    The launcher keeps the store in which processes find each other (torch 2.13). Restarted ones would read the
    addresses of the dead there and wait for them, so that each life gets a part of the store to itself. The launchers
    of several machines count their restarts apart and have no such number in common.
    """
    life = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    has_old_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not life or not has_old_store or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, count = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"life {life}", store)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=count)


def lost_a_process(error: BaseException) -> bool:
    """Whether an error of torch.distributed says that another process of the run is gone."""
    return "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error)


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
            Exception: what the function raised there, in every process: none is left waiting.
        """
        if self.count == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except Exception as error:
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

    def broadcast_tensor(self, read: Callable[[], Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
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
