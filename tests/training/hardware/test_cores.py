"""Fewer threads while others use the processor."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from training.hardware.cores import LOOKS_BEFORE_MORE, CoreWatch


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("most", "others", "left"),
    [(2, 0.0, 2), (2, 0.3, 2), (2, 0.6, 1), (2, 1.0, 1), (2, 2.0, 1), (8, 1.0, 7), (8, 3.5, 5), (8, 20.0, 1)],
)
def test_threads_are_the_cores_that_others_leave(most: int, others: float, left: int) -> None:
    watch = CoreWatch(most, fixed=False)
    watch.adapt(others)
    assert watch.threads == left
    assert left == most or torch.get_num_threads() == left


def test_threads_come_back_when_the_cores_have_been_free_for_a_while() -> None:
    watch = CoreWatch(2, fixed=False)
    watch.adapt(1.0)
    for look in range(LOOKS_BEFORE_MORE):
        assert watch.threads == 1, look
        watch.adapt(0.0)
    assert watch.threads == torch.get_num_threads() == 2
    # One busy moment in between starts the count again.
    watch.adapt(1.0)
    for others in (*[0.0] * (LOOKS_BEFORE_MORE - 1), 1.0, *[0.0] * (LOOKS_BEFORE_MORE - 1)):
        watch.adapt(others)
    assert watch.threads == 1


def test_run_by_steps_keeps_its_threads_and_tells_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.set_num_threads(2)
    watch = CoreWatch(2, fixed=True)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            watch.adapt(1.0)
    assert torch.get_num_threads() == 2 and watch.threads == 2
    assert len(caplog.records) == 1 and "--cpu_threads 1" in caplog.text
