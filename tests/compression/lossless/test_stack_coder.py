"""What is popped is what was pushed, and popping what nobody pushed can be undone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hfgen.compression.lossless.stack_coder import StackCoder, build_table, initial_words


WEIGHTS = arrays(np.int64, (9, 5), elements=st.integers(1, 1 << 32))


def filled() -> StackCoder:
    stack = StackCoder()
    stack.put_below(initial_words(20))
    return stack


@given(WEIGHTS, st.lists(st.integers(0, 4), min_size=9, max_size=9))
def test_symbols_come_back_in_their_order(weights: np.ndarray, symbols: list[int]) -> None:
    stack = filled()
    stack.push(np.array(symbols), weights)
    stack.push_alike(np.array(symbols), build_table(weights[0]))
    copy = StackCoder(stack.to_bytes())
    for coder in (stack, copy):
        assert coder.pop_alike(9, build_table(weights[0])).tolist() == symbols
        assert coder.pop(weights).tolist() == symbols
        assert coder.words().tolist() == initial_words(20).tolist()


@given(WEIGHTS)
def test_pushing_what_was_drawn_restores_the_bits(weights: np.ndarray) -> None:
    stack = filled()
    drawn, alike = stack.pop(weights), stack.pop_alike(9, build_table(weights[0]))
    stack.push_alike(alike, build_table(weights[0]))
    stack.push(drawn, weights)
    assert stack.words().tolist() == initial_words(20).tolist()


def test_symbols_are_drawn_with_their_probabilities() -> None:
    stack = StackCoder()
    stack.put_below(initial_words(3000))
    drawn = stack.pop_alike(40_000, build_table(np.array([1, 2, 5])))
    assert np.bincount(drawn) / 40_000 == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.01)


def test_words_below_do_not_change_what_is_drawn() -> None:
    table = build_table(np.array([1, 2, 5]))
    few, many = filled(), filled()
    many.put_below(initial_words(50)[:30])
    assert many.words().tolist() == initial_words(50).tolist()
    assert few.pop_alike(200, table).tolist() == many.pop_alike(200, table).tolist()
    many.take_from_below(30)
    assert many.words().tolist() == few.words().tolist()


def test_an_empty_stack_has_less_than_no_spare_words() -> None:
    stack = StackCoder()
    assert stack.spare_words < 0
    assert stack.pop(np.ones((0, 4), np.int64)).tolist() == [] == stack.pop_alike(0, None).tolist()
    stack.push(np.empty(0), np.ones((0, 4), np.int64))
    assert stack.to_bytes() == b""


@pytest.mark.parametrize("content", [b"abc", bytes(8)])
def test_bytes_that_no_stack_has_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="coded symbols must"):
        StackCoder(content)
