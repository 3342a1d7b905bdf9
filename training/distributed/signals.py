"""Asking a run to stop: SIGTERM, SIGINT, and the death of the launcher."""

from __future__ import annotations

import os
import signal
from typing import Any

from .processes import Processes


class StopRequest:
    """SIGTERM and SIGINT ask for a checkpoint and an end after the step; a second SIGINT ends at once.

    So does the death of `accelerate launch`, which does not pass SIGTERM on to the one process it started.
    """

    def __init__(self, processes: Processes) -> None:
        self._signalled = False
        self._launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None
        self._processes = processes
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._signalled or (self._launcher is not None and os.getppid() != self._launcher)

    def _handle(self, number: int, _: object) -> None:
        self._signalled = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def agree(self, seconds: float = 0.0) -> tuple[bool, float]:
        """Whether any process was asked to stop, and the latest of their clocks: the same answer in all of them."""
        requested, seconds = self._processes.largest([float(self.requested), seconds])
        return bool(requested), seconds
