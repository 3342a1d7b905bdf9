"""What is the entropy coder of bits back? The ANS stack of constriction, behind tables of integers.

A stack returns what was pushed last. Symbols can also be popped that nobody pushed, by any table, out of the bits that
are there; pushing them again restores these bits. That is how latents are drawn at no cost. The first latents need
bits that they can be drawn from: the initial words, which are pseudo-random and the same in every file.
"""

from __future__ import annotations

from hashlib import shake_128
from typing import Any

import numpy as np

from ..entropy_coder import constriction_stream, frequency_tables


_WORD = np.dtype("<u4")
# Below it, constriction has no words left to fill up its state from, and what it pops is no longer random.
_STATE_WORDS = 3


class StackCoder:
    """A stack of bits, to which symbols are pushed and from which they are popped.

    Args:
        content: as `to_bytes` returned it.

    Raises:
        ValueError: the number of bytes is not a multiple of four, or the last word is 0, which no coder ends with.
    """

    def __init__(self, content: bytes = b""):
        if len(content) % _WORD.itemsize:
            raise ValueError(f"The coded symbols must have a multiple of 4 bytes, got {len(content)}.")
        stream = constriction_stream()
        self._stack, self._model = stream.stack, stream.model
        self._restore(np.frombuffer(content, _WORD).astype(np.uint32))

    @property
    def num_words(self) -> int:
        """Words of 32 bits on the stack."""
        return int(self._coder.num_words())

    @property
    def spare_words(self) -> int:
        """Words that may still be popped; below 0, what was popped last was not random."""
        return self.num_words - _STATE_WORDS

    def words(self) -> np.ndarray:
        """Everything on the stack, (words,), uint32, the bottom first."""
        return self._coder.get_compressed()

    def to_bytes(self) -> bytes:
        """The words, little-endian."""
        return self.words().astype(_WORD).tobytes()

    def clone(self) -> StackCoder:
        """A copy."""
        return StackCoder(self.to_bytes())

    def put_below(self, words: np.ndarray) -> None:
        """Puts words under everything else."""
        self._restore(np.concatenate([words, self.words()]))

    def take_from_below(self, count: int) -> None:
        """Removes `count` words from the bottom."""
        self._restore(self.words()[count:])

    def push(self, symbols: np.ndarray, weights: np.ndarray) -> None:
        """Pushes symbols (n,), each with a table of its own, from integer weights (n, alphabet)."""
        if len(symbols):
            family = self._model.Categorical(perfect=False)
            self._coder.encode_reverse(symbols.astype(np.int32), family, frequency_tables(weights))

    def pop(self, weights: np.ndarray) -> np.ndarray:
        """Pops symbols (n,), int32, in the order in which `push` got them, from integer weights (n, alphabet)."""
        if not len(weights):
            return np.empty(0, np.int32)
        return self._coder.decode(self._model.Categorical(perfect=False), frequency_tables(weights))

    def push_alike(self, symbols: np.ndarray, table: Any) -> None:
        """Pushes symbols (n,) with one table for all of them, from `build_table`."""
        if len(symbols):
            self._coder.encode_reverse(symbols.astype(np.int32), table)

    def pop_alike(self, count: int, table: Any) -> np.ndarray:
        """Pops `count` symbols, int32, in the order in which `push_alike` got them."""
        return self._coder.decode(table, count) if count else np.empty(0, np.int32)

    def _restore(self, words: np.ndarray) -> None:
        try:
            self._coder = self._stack.AnsCoder(words) if len(words) else self._stack.AnsCoder()
        except ValueError as error:
            raise ValueError(f"The coded symbols must be those of an encoder, got impossible ones: {error}") from None


def build_table(weights: np.ndarray) -> Any:
    """A table for `push_alike` and `pop_alike`, from integer weights (alphabet,)."""
    return constriction_stream().model.Categorical(frequency_tables(weights[None])[0], perfect=False)


def initial_words(count: int) -> np.ndarray:
    """The first bits that are popped, (count,), uint32, for the bottom of a stack.

    More words are more of the same below: the last `n` of them are `initial_words(n)`.
    """
    drawn = np.frombuffer(shake_128(b"hfgen").digest(_WORD.itemsize * count), _WORD)
    return drawn[::-1].astype(np.uint32)
