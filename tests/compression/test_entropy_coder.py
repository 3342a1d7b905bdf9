"""Symbols to bits and back, with exactly the tables that integer arithmetic made."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import numpy as np
import pytest
from constriction import stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfgen.compression.entropy_coder import MAX_WEIGHT, SymbolDecoder, SymbolEncoder, frequency_tables


# A busy machine may be slow to draw examples.
QUICK = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
# Distributions from flat to a single likely symbol.
WEIGHTS = st.lists(st.one_of(st.integers(0, 9), st.integers(0, MAX_WEIGHT)), min_size=2, max_size=40).filter(any)


@QUICK
@given(WEIGHTS)
def test_frequencies_are_the_weights_in_integers(weights: list[int]) -> None:
    (table,) = frequency_tables(np.array([weights]))

    free = 2**24 - len(weights)
    expected = [weight * free // sum(weights) for weight in weights]  # Python's integers have no end
    expected[weights.index(max(weights))] += free - sum(expected)
    assert table.tolist() == expected


@QUICK
@given(WEIGHTS)
def test_constriction_takes_the_frequencies_as_they_are(weights: list[int]) -> None:
    """The state of an ANS coder below 2^24 is the quantile that the next symbol is looked up by."""
    tables = frequency_tables(np.array([weights]))
    family = stream.model.Categorical(perfect=False)
    stops = np.cumsum(tables[0] + 1).astype(int)
    assert stops[-1] == 2**24
    for symbol, (start, stop) in enumerate(zip([0, *stops], stops)):
        for quantile in (start, stop - 1):
            coder = stream.stack.AnsCoder(np.array([quantile, 1 << 20], np.uint32))
            assert coder.decode(family, tables).tolist() == [symbol]


@QUICK
@given(st.data(), WEIGHTS, st.integers(0, 20))
def test_symbols_come_back(data: st.DataObject, weights: list[int], count: int) -> None:
    """Impossible symbols, of weight 0, as well: they take 24 bits."""
    symbols = np.array(data.draw(st.lists(st.integers(0, len(weights) - 1), min_size=count, max_size=count)), int)
    tables = np.array([np.roll(weights, shift) for shift in range(count)]).reshape(count, len(weights))
    encoder = SymbolEncoder()
    encoder.encode(symbols, tables)
    encoder.encode_number(54321, 16)
    encoder.encode_alike(symbols, np.array(weights))

    decoder = SymbolDecoder(encoder.to_bytes())

    np.testing.assert_array_equal(decoder.decode(tables), symbols)
    assert decoder.decode_number(16) == 54321
    np.testing.assert_array_equal(decoder.decode_alike(count, np.array(weights)), symbols)


def test_a_symbol_takes_the_information_of_its_probability() -> None:
    weights = np.array([1, 2, 5])
    symbols = np.repeat([0, 1, 2], [1000, 2000, 5000])
    np.random.default_rng(0).shuffle(symbols)
    encoder = SymbolEncoder()
    encoder.encode_alike(symbols, weights)
    entropy = -(weights / 8 * np.log2(weights / 8)).sum()
    assert 8 * len(encoder.to_bytes()) == pytest.approx(8000 * entropy, abs=64)


@pytest.mark.parametrize("weights", [[[1]], [[0, 0]], [[1, -1]], [[1, MAX_WEIGHT + 1]]])
def test_weights_that_make_no_table_are_refused(weights: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="must"):
        frequency_tables(np.array(weights))


def test_other_bytes_give_other_symbols_or_a_value_error() -> None:
    with pytest.raises(ValueError, match="must have a multiple of 4 bytes, got 3"):
        SymbolDecoder(b"abc")
    rng = np.random.default_rng(0)
    for _ in range(50):
        decoder = SymbolDecoder(rng.bytes(8))
        try:
            assert decoder.decode(rng.integers(0, 9, (30, 5)) + 1).max() < 5
        except ValueError as error:
            assert "must be those of an encoder" in str(error)


def test_without_constriction_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "constriction":
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.delitem(sys.modules, "constriction")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'hfgen\[compression\]'"):
        SymbolEncoder()
