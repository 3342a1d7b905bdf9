"""Logits that differ in their last bits become the same integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hfgen.compression.container import ByteReader
from hfgen.compression.logit_levels import TOLERANCE, Decisions, round_logits, round_logits_as, weights_of_levels


# A busy machine may be slow to draw examples.
QUICK = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
# Multiples of 1/64 are grid points and the points halfway between them, where rounding is most fragile.
LATTICE = arrays(np.int64, (3, 7), elements=st.integers(-2000, 2000)).map(lambda array: array / 64)
NOISE = arrays(np.float64, (3, 7), elements=st.floats(-0.49 * TOLERANCE, 0.49 * TOLERANCE))
ANY = arrays(np.float64, (3, 7), elements=st.floats(-60_000, 60_000))


@QUICK
@given(LATTICE | ANY, NOISE, NOISE)
def test_the_decoder_rounds_as_the_encoder_did(logits: np.ndarray, here: np.ndarray, there: np.ndarray) -> None:
    levels, decisions = round_logits(logits + here, first_place=100)

    np.testing.assert_array_equal(round_logits_as(logits + there, 100, decisions), levels)
    assert np.abs(levels / 32 - logits).max() <= 1 / 64 + TOLERANCE


def test_without_decisions_it_would_not() -> None:
    """So the test above tests something."""
    logits = np.full((1, 4), 1 / 64)
    levels, decisions = round_logits(logits - TOLERANCE / 4, 0)
    nothing = Decisions(np.empty(0, np.int64), np.empty(0, np.int64))
    assert levels.tolist() == [[0, 0, 0, 0]] and decisions.places.tolist() == [0, 1, 2, 3]
    assert round_logits_as(logits + TOLERANCE / 4, 0, nothing).tolist() == [[1, 1, 1, 1]]


def test_decisions_are_used_at_their_place() -> None:
    middle = 1 / 64
    decisions = Decisions(np.array([1, 5, 6]), np.array([0, 1, 0]))
    logits = np.array([[middle, 0.0], [middle, 3.0]])
    assert round_logits_as(logits, 4, decisions).tolist() == [[1, 1], [0, 96]]
    assert round_logits_as(logits, 0, decisions).tolist() == [[1, 0], [1, 96]]  # place 1 rounds 0.0, down


def test_few_logits_need_a_decision() -> None:
    """The share is 2 * TOLERANCE * 32 = 2^-26; in a million logits there is hardly ever one."""
    logits = np.random.default_rng(0).normal(0, 5, 1_000_000)
    assert len(round_logits(logits, 0)[1].places) <= 1


@QUICK
@given(st.dictionaries(st.integers(0, 10**9), st.integers(0, 1), max_size=20))
def test_decisions_come_back(decided: dict[int, int]) -> None:
    places = np.array(sorted(decided), np.int64)
    written = Decisions(places, np.array([decided[place] for place in places.tolist()], np.int64)).to_bytes()
    reader = ByteReader(written + b"rest", "It")
    found = Decisions.from_reader(reader, 10**9 + 1)
    assert dict(zip(found.places.tolist(), found.ups.tolist())) == decided and reader.rest() == b"rest"


def test_weights_are_exponentials_in_integers() -> None:
    levels = np.array([[5, 5 - 32, 5 - 64, 5 - 5000], [0, 1, 2, 3]])
    weights = weights_of_levels(levels)
    assert weights.dtype == np.int64
    expected = [[2**32, round(2**32 / math.e), round(2**32 / math.e**2), 0],
                [round(2**32 * math.exp((level - 3) / 32)) for level in range(4)]]  # fmt: skip
    assert weights.tolist() == expected


def test_the_table_of_exponentials_never_changes() -> None:
    """A file can be read only with the table that it was written with."""
    table = weights_of_levels(np.arange(0, -800, -1)[None])[0]
    expected = np.exp(-np.arange(800) / 32) * 2**32
    assert np.abs(table - expected).max() <= 0.5 + 1e-5 and table[0] == 2**32
    assert (table[732:] == 0).all() and table[731] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e6])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite and below 65536"):
        round_logits(np.array([[0.0, value]]), 0)
