"""What a run does off the clock: a twentieth of the training at most, and every second has a name."""

from __future__ import annotations

import time

import pytest

from training.config.flags import RunArguments
from training.progress import Clock, Progress, eval_limit, have_time_for_evaluation, have_time_for_samples


def test_paused_seconds_are_not_training_and_are_added_up_by_their_reason() -> None:
    progress = Progress(seconds=3.0, other_seconds={"evaluation": 2.0})
    clock = Clock(progress.seconds, progress.other_seconds)
    started = time.perf_counter()
    with clock.paused("evaluation"):
        time.sleep(0.02)
    with clock.paused("samples"):
        time.sleep(0.01)
    elapsed = time.perf_counter() - started
    progress.seconds = clock.seconds
    assert progress.other_seconds["evaluation"] >= 2.02 and progress.other_seconds["samples"] >= 0.01
    assert 3.0 <= progress.seconds < 3.0 + elapsed - 0.03 + 0.005
    assert progress.wall_seconds == pytest.approx(5.0 + elapsed, abs=0.005)


@pytest.mark.parametrize(("examples_seen", "limit"), [(0, 256), (5_000, 256), (100_000, 5_000)])
def test_evaluation_measures_a_twentieth_of_the_examples_seen_or_one_batch(examples_seen: int, limit: int) -> None:
    assert eval_limit(RunArguments(per_device_eval_batch_size=256), examples_seen) == limit


@pytest.mark.parametrize(
    ("seconds", "spent", "drawn"),
    [(15.0, 0.0, False), (20.0, 0.0, True), (20.0, 0.6, False), (40.0, 0.9, True), (40.0, 1.1, False)],
)
def test_samples_of_a_timed_run_take_at_most_a_twentieth_of_it(seconds: float, spent: float, drawn: bool) -> None:
    progress = Progress(other_seconds={"samples": spent})
    assert have_time_for_samples(RunArguments(max_train_seconds=60), progress, seconds) is drawn


@pytest.mark.parametrize("flags", [{"max_train_steps": 9}, {"max_train_seconds": 9.0, "sample_steps": 3}])
def test_samples_are_always_drawn_if_they_were_asked_for_or_if_the_run_repeats(flags: dict[str, int]) -> None:
    progress = Progress(other_seconds={"samples": 100.0})
    assert have_time_for_samples(RunArguments(**flags), progress, 1.0)  # type: ignore[arg-type]


def test_watched_evaluations_wait_while_they_would_take_more_than_a_twentieth_but_for_the_first() -> None:
    run = RunArguments(max_train_seconds=60)
    progress = Progress(other_seconds={"first evaluation": 100.0})
    assert have_time_for_evaluation(run, progress, 1.0)
    progress.history = [{"step": 1}]
    assert have_time_for_evaluation(run, progress, 1.0)  # nobody knows yet how long they take
    progress.history, progress.other_seconds["evaluation"] = [{"step": step} for step in (1, 2, 3)], 2.0
    assert not have_time_for_evaluation(run, progress, 59.0)  # three of them would take three seconds
    assert have_time_for_evaluation(run, progress, 60.0)
    assert have_time_for_evaluation(RunArguments(max_train_seconds=60, eval_steps=5), progress, 1.0)
    assert have_time_for_evaluation(RunArguments(max_train_steps=5), progress, 1.0)
