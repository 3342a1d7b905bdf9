"""Requests to stop a run: SIGTERM, SIGINT (Ctrl-C) and the death of the launcher."""

from __future__ import annotations

import os
import signal
from typing import Any

from . import launcher
from .processes import Processes


class StopRequest:
    """Turns SIGTERM and SIGINT into a request to save a checkpoint and stop after the current step.

    A second SIGINT ends the process at once. The death of `accelerate launch` counts as a request as well, because
    the launcher does not pass SIGTERM on to a single process that it started.
    """

    def __init__(self, processes: Processes) -> None:
        self._signaled = False
        self._launcher = os.getppid() if launcher.is_launched() else None
        self.processes = processes
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
        """True if this process was asked to stop."""
        return self._signaled or (self._launcher is not None and os.getppid() != self._launcher)

    def agree(self, seconds: float = 0.0) -> tuple[bool, float]:
        """Collective call.

        Returns:
            whether any process was asked to stop, and the latest of their clocks: the same in all of them.
        """
        requested, seconds = self.processes.max([float(self.requested), seconds])
        return bool(requested), seconds

    def _handle(self, number: int, _: object) -> None:
        self._signaled = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
