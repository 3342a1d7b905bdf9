"""What is the entropy coder? The range coder of constriction, behind tables of integers.

A range coder needs the same table in the encoder and in the decoder, to the last bit. So tables are made from integers
by integer arithmetic: `frequency_tables` turns weights into frequencies out of 2^24, and constriction, which takes
floats, reproduces exactly these: their sum needs no scaling, and float64 adds such integers without rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np


PRECISION = 24
# A weight times 2^PRECISION must fit int64, and so must the sum of a table.
MAX_WEIGHT = 1 << 38
_WORD = np.dtype("<u4")


def frequency_tables(weights: np.ndarray) -> np.ndarray:
    """Tables in which every symbol has a frequency of at least one.

    Args:
        weights: integers (tables, symbols) from 0 to `MAX_WEIGHT`, at least one of them above 0 in each table.

    Returns:
        float64 (tables, symbols), all integers. Each row sums to 2^24 - symbols, and constriction adds one to each
        frequency, so that the probability of a symbol is (frequency + 1) / 2^24.

    Raises:
        ValueError: a table has fewer than two symbols or too many, or no positive weight.
    """
    symbols = weights.shape[-1]
    if not 2 <= symbols <= 1 << (PRECISION - 2):
        raise ValueError(f"A table must have from 2 to 2^{PRECISION - 2} symbols, got {symbols}.")
    sums = weights.sum(axis=-1, keepdims=True, dtype=np.int64)
    if weights.min(initial=0) < 0 or weights.max(initial=0) > MAX_WEIGHT or sums.min(initial=1) < 1:
        raise ValueError("weights must be from 0 to 2^38 and not all 0, got others.")
    free = (1 << PRECISION) - symbols
    tables = weights.astype(np.int64) * free // sums
    # What rounding down left over goes to the likeliest symbol, the first of several.
    rows = np.arange(len(tables))
    tables[rows, weights.argmax(axis=-1)] += free - tables.sum(axis=-1)
    return tables.astype(np.float64)


class SymbolEncoder:
    """Turns symbols into bytes."""

    def __init__(self) -> None:
        stream = constriction_stream()
        self._coder = stream.queue.RangeEncoder()
        self._model = stream.model

    def encode(self, symbols: np.ndarray, weights: np.ndarray) -> None:
        """Appends symbols (n,), each with a table of its own, from integer weights (n, alphabet)."""
        if len(symbols):
            family = self._model.Categorical(perfect=False)
            self._coder.encode(symbols.astype(np.int32), family, frequency_tables(weights))

    def encode_alike(self, symbols: np.ndarray, weights: np.ndarray) -> None:
        """Appends symbols (n,) with one table for all of them, from integer weights (alphabet,)."""
        if len(symbols):
            self._coder.encode(symbols.astype(np.int32), _one_table(self._model, weights))

    def encode_number(self, value: int, bits: int) -> None:
        """Appends a number below 2^bits, at a cost of `bits` bits, which can be up to 24."""
        self._coder.encode(np.array([value], np.int32), self._model.Uniform(1 << bits))

    def to_bytes(self) -> bytes:
        """Returns everything that was encoded."""
        return self._coder.get_compressed().astype(_WORD).tobytes()


class SymbolDecoder:
    """Turns the bytes of a `SymbolEncoder` back into symbols, by the same calls in the same order.

    Bytes that no encoder wrote, or other weights than the encoder's, give arbitrary symbols or a ValueError.

    Args:
        content: as `SymbolEncoder.to_bytes` returned it.

    Raises:
        ValueError: the number of bytes is not a multiple of four.
    """

    def __init__(self, content: bytes):
        if len(content) % _WORD.itemsize:
            raise ValueError(f"The coded symbols must have a multiple of 4 bytes, got {len(content)}.")
        stream = constriction_stream()
        self._coder = stream.queue.RangeDecoder(np.frombuffer(content, _WORD).astype(np.uint32))
        self._model = stream.model

    def decode(self, weights: np.ndarray) -> np.ndarray:
        """Returns symbols (n,), int32, from integer weights (n, alphabet)."""
        if not len(weights):
            return np.empty(0, np.int32)
        family = self._model.Categorical(perfect=False)
        return self._call(family, frequency_tables(weights))

    def decode_alike(self, count: int, weights: np.ndarray) -> np.ndarray:
        """Returns `count` symbols that share the table of integer weights (alphabet,)."""
        return self._call(_one_table(self._model, weights), count) if count else np.empty(0, np.int32)

    def decode_number(self, bits: int) -> int:
        """Returns a number below 2^bits."""
        return int(self._call(self._model.Uniform(1 << bits), 1)[0])

    def _call(self, *arguments: Any) -> np.ndarray:
        try:
            return self._coder.decode(*arguments)
        except AssertionError as error:  # constriction's answer to impossible bytes
            raise ValueError(f"The coded symbols must be those of an encoder, got impossible ones: {error}") from None


def _one_table(model: Any, weights: np.ndarray) -> Any:
    return model.Categorical(frequency_tables(weights[None])[0], perfect=False)


def constriction_stream() -> Any:
    try:
        from constriction import stream
    except ImportError:
        raise ValueError(
            "Compression needs constriction, an entropy coder, which is not installed. Run: pip install "
            "'hfgen[compression]'"
        ) from None
    return stream
