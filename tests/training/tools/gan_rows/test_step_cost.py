"""Steps take turns, and are compared within a turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState, PartialState

from training.tools.gan_rows import step_cost
from training.tools.gan_rows.figures import figure
from training.tools.gan_rows.step_cost import KINDS, PLAIN, STEPS_PER_TURN, measure, summarize, take_turns


def test_steps_take_turns_and_the_first_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(step_cost, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    order: list[str] = []
    turns = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, seconds=0)
    assert order == [*"a" * STEPS_PER_TURN, *"b" * STEPS_PER_TURN] * 2
    assert turns == {"a": [1 / STEPS_PER_TURN], "b": [1 / STEPS_PER_TURN]}


def test_ratios_are_those_of_one_turn() -> None:
    other = next(kind for kind in KINDS if kind != PLAIN)
    # Twice as slow in each turn, on a machine that becomes ten times as slow
    found = summarize({PLAIN: [0.01, 0.1], other: [0.02, 0.2]})
    assert found[other]["times_plain"] == pytest.approx([2, 2])
    assert figure([found[other]]) == "**2.00** times the plain step (2.00 to 2.00), 110.0 ms per step"
    assert figure([found[PLAIN]]) == "55.0 ms per step"


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps the precision of a process's first run; each of these runs has a process of its own outside of
    tests."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.mark.usefixtures("fresh_accelerate")
def test_steps_of_every_kind_are_those_of_a_training() -> None:
    flags = ["--dataset_name", "digits", "--generator_channels", "8", "--per_device_train_batch_size", "8"]
    found = measure({"flags": flags, "seconds": 0.01})
    assert list(found["kinds"]) == list(KINDS) and "mixed_precision" in found["choices"]
    assert all(figures["seconds_per_step"] > 0 for figures in found["kinds"].values())
