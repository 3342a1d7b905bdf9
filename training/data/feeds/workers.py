"""DataLoader workers: how many there are, and which signals they obey."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ...distributed.launcher import available_cores, local_processes


def default_num_workers() -> int:
    """One worker per core that is left for this process, at most 4. Only for data whose order is the same anyway."""
    return min(4, available_cores() // local_processes())


class ReadByWorkers(IterableDataset):
    """A dataset of whole batches that each worker reads by itself.

    Args:
        read: Called with the worker's number, 0 if there are no workers; yields what the worker loads. Must be
            picklable. A ValueError that it raises ends the batches.
    """

    def __init__(self, read: Callable[[int], Iterator[Any]]):
        self.read = read

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None:
            import fsspec.asyn

            fsspec.asyn.reset_lock()  # a lock that was held during the fork would stay locked
        try:
            yield from self.read(worker.id if worker else 0)
        except ValueError as error:
            yield error  # raised by load_batches: DataLoader would bury it in the worker's traceback


def load_batches(
    dataset: Dataset, num_workers: int, device: torch.device, sampler: Iterable[list[int]] | None = None
) -> Iterator[Any]:
    """Yields the items of a dataset of whole batches, read ahead by workers.

    Raises:
        ValueError: One of the items is a ValueError.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        # Without a generator the loader would draw from the global one, which must not depend on when a feed begins.
        generator=torch.Generator(),
        worker_init_fn=_ignore_group_signals,
    )
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield batch


def _ignore_group_signals(_worker: int) -> None:
    """Makes a worker ignore signals sent to the process group (Ctrl-C).

    The training process receives them too, and needs its workers until it has saved a checkpoint. Only a SIGTERM from
    it, or its death, ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()  # os.getppid() may be a fork server
    while parent is not None and parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 1)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
