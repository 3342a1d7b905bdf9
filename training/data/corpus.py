"""Text that need not fit in memory: documents of text files or of a dataset, read a piece at a time.

A corpus is scanned and tokenized once: [`cached_arrow_dataset`] keeps the result as an arrow file in the cache of
`datasets`, where the next run and the other processes of this one find it.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .sources import one_line


logger = logging.getLogger(__name__)
PIECE_CHARACTERS = 1 << 16  # of a file
GROUP_CHARACTERS = 1 << 20  # that are tokenized at a time
BATCH_BYTES = 4 << 20  # that are read of a dataset at a time
# Part of every fingerprint: to be raised when other code would write another file for the same text.
FORMAT = "hfgen text 1"


class Piece(NamedTuple):
    """A part of a document, never empty, and whether it is the last one."""

    text: str
    ends: bool


@dataclass(frozen=True)
class TextFiles:
    """UTF-8 files, each one document, in pieces of about PIECE_CHARACTERS that end where a line does.

    The pieces of a file join to exactly its text, so that a character tokenizer gives the tokens of the whole. A
    tokenizer that merges characters may give others at the end of a piece, one place in 65,536 characters: it
    cannot merge over it.
    """

    paths: tuple[Path, ...]
    features: ClassVar[tuple[str, ...]] = ("text",)  # the columns, as a dataset would have them

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: Sequence[int]) -> TextFiles:
        """Some of the files."""
        return TextFiles(tuple(self.paths[row] for row in rows))

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    @property
    def fingerprint(self) -> list[Any]:
        """Changes with every file: its place, its size and the time of its last change stand for its content."""
        stats = [path.stat() for path in self.paths]
        return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in zip(self.paths, stats)]

    def pieces(self) -> Iterator[Piece]:
        """All that is in the files.

        Raises:
            ValueError: a file is not UTF-8.
        """
        for path in self.paths:
            try:
                # Line ends become "\n", as they do where `datasets` reads a file.
                with open(path, encoding="utf-8") as file:
                    text = self._read(file)
                    while text:
                        following = self._read(file)
                        yield Piece(text, ends=not following)
                        text = following
            except UnicodeDecodeError as error:
                raise ValueError(f"The text file '{path}' cannot be read: {error}. Save it as UTF-8.") from error

    @staticmethod
    def _read(file: Any) -> str:
        text = file.read(PIECE_CHARACTERS)
        return text + file.readline(PIECE_CHARACTERS) if text else text


@dataclass(frozen=True)
class Column:
    """Texts of a `datasets.Dataset`, each one document, read from its memory-mapped file.

    One document at least is held in memory: it is tokenized as a whole.
    """

    dataset: Any
    name: str

    @cached_property
    def num_bytes(self) -> int:
        """Of the texts in UTF-8; an estimate where the dataset is a selection of scattered rows."""
        from pyarrow import ArrowNotImplementedError, compute

        table = self.dataset.data
        try:
            lengths = [compute.sum(compute.binary_length(chunk)).as_py() for chunk in table.column(self.name).chunks]
        except ArrowNotImplementedError:  # no text: told where it is read
            return 0
        return int(sum(filter(None, lengths)) * len(self.dataset) / max(1, table.num_rows))

    @property
    def fingerprint(self) -> list[Any]:
        return [self.dataset._fingerprint, self.name]

    def pieces(self) -> Iterator[Piece]:
        """The documents that are not empty.

        Raises:
            ValueError: the column holds something else than text.
        """
        rows = max(1, BATCH_BYTES * len(self.dataset) // max(1, self.num_bytes))
        column = self.dataset.select_columns([self.name]).with_format("arrow")
        for table in column.iter(min(rows, GROUP_CHARACTERS)):
            for document in table.column(self.name).to_pylist():
                if document and not isinstance(document, str):
                    raise ValueError(
                        f"The column {self.name!r} was expected to hold text, found {type(document).__name__}. Name "
                        "another one with --text_column."
                    )
                if document:
                    yield Piece(document, ends=True)


@dataclass(frozen=True)
class Corpus:
    """Documents to train or to measure on: those of a source, or a stretch of its characters.

    Attributes:
        source: where they are.
        name: what errors call them.
        start, stop: the stretch, in characters of the source's documents laid end to end; to the end when None. A
            document that reaches beyond it is cut off, and ends there.
        max_documents: the first ones of the stretch; all when None.
    """

    source: TextFiles | Column
    name: str
    start: int = 0
    stop: int | None = None
    max_documents: int | None = None

    @property
    def fingerprint(self) -> list[Any]:
        return [FORMAT, *self.source.fingerprint, self.start, self.stop, self.max_documents]

    def pieces(self) -> Iterator[Piece]:
        position = documents = 0
        if self.stop == 0:
            return
        for piece in self.source.pieces():
            first, position = position, position + len(piece.text)
            if position <= self.start:
                continue
            is_cut = self.stop is not None and position >= self.stop
            if is_cut or first < self.start:
                text = piece.text[max(0, self.start - first) : None if self.stop is None else self.stop - first]
                piece = Piece(text, piece.ends or is_cut)
            yield piece
            documents += piece.ends
            if is_cut or documents == self.max_documents:
                return


@dataclass(frozen=True)
class CorpusScan:
    """What one reading of a corpus tells.

    Attributes:
        characters, documents: how many there are.
        alphabet: each character that occurs, once, by code point.
    """

    characters: int
    documents: int
    alphabet: str


def scan(corpus: Corpus) -> CorpusScan:
    """Counts a corpus, in one pass that holds a piece of it; the second time, the answer comes from the cache.

    Raises:
        ValueError: it cannot be read.
    """
    import pyarrow as pa

    def tables() -> Iterator[pa.Table]:
        logger.info("Reading %s once, to find its characters.", corpus.name)
        seen = np.zeros(0x110000, bool)
        characters = documents = 0
        for group in grouped(corpus.pieces()):
            text = "".join(piece.text for piece in group)
            seen[np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))] = True
            characters += len(text)
            documents += sum(piece.ends for piece in group)
        alphabet = "".join(map(chr, np.flatnonzero(seen)))
        yield pa.table({"characters": [characters], "documents": [documents], "alphabet": [alphabet]})

    written = cached_arrow_dataset(tables, ["scan", corpus.fingerprint], corpus.name)
    return CorpusScan(**written[0])


def grouped(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces, GROUP_CHARACTERS or more at a time."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece.text)
        if size >= GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def cached_arrow_dataset(tables: Callable[[], Iterator[Any]], fingerprint: list[Any], name: str) -> Any:
    """The dataset that some arrow tables make up, memory-mapped from the cache of `datasets`.

    They are asked for only where no file with that fingerprint is there. `datasets` holds a lock on it: of several
    processes one writes, and the others wait and then map the same file. It is written to a folder of another name
    that is renamed at the end, so that it is whole or not there. A lock and not a barrier, which would time out while
    one process reads for half an hour, and which nobody would leave who comes late, or from another run.

    Args:
        tables: makes pyarrow tables of one schema, one row each.
        fingerprint: all that they depend on, in strings and numbers.
        name: what errors call the text.

    Raises:
        ValueError: the text cannot be read, or the disk is full.
    """
    import datasets
    from datasets.fingerprint import Hasher

    class Tables(datasets.ArrowBasedBuilder):
        def _info(self) -> datasets.DatasetInfo:
            return datasets.DatasetInfo()

        def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
            return [datasets.SplitGenerator("train", {})]

        def _generate_tables(self) -> Iterator[tuple[int, Any]]:
            yield from enumerate(tables())

    try:
        # A row a record batch: else `datasets` would hold many rows, which are long ones, before it writes them.
        builder = Tables(dataset_name="hfgen-text", config_id=Hasher.hash(fingerprint), writer_batch_size=1)
        builder.download_and_prepare()
        return builder.as_dataset("train")
    except (datasets.exceptions.DatasetGenerationError, OSError) as error:
        cause, cache = error.__cause__ or error, datasets.config.HF_DATASETS_CACHE
        if isinstance(cause, ValueError):
            raise cause from None  # it tells what to do
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ValueError(
                f"The disk became full while the tokens of {name} were written to {cache}; nothing of them was kept. "
                "They need 2 to 4 bytes each. Free some space, let HF_DATASETS_CACHE name a folder on a larger disk, "
                f"or hold them in memory with --in_memory. ({one_line(cause)})"
            ) from error
        raise ValueError(
            f"The tokens of {name} cannot be written to {cache}: {one_line(cause)} Check "
            "the folder, let HF_DATASETS_CACHE name another one, or hold them in memory with --in_memory."
        ) from error
