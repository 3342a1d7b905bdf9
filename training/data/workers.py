"""DataLoader workers: how many, what they load, and which signals they obey."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..distributed.launcher import available_cores, local_processes


def loaded(dataset: Any, num_workers: int, device: torch.device, **options: Any) -> Iterator[Any]:
    """What a dataset of whole batches gives, read ahead by workers; the ValueErrors among it are raised."""
    # A generator of its own, or making the loader would draw from the global one, which a resumed run would notice.
    loader = DataLoader(
        dataset, batch_size=None, num_workers=num_workers, pin_memory=device.type == "cuda",
        generator=torch.Generator(), worker_init_fn=ignore_group_signals, **options,
    )  # fmt: skip
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield batch


def ignore_group_signals(_worker: int) -> None:
    """Called in a DataLoader worker: what asks a whole group of processes to end, as Ctrl-C does, is not meant for it.

    The training gets it too, and needs its workers until it has saved a checkpoint. Only the training's own SIGTERM,
    or its death, ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()  # not os.getppid(), which may be a server that forks for it
    while parent is not None and parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 1)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


def spare_workers() -> int:
    """Workers that this process may start where their number changes nothing but the speed: a core each, at most 4."""
    return min(4, available_cores() // local_processes())
