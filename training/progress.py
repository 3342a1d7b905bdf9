"""How far a run is, how long it is, and how fast it goes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .config.flags import RunArguments
from .data.batches import Feed, GlobalBatch


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint.

    Attributes:
        step: optimizer steps done.
        seconds: of training, without evaluation, samples and checkpoints.
        compute_seconds: of those, spent in forward and backward passes and updates.
        skipped_steps: updates left out because a loss or gradient was not finite.
        due: "evaluation" and "samples" of this step, if a signal cut them short.
    """

    step: int = 0
    seconds: float = 0.0
    compute_seconds: float = 0.0
    skipped_steps: int = 0
    due: list[str] = field(default_factory=list)


@dataclass
class RunLength:
    """The lengths of a run; the first one that is reached ends it."""

    max_steps: int | None
    max_seconds: float | None

    def fraction_done(self, step: int, seconds: float) -> float:
        """Returns the progress in [0, 1]."""
        by_steps = step / self.max_steps if self.max_steps is not None else 0.0
        by_seconds = seconds / self.max_seconds if self.max_seconds is not None else 0.0
        return min(1.0, max(by_steps, by_seconds))


def run_length(run: RunArguments, feed: Feed, global_batch: GlobalBatch) -> RunLength:
    """Returns the run's length in steps and seconds.

    Raises:
        ValueError: the length is in epochs but the dataset's size is unknown.
    """
    steps = [run.max_train_steps] if run.max_train_steps is not None else []
    if run.num_train_epochs is not None:
        if feed.num_examples is None:
            raise ValueError(
                "--num_train_epochs needs the number of examples, which is unknown for a streamed dataset. Use "
                "--max_train_steps or --max_train_seconds."
            )
        steps.append(max(1, math.ceil(run.num_train_epochs * feed.num_examples / global_batch.size)))
    return RunLength(min(steps) if steps else None, run.max_train_seconds)


def due_actions(run: RunArguments, step: int, previous: float, progress: float) -> list[str]:
    """Returns "evaluation" and "samples" if they are due: every N steps; by default at each quarter of the run.

    Args:
        run: the flags.
        step: steps done.
        previous: progress before the step, in [0, 1].
        progress: progress after it.
    """
    evaluation = step % run.eval_steps == 0 if run.eval_steps else int(4 * previous) < int(4 * progress)
    samples = step % run.sample_steps == 0 if run.sample_steps else evaluation
    return ["evaluation"] * evaluation + ["samples"] * samples


@dataclass
class Clock:
    """Seconds of training, including those before a resume; time spent while paused does not count."""

    before: float = 0.0
    _started: float = field(default_factory=time.perf_counter)
    _paused: float = 0.0

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self._started - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - started


class Pace:
    """Speed and time left, measured over the last few marks since this process started.

    Both are therefore right after a resume, and follow a run that becomes faster or slower.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int, float]] = deque(maxlen=10)

    def mark(self, seconds: float, step: int, progress: float) -> None:
        """Notes how far the run is, `progress` in [0, 1], at a time of the clock."""
        self._marks.append((seconds, step, progress))

    @property
    def steps_per_second(self) -> float:
        seconds, steps, _ = self._differences()
        return steps / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        seconds, _, progress = self._differences()
        return seconds / progress * (1 - self._marks[-1][2]) if progress > 0 else 0.0

    def _differences(self) -> tuple[float, int, float]:
        first, last = self._marks[0], self._marks[-1]
        return last[0] - first[0], last[1] - first[1], last[2] - first[2]
