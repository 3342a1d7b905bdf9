"""Averages of named values: over updates in training, over examples in evaluation, over all processes in both."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..distributed.processes import Processes


class RunningMeans:
    """Averages of values over updates, examples and processes since they were last taken.

    The sums stay on the device, so that adding does not wait for it. They are part of a checkpoint, because a run may
    stop between two lines of metrics.jsonl.
    """

    def __init__(self, processes: Processes, device: torch.device):
        self.processes, self.device = processes, device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds the values of one update."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Returns the averages and starts over. Collective call, which waits for the device."""
        means = {name: float(sums.sum() / (self._counts[name] * len(sums))) for name, sums in self._gather().items()}
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, Tensor]:
        """Returns what a checkpoint holds: sums by process, (processes,), and counts. Collective call."""
        counts = {f"{name}:count": torch.tensor(count) for name, count in self._counts.items()}
        return {**{f"{name}:sums": sums for name, sums in self._gather().items()}, **counts}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`. If the number of processes has changed, each continues from the mean of all."""
        for key, sums in state.items():
            name, _, entry = key.rpartition(":")
            if entry == "sums":
                own = sums[self.processes.rank] if len(sums) == self.processes.count else sums.mean()
                self._sums[name] = own.float().to(self.device)
                self._counts[name] = int(state[f"{name}:count"])

    def _gather(self) -> dict[str, Tensor]:
        """Returns the sums of every process, (processes,), by name."""
        if not self._sums:
            return {}
        table = self.processes.stack(torch.stack(list(self._sums.values())))
        return dict(zip(self._sums, table.double().unbind(1)))


class ItemMeans:
    """Averages of values over items, such as examples or tokens, each counted once whichever process measured it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor], weight: float = 1.0) -> None:
        """Adds one value per item; with weight 0 only the names count."""
        for name, items in values.items():
            items = items.cpu().double()
            part = weight * torch.stack([items.sum(), torch.tensor(float(items.numel()))])
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def compute(self, processes: Processes) -> dict[str, float]:
        """Returns the averages over all processes, NaN over no items. Collective call."""
        totals = processes.sum(torch.stack(list(self._sums.values())))
        pairs = dict(zip(self._sums, totals.tolist()))
        return {name: total / count if count else math.nan for name, (total, count) in pairs.items()}
