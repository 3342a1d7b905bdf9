"""Documents are read in pieces that join to the very text, cut where they would be cut in memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.tiny_data import write_text
from training.data.sources.corpus import Column, Corpus, Piece, TextFiles, cached_scan, scan


class InPieces:
    """Documents in pieces of `size` characters."""

    def __init__(self, documents: list[str], size: int):
        self.documents, self.size = documents, size

    def pieces(self) -> Iterator[Piece]:
        for document in self.documents:
            for start in range(0, len(document), self.size):
                yield Piece(document[start : start + self.size], start + self.size >= len(document))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("abé👩\n", min_size=1, max_size=12), min_size=1, max_size=12), st.integers(1, 5), st.data())
def test_corpus_is_cut_at_any_character(documents: list[str], size: int, data: st.DataObject) -> None:
    """Also exactly at the end of a document, and whatever the pieces."""
    ends = list(accumulate(map(len, documents)))
    cut = data.draw(st.integers(0, ends[-1]))
    expected = [document[: max(0, cut - end + len(document))] for document, end in zip(documents, ends)]
    rest = [document[max(0, cut - end + len(document)) :] for document, end in zip(documents, ends)]
    source: Any = InPieces(documents, size)
    before, after = Corpus(source, "text", stop=cut), Corpus(source, "text", start=cut)
    assert before.documents() == [text for text in expected if text]
    assert after.documents() == [text for text in rest if text]
    assert Corpus(source, "text", start=cut, max_documents=2).documents() == after.documents()[:2]
    assert all(piece.text for piece in [*before.pieces(), *after.pieces()])


def test_scan_counts_characters_documents_and_the_alphabet(tmp_path: Path) -> None:
    paths = (write_text(tmp_path / "a.txt", "abc👩\n" * 7), write_text(tmp_path / "b.txt", "é"))
    corpus = Corpus(TextFiles(paths), "two files")
    for found in (scan(corpus), cached_scan(corpus), cached_scan(corpus)):
        assert (found.characters, found.documents, found.alphabet) == (36, 2, "\nabcé👩")
        assert found.bytes == 7 * (3 + 4 + 1) + 2
    for empty in (scan, cached_scan):
        with pytest.raises(ValueError, match=r"nothing has no text. Check --dataset_name"):
            empty(Corpus(TextFiles(()), "nothing"))


def test_column_gives_the_documents_of_scattered_rows() -> None:
    dataset = datasets.Dataset.from_dict({"text": [f"{i} text" for i in range(20)]}).shuffle(seed=1)
    assert [piece.text for piece in Column(dataset, "text").pieces()] == dataset["text"][:]
