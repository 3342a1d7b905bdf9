"""How far a run is, how long it is, and how fast it goes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .config.flags import RunArguments
from .data.feeds.batches import Feed, GlobalBatch


# Of the training, for evaluations and samples in the middle of it.
SHARE_OF_EVALUATION = 0.05


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint.

    Attributes:
        step: optimizer steps done.
        seconds: of training, without evaluation, samples and checkpoints.
        compute_seconds: of those, spent in forward and backward passes and updates.
        skipped_steps: updates left out because a loss or gradient was not finite.
        due: "evaluation" and "samples" of this step, if a signal cut them short.
        eval_limit: number of examples of an evaluation in the middle, once there was one.
        other_seconds: what the rest of the command's time went to.
        history: a row for each evaluation in the middle, if something watches them; see [`training.watching`].
        gradient_norms: sum and number of the gradient norms of each phase since the last evaluation, for the next row.
        best_step: step of the best evaluation, if the run is to publish the state that it had then.
        stop_reason: why the run ends before its length is reached; None if it does not.
    """

    step: int = 0
    seconds: float = 0.0
    compute_seconds: float = 0.0
    skipped_steps: int = 0
    due: list[str] = field(default_factory=list)
    eval_limit: int | None = None
    other_seconds: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    gradient_norms: dict[str, list[float]] = field(default_factory=dict)
    best_step: int | None = None
    stop_reason: str | None = None

    @property
    def wall_seconds(self) -> float:
        """Seconds that the command has taken, over all resumes."""
        return self.seconds + sum(self.other_seconds.values())


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


def due_actions(
    run: RunArguments, step: int, previous: float, progress: float, evaluations: int = 4
) -> list[str]:  # fmt: skip
    """Returns "evaluation" and "samples" if they are due: every N steps; by default at each quarter of the run.

    Args:
        run: the flags.
        step: steps done.
        previous: progress before the step, in [0, 1].
        progress: progress after it.
        evaluations: number of evaluations in a run, by default.
    """
    by_default = int(evaluations * previous) < int(evaluations * progress)
    evaluation = step % run.eval_steps == 0 if run.eval_steps else by_default
    samples = step % run.sample_steps == 0 if run.sample_steps else evaluation
    return ["evaluation"] * evaluation + ["samples"] * samples


def have_time_for_evaluation(run: RunArguments, progress: Progress, seconds: float) -> bool:
    """False if one more evaluation would make them cost more than a twentieth of the training so far, and nobody asked
    for them by number.

    Only for a run whose length is a time, and whose evaluations are watched, which makes them longer. The first one
    does not count: what it prepares, such as a classifier, the end of the run needs as well.

    Args:
        run: the flags.
        progress: has the seconds that evaluations took so far.
        seconds: of training.
    """
    counted = len(progress.history) - 1
    if run.eval_steps is not None or run.max_train_seconds is None or counted < 1:
        return True
    spent = progress.other_seconds.get("evaluation", 0.0)
    return spent * (counted + 1) / counted <= SHARE_OF_EVALUATION * seconds


def have_time_for_samples(run: RunArguments, progress: Progress, seconds: float) -> bool:
    """False if samples would cost more than a twentieth of the training so far, and nobody asked for them by number.

    Only for a run whose length is a time: what it draws need not repeat.

    Args:
        run: the flags.
        progress: has the seconds that samples took so far.
        seconds: of training.
    """
    if run.sample_steps is not None or run.eval_steps is not None or run.max_train_seconds is None:
        return True
    # A second for the first ones, and as much again as all before for any others.
    spent = max(0.5, progress.other_seconds.get("samples", 0.0))
    return 2 * spent <= SHARE_OF_EVALUATION * seconds


def eval_limit(run: RunArguments, examples_seen: int) -> int:
    """Returns the number of examples that an evaluation in the middle of a run measures.

    A twentieth of the examples trained on since the start: an evaluation is one forward pass of them, so it costs a
    sixtieth of the training. The number follows from the step, so that a resumed run repeats it.

    Args:
        run: the flags.
        examples_seen: when the first evaluation is due.
    """
    return max(run.per_device_eval_batch_size, int(SHARE_OF_EVALUATION * examples_seen))


@dataclass
class Clock:
    """Seconds of training, including those before a resume; time spent while paused does not count.

    Attributes:
        before: seconds of training before this process.
        others: seconds spent while paused, by what they went to; added up here.
    """

    before: float = 0.0
    others: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)
    _paused: float = 0.0

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self._started - self._paused

    @contextmanager
    def paused(self, reason: str) -> Iterator[None]:
        """Stops the clock inside; `reason` is the name in `others`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self._paused += elapsed
            self.others[reason] = self.others.get(reason, 0.0) + elapsed


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
