"""Text that need not fit in memory: documents of text files or of a dataset, read in pieces.

A corpus is scanned and tokenized once. Of one that does not fit in memory, `training.data.sources.cached_tables` keeps
the results, and only then are pyarrow and `datasets` imported, which takes as long as some trainings.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from .splits import TEXT_ENCODING


if TYPE_CHECKING:
    import pyarrow as pa


logger = logging.getLogger(__name__)
PIECE_CHARACTERS = 1 << 16  # of a file
GROUP_CHARACTERS = 1 << 20  # tokenized at a time
BATCH_BYTES = 4 << 20  # of a dataset, read at a time
TEXT_PER_GZIP = 4  # bytes of text per byte, as a guess
# Part of every fingerprint: raise it when the code would write a different file for the same text.
FORMAT = "hfgen text 3"


class Piece(NamedTuple):
    """A part of a document, never empty."""

    text: str
    ends: bool  # whether it is the last one


@dataclass(frozen=True)
class TextFiles:
    """UTF-8 files, plain or gzipped, each one document, in pieces of about PIECE_CHARACTERS that end at a line break.

    The pieces of a file join to exactly its text, so a character tokenizer gives the tokens of the whole. A tokenizer
    that merges characters cannot merge across the end of a piece, one place per 65,536 characters.

    Attributes:
        paths: Where they are.
        start, stop: A stretch of their characters, laid end to end; None for the end.
    """

    paths: tuple[Path, ...]
    start: int = 0
    stop: int | None = None
    features: ClassVar[tuple[str, ...]] = ("text",)  # the columns, as a dataset would have them

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: Sequence[int]) -> TextFiles:
        """Some of the files."""
        return replace(self, paths=tuple(self.paths[row] for row in rows))

    @cached_property
    def num_parts(self) -> int:
        """What a slice counts: files, or the characters of a single one."""
        return len(self) if len(self) != 1 else sum(len(piece.text) for piece in self.pieces())

    def part(self, start: int, stop: int) -> TextFiles:
        """A slice; see `num_parts`."""
        if (start, stop) == (0, self.num_parts):
            return self
        return replace(self, start=start, stop=stop) if len(self) == 1 else self.select(range(start, stop))

    def joined(self, others: Sequence[TextFiles]) -> TextFiles:
        """These files and then those of others.

        Raises:
            ValueError: One of them is a stretch of a file.
        """
        parts = [self, *others]
        if any(part.stop is not None for part in parts):
            raise ValueError("Slices of a single text file cannot be joined with +, got several. Use one slice.")
        return TextFiles(tuple(path for part in parts for path in part.paths))

    @property
    def num_bytes(self) -> int:
        """Bytes of the text; an estimate for compressed files."""
        return sum(path.stat().st_size * (TEXT_PER_GZIP if _is_compressed(path) else 1) for path in self.paths)

    @property
    def fingerprint(self) -> list[Any]:
        """Path, size and modification time of each file, which stand for its content."""
        stats = [path.stat() for path in self.paths]
        files = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in zip(self.paths, stats)]
        return [*files, self.start, self.stop]

    def pieces(self) -> Iterator[Piece]:
        """Everything in the files, or in the stretch of them.

        Raises:
            ValueError: A file is not UTF-8.
        """
        return _stretch(self._all_pieces(), self.start, self.stop)

    def _all_pieces(self) -> Iterator[Piece]:
        for path in self.paths:
            try:
                with _opened(path) as file:
                    text = self._read(file)
                    while text:
                        following = self._read(file)
                        yield Piece(text, ends=not following)
                        text = following
            except UnicodeDecodeError as error:
                raise ValueError(f"The text file '{path}' cannot be read: {error}. Save it as UTF-8.") from error
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"The text file '{path}' cannot be read: {error}. Repair or remove it.") from error

    @staticmethod
    def _read(file: Any) -> str:
        text = file.read(PIECE_CHARACTERS)
        return text + file.readline(PIECE_CHARACTERS) if text else text


def _stretch(pieces: Iterator[Piece], start: int, stop: int | None) -> Iterator[Piece]:
    """The pieces between two characters, cut at both; a document that extends beyond ends there."""
    position = 0
    if stop is not None and stop <= start:
        return
    for piece in pieces:
        first, position = position, position + len(piece.text)
        if position <= start:
            continue
        is_cut = stop is not None and position >= stop
        if is_cut or first < start:
            text = piece.text[max(0, start - first) : None if stop is None else stop - first]
            piece = Piece(text, piece.ends or is_cut)
        yield piece
        if is_cut:
            return


def _opened(path: Path) -> IO[str]:
    # Line ends become "\n", as they do when `datasets` reads a file.
    return (gzip.open if _is_compressed(path) else open)(path, "rt", encoding=TEXT_ENCODING)


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


@dataclass(frozen=True)
class Column:
    """The strings in a column of a `datasets.Dataset`, each one document, read from its memory-mapped file.

    Documents are held and tokenized whole.
    """

    dataset: Any
    name: str

    @cached_property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the texts; an estimate if the dataset is a selection of scattered rows."""
        import pyarrow as pa
        from pyarrow import compute

        table = self.dataset.data
        try:
            lengths = [compute.sum(compute.binary_length(chunk)).as_py() for chunk in table.column(self.name).chunks]
        except pa.ArrowNotImplementedError:  # nothing but nulls
            return 0
        return int(sum(filter(None, lengths)) * len(self.dataset) / max(1, table.num_rows))

    @property
    def fingerprint(self) -> list[Any]:
        return [self.dataset._fingerprint, self.name]

    def pieces(self) -> Iterator[Piece]:
        """The documents that are not empty."""
        rows = max(1, BATCH_BYTES * len(self.dataset) // max(1, self.num_bytes))
        column = self.dataset.select_columns([self.name]).with_format("arrow")
        for table in column.iter(min(rows, GROUP_CHARACTERS)):
            for document in table.column(self.name).to_pylist():
                if document:
                    yield Piece(document, ends=True)


@dataclass(frozen=True)
class Corpus:
    """Documents to train or to evaluate on: those of a source, or a stretch of its characters.

    Attributes:
        source: Where they are.
        name: What errors call them.
        start, stop: The stretch, in characters of the source's documents laid end to end; None for the end. A document
            that extends beyond it is cut off there.
        max_documents: Only the first ones of the stretch; None for all.
    """

    source: TextFiles | Column
    name: str
    start: int = 0
    stop: int | None = None
    max_documents: int | None = None

    @property
    def fingerprint(self) -> list[Any]:
        """Changes with the text."""
        return [FORMAT, *self.source.fingerprint, self.start, self.stop, self.max_documents]

    def pieces(self) -> Iterator[Piece]:
        """The pieces of the stretch, cut at its ends."""
        documents = 0
        for piece in _stretch(self.source.pieces(), self.start, self.stop):
            yield piece
            documents += piece.ends
            if documents == self.max_documents:
                return

    def documents(self) -> list[str]:
        """The documents of the stretch, whole and in memory."""
        documents, parts = [], []
        for piece in self.pieces():
            parts.append(piece.text)
            if piece.ends:
                documents.append("".join(parts))
                parts = []
        return documents


@dataclass(frozen=True)
class CorpusScan:
    """What one pass over a corpus finds.

    Attributes:
        characters, bytes, documents: How many there are. The bytes are those of UTF-8.
        alphabet: Each character that occurs, once, by code point.
    """

    characters: int
    bytes: int
    documents: int
    alphabet: str


def scan(corpus: Corpus) -> CorpusScan:
    """Counts a corpus in one pass, one group of pieces at a time.

    Raises:
        ValueError: The text cannot be read, or there is none.
    """
    seen = np.zeros(0x110000, bool)
    characters = num_bytes = documents = 0
    for group in grouped(corpus.pieces()):
        text = "".join(piece.text for piece in group)
        seen[np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))] = True
        characters += len(text)
        num_bytes += len(text.encode())
        documents += sum(piece.ends for piece in group)
    if not documents:
        raise ValueError(f"{corpus.name} has no text. Check --dataset_name, its splits and --text_column.")
    return CorpusScan(characters, num_bytes, documents, "".join(map(chr, np.flatnonzero(seen))))


def cached_scan(corpus: Corpus) -> CorpusScan:
    """As `scan`, but the cache of `datasets` keeps the result for later calls.

    Raises:
        ValueError: The text cannot be read, there is none, or the disk is full.
    """
    import pyarrow as pa

    from .cached_tables import cached_dataset

    def tables() -> Iterator[pa.Table]:
        logger.info("Reading %s once to find its characters.", corpus.name)
        yield pa.table({name: [value] for name, value in vars(scan(corpus)).items()})

    return CorpusScan(**cached_dataset(tables, ["scan", corpus.fingerprint], corpus.name)[0])


def grouped(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces in groups of at least GROUP_CHARACTERS, the last one aside."""
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
