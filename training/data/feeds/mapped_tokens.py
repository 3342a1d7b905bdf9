"""Tokens in memory-mapped files: a text of any size trains in flat memory, and processes share its pages.

corpus = Corpus(TextFiles((Path("large.txt"),)), "large.txt")
tokens = map_tokens(corpus, scan(corpus), tokenizer)      # tokenized the first time, mapped from then on
tokens.windows(starts, length)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hfgen.tokenization import CorpusEncoder

from ..sources.corpus import Corpus, CorpusScan, grouped


if TYPE_CHECKING:
    import pyarrow as pa


logger = logging.getLogger(__name__)


class MappedTokens:
    """Token ids in the lists of an arrow file, as one sequence. Only what is asked for is copied.

    Args:
        column: A pyarrow ChunkedArray of lists of integers. Where a list ends is irrelevant.
        device: Where windows go.
    """

    def __init__(self, column: Any, device: torch.device | None = None):
        self._column, self._device = column, device or torch.device("cpu")
        views = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in column.chunks]
        self._chunks = [view for view in views if len(view)]
        # Where each chunk starts in the sequence; the last entry is its end.
        self._starts = np.cumsum([0, *map(len, self._chunks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, part: slice) -> Tensor:
        """The ids of a slice, int32 (tokens,).

        Raises:
            ValueError: The slice has a step.
        """
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"part must be a slice without a step, got a step of {step}. Slice, then index.")
        ids = torch.empty(max(0, stop - start), dtype=torch.int32)
        self._read(start, ids.numpy())
        return ids

    def to(self, device: torch.device) -> MappedTokens:
        """The same tokens, whose windows are sent to `device`."""
        return MappedTokens(self._column, device)

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """`length` ids from each start on, int32 (starts, length). The first token follows the last."""
        # torch does not reuse pinned memory before the copy from it is done.
        ids = torch.empty((len(starts), length), dtype=torch.int32, pin_memory=self._device.type == "cuda")
        for start, window in zip((starts % len(self)).tolist(), ids.numpy()):
            self._read(start, window)
        return ids.to(self._device, non_blocking=True)

    def _read(self, start: int, out: np.ndarray) -> None:
        """Fills `out` with the ids from `start` on: one copy, as long as the window lies in one chunk."""
        filled = 0
        chunk = int(np.searchsorted(self._starts, start, side="right")) - 1
        offset = start - int(self._starts[chunk])
        while filled < len(out):
            part = self._chunks[chunk][offset : offset + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            chunk, offset = (chunk + 1) % len(self._chunks), 0


def map_tokens(corpus: Corpus, counts: CorpusScan, tokenizer: Any) -> MappedTokens:
    """The tokens of a corpus, the very ids of `encode_corpus`, mapped from the cache of `datasets`.

    Several documents are each closed by the end-of-text token, a single one is not. The first call tokenizes them and
    writes uint16, or uint32 if the vocabulary needs it.

    Args:
        corpus: The documents.
        counts: What `scan` returned for them.
        tokenizer: Any tokenizer of transformers.

    Raises:
        ValueError: The text cannot be read, the disk is full, or the tokenizer has no token to close documents with.
    """
    import pyarrow as pa

    from ..sources.cached_tables import cached_dataset

    is_closed = counts.documents > 1
    encoder = CorpusEncoder(tokenizer, counts.alphabet)
    dtype = np.uint16 if encoder.dtype == np.uint16 else np.uint32

    def tables() -> Iterator[pa.Table]:
        logger.info("Tokenizing %s once: %s characters.", corpus.name, f"{counts.characters:,}")
        for group in grouped(corpus.pieces()):
            ids = encoder([piece.text for piece in group], [is_closed and piece.ends for piece in group])
            values = pa.array(ids.astype(dtype, copy=False))
            yield pa.table({"input_ids": pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), values)})

    fingerprint = ["tokens", corpus.fingerprint, is_closed, describe_tokenizer(tokenizer)]
    return MappedTokens(cached_dataset(tables, fingerprint, corpus.name).data.column("input_ids"))


def describe_tokenizer(tokenizer: Any) -> str:
    """Everything that the ids of a text depend on, as JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python: its vocabulary and settings
        settings = repr(tokenizer.init_kwargs)
        state = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab(), "init": settings}
    else:
        # Padding and truncation are leftovers of the last call and have no effect here.
        state = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    return json.dumps([state, tokenizer.eos_token_id], sort_keys=True)
