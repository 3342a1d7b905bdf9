"""Tokens in memory-mapped files: a text of any size trains in flat memory, and processes share its pages.

corpus = Corpus(TextFiles((Path("large.txt"),)), "large.txt")
tokens = map_tokens(corpus, scan(corpus), tokenizer)      # tokenized the first time, mapped from then on
tokens.windows(starts, length)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from hfgen.tokenization import CorpusEncoder

from .corpus import Corpus, CorpusScan, cached_arrow_dataset, grouped


logger = logging.getLogger(__name__)


class MappedTokens:
    """Lists of tokens, seen as one sequence and, for windows, as a ring. Nothing is copied but what is asked for.

    Args:
        column: a pyarrow ChunkedArray of lists of integers; where a list ends means nothing.
    """

    def __init__(self, column: Any):
        views = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in column.chunks]
        self._chunks = [view for view in views if len(view)]
        # Where each chunk starts in the sequence; the last entry is its end.
        self._starts = np.cumsum([0, *map(len, self._chunks)])
        self.dtype = self._chunks[0].dtype if self._chunks else np.dtype(np.uint16)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, part: slice) -> np.ndarray:
        """A copy of a stretch, (tokens,); slices have no step."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"part: expected a slice without a step, got one of {step}")
        stretch = np.empty(max(0, stop - start), self.dtype)
        self._read(start, stretch)
        return stretch

    def windows(self, starts: np.ndarray, length: int, out: np.ndarray | None = None) -> np.ndarray:
        """The tokens from each start on, beginning again after the last one.

        Args:
            starts: (windows,), non-negative.
            length: tokens of each window.
            out: (windows, length) to write to, of an integer type that holds the tokens.

        Returns:
            `out`, or a new array of the tokens' type.
        """
        if out is None:
            out = np.empty((len(starts), length), self.dtype)
        for start, window in zip((starts % len(self)).tolist(), out):
            self._read(start, window)
        return out

    def _read(self, start: int, out: np.ndarray) -> None:
        """Fills `out` from a start on. A window nearly always lies in one chunk, so this is one copy."""
        filled = 0
        chunk = int(np.searchsorted(self._starts, start, side="right")) - 1
        offset = start - int(self._starts[chunk])
        while filled < len(out):
            part = self._chunks[chunk][offset : offset + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            chunk, offset = (chunk + 1) % len(self._chunks), 0


def map_tokens(corpus: Corpus, found: CorpusScan, tokenizer: Any) -> MappedTokens:
    """The tokens of a corpus: those that `encode_corpus` gives, documents each closed by the end-of-text token.

    A single document is a text that no token closes. The first time they are written to the cache of `datasets`, as
    uint16, or uint32 where the vocabulary needs it.

    Raises:
        ValueError: the text cannot be read, the disk is full, or the tokenizer has no token to close documents with.
    """
    import pyarrow as pa

    closes = found.documents > 1
    encoder = CorpusEncoder(tokenizer, found.alphabet)
    dtype = np.uint16 if encoder.dtype == np.uint16 else np.uint32

    def tables() -> Iterator[pa.Table]:
        logger.info("Tokenizing %s once: %s characters.", corpus.name, f"{found.characters:,}")
        for group in grouped(corpus.pieces()):
            ids = encoder([piece.text for piece in group], [closes and piece.ends for piece in group])
            values = pa.array(ids.astype(dtype, copy=False))
            yield pa.table({"input_ids": pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), values)})

    written = cached_arrow_dataset(
        tables, ["tokens", corpus.fingerprint, closes, describe_tokenizer(tokenizer)], corpus.name
    )
    return MappedTokens(written.data.column("input_ids"))


def describe_tokenizer(tokenizer: Any) -> str:
    """All that the ids of a text depend on, as JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # one in Python: its vocabulary and its settings
        state = {
            "class": type(tokenizer).__name__,
            "vocab": tokenizer.get_vocab(),
            "init": repr(tokenizer.init_kwargs),
        }
    else:
        # Padding and truncation are left behind by the last call, and do not apply here.
        state = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    return json.dumps([state, tokenizer.eos_token_id], sort_keys=True)
