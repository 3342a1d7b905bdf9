"""Communication between the processes of a run, outside of gradients.

All of it goes over gloo between the hosts, so that no device has to wait. Only the main process reads and writes the
output folder; the others learn from it what it found, so several machines need no shared disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from . import launcher


T = TypeVar("T")


def join_after_restart() -> None:
    """Initializes the process group after an elastic restart on one machine; accelerate handles every other case.

    The launcher keeps the store in which processes find each other (torch 2.13). Restarted processes would read the
    addresses of their dead predecessors there and wait for them, so each restart gets its own part of the store. The
    launchers of several machines count their restarts separately and share no such number.
    """
    if not launcher.restarts() or not launcher.keeps_store() or launcher.machines() != 1:
        return
    on_gpu = torch.cuda.is_available() and not launcher.on_cpu()
    if on_gpu:
        torch.cuda.set_device(launcher.local_rank())
    store, rank, count = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"life {launcher.restarts()}", store)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=count)


def lost_a_process(error: BaseException) -> bool:
    """True if an error of torch.distributed means that another process of the run is gone."""
    return "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error)


class Processes:
    """The processes of a run; a run of one process if torch.distributed is not initialized.

    Every method is a collective call: all processes must make it, in the same order.

    Attributes:
        rank: of this process, 0 for the main one.
        count: number of processes.
    """

    def __init__(self) -> None:
        is_distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if is_distributed else 0
        self.count = dist.get_world_size() if is_distributed else 1
        self._group = None
        if self.count > 1:
            # NCCL would send every word through the GPUs, behind the work that is queued there.
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def on_main(self, function: Callable[..., T], *args: Any) -> T:
        """Calls `function(*args)` on the main process and returns its result everywhere.

        Raises:
            Exception: what the function raised, in every process, so that none is left waiting. Other processes get a
                ValueError or OSError with the same words, or a RuntimeError for any other kind.
        """
        if self.count == 1:
            return function(*args)
        outcome = _outcome(function, args) if self.is_main else None
        received: list[Any] = [outcome.sendable() if outcome else None]
        dist.broadcast_object_list(received, src=0, group=self._group)
        return (outcome or received[0]).result()

    def on_all(self, function: Callable[..., T], *args: Any) -> list[T]:
        """Calls `function(*args)` in every process and returns all results, by rank, everywhere.

        Raises:
            Exception: the first failure by rank, in every process, as in `on_main`.
        """
        if self.count == 1:
            return [function(*args)]
        own = _outcome(function, args)
        outcomes = self._gather_objects(own.sendable())
        outcomes[self.rank] = own
        return [outcome.result() for outcome in outcomes]

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes, by rank."""
        return [value] if self.count == 1 else self._gather_objects(value)

    def max(self, values: list[float]) -> list[float]:
        """Returns the elementwise maximum over all processes."""
        return self._reduce(torch.tensor(values, dtype=torch.float64), dist.ReduceOp.MAX).tolist()

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of a CPU tensor over all processes."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def stack(self, values: Tensor) -> Tensor:
        """Returns the tensors of all processes, (processes, *shape), on the CPU."""
        values = values.cpu()
        if self.count == 1:
            return values[None]
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values, group=self._group)
        return torch.stack(parts)

    def broadcast_tensor(self, read: Callable[[], Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns everywhere, on the CPU, a tensor that only the main process reads.

        Args:
            read: called on the main process; returns the tensor on the CPU.
            shape, dtype: of that tensor, known to every process.
        """
        if self.count == 1:
            return read()
        tensor = read().contiguous() if self.is_main else torch.empty(shape, dtype=dtype)
        if tensor.numel():
            dist.broadcast(tensor.view(-1).view(torch.uint8), src=0, group=self._group)
        return tensor

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors, wherever they lie, with those of the main process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Waits until all processes have arrived here."""
        if self.count > 1:
            dist.barrier(group=self._group)

    def _reduce(self, values: Tensor, operation: Any) -> Tensor:
        if self.count > 1:
            dist.all_reduce(values, operation, group=self._group)
        return values

    def _gather_objects(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values


class _Outcome:
    """What a function returned or raised in one process."""

    def __init__(self, value: Any, error: Exception | None):
        self.value, self.error = value, error

    def sendable(self) -> _Outcome:
        """The same for other processes. An error may be of a kind that cannot be sent, so only its words are."""
        if self.error is None:
            return self
        kind = next((kind for kind in (ValueError, OSError) if isinstance(self.error, kind)), RuntimeError)
        text = str(self.error) if kind is not RuntimeError else f"{type(self.error).__name__}: {self.error}"
        return _Outcome(None, kind(text))

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> _Outcome:
    try:
        return _Outcome(function(*args), None)
    except Exception as error:
        return _Outcome(None, error)
