"""Averages of logged values over updates, examples and processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


class RunningMeans:
    """Averages of values over updates, examples and processes since they were last taken.

    The sums stay on the device, so that adding does not wait for it. They are part of a checkpoint: a run may stop
    between two lines of metrics.jsonl.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds the values of one update."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The averages; what is added from now on counts for the next ones. The loop waits for the device here."""
        means = {
            name: float(sums.sum() / (self._counts[name] * len(sums))) for name, sums in self._by_process().items()
        }
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds: sums by process, (processes,), and counts."""
        counts = {f"{name}:count": torch.tensor(count) for name, count in self._counts.items()}
        return {**{f"{name}:sums": sums for name, sums in self._by_process().items()}, **counts}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`; if the number of processes has changed, each one goes on from the mean of all."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        for key, sums in state.items():
            name, _, entry = key.rpartition(":")
            if entry == "sums":
                own = sums[rank] if len(sums) == processes else sums.mean()
                self._sums[name] = own.float().to(self.accelerator.device)
                self._counts[name] = int(state[f"{name}:count"])

    def _by_process(self) -> dict[str, Tensor]:
        if not self._sums:
            return {}
        table = torch.stack(list(self._sums.values()))[None]
        if self.accelerator.num_processes > 1:
            table = self.accelerator.gather(table)
        return dict(zip(self._sums, table.cpu().double().unbind(1)))
