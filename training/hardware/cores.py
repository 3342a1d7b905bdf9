"""Fewer threads while other programs use the processor.

The threads of a kernel wait for each other by spinning. If another program takes one of their cores, all of them wait
for the one that has none: two threads on two cores of which one is busy were 13 times slower than a single thread.
"""

from __future__ import annotations

import logging
import time

import psutil
import torch

from ..distributed import launcher


logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
# A core counts as free if others leave at least this share of it, and comes back after as many looks.
FREE_SHARE = 0.5
LOOKS_BEFORE_MORE = 3


class CoreWatch:
    """Adapts torch's number of threads to the cores that other programs leave.

    Kernels round differently with another number of threads, so this is for runs whose length is a time, which do not
    repeat to the bit anyway.

    Args:
        most: the number of threads when no other program is busy.
        fixed: whether to only look, and report once that fewer would be faster.
    """

    def __init__(self, most: int, fixed: bool):
        self.most, self.fixed = most, fixed
        self.threads = most
        self._process = psutil.Process()
        self._looked, self._used = time.monotonic(), self._seconds_used()
        self._free_looks = 0
        self._reported = False

    def look(self) -> None:
        """Looks at most once a second; called after each step, and before each batch of an evaluation."""
        now = time.monotonic()
        if self.most == 1 or now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        used = self._seconds_used()
        others = max(0.0, (used - self._used) / (now - self._looked))
        self._looked, self._used = now, used
        self.adapt(others)

    def adapt(self, others: float) -> None:
        """Chooses the number of threads, given how many cores the other programs use on average."""
        # The other processes of the run have cores of their own, which are not this one's to take.
        share = max(0.0, others - self.most * (launcher.local_processes() - 1))
        wanted = max(1, min(self.most, int(self.most - share + FREE_SHARE)))
        self._free_looks = self._free_looks + 1 if wanted > self.threads else 0
        if wanted == self.threads or (wanted > self.threads and self._free_looks < LOOKS_BEFORE_MORE):
            return
        if not self._reported:
            self._reported = True
            logger.info(
                "Other programs use %.1f of the processor's cores: %s", others,
                f"--cpu_threads {wanted} would be faster now. A run by steps keeps its threads, to repeat to the bit."
                if self.fixed else f"{wanted} of {self.most} threads are used until they are free again.",
            )  # fmt: skip
        if not self.fixed:
            self.threads = wanted
            torch.set_num_threads(wanted)

    def _seconds_used(self) -> float:
        """Seconds that anything but this process has used on the cores that it may use, since the machine started."""
        cores = psutil.cpu_times(percpu=True)
        if hasattr(self._process, "cpu_affinity"):  # not on macOS
            cores = [cores[index] for index in self._process.cpu_affinity() if index < len(cores)]
        kinds = ("user", "nice", "system", "irq", "softirq", "steal")
        own = self._process.cpu_times()
        return sum(getattr(core, kind, 0.0) for core in cores for kind in kinds) - own.user - own.system
