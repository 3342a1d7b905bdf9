"""Text that is mapped from files of tokens trains to the bit like text in memory, in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hfgen.tokenization import CorpusEncoder, build_character_tokenizer, encode_corpus
from tests.runs import ROOT, differences, everything, text_file, train
from tests.training.data.test_data import assert_same, some, text_of, write_text
from training.data import corpus as corpora
from training.data.batches import GlobalBatch
from training.data.corpus import Column, Corpus, Piece, TextFiles, scan
from training.data.feeds import TokenFeed
from training.data.mapped_tokens import MappedTokens, describe_tokenizer, map_tokens
from training.data.text import TextData


CPU = torch.device("cpu")
TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler äöü 👩\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    datasets.disable_progress_bars()


@pytest.fixture
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in pieces of a few characters, so that the arrow file has many chunks, shorter than a context."""
    monkeypatch.setattr(corpora, "PIECE_CHARACTERS", 3)
    monkeypatch.setattr(corpora, "GROUP_CHARACTERS", 7)
    monkeypatch.setattr(corpora, "BATCH_BYTES", 50)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of texts with each call of a tokenizer."""
    calls: list[int] = []
    encode = CorpusEncoder.__call__

    def counted(self: CorpusEncoder, texts: list[str], closed: list[bool]) -> np.ndarray:
        calls.append(len(texts))
        return encode(self, texts, closed)

    monkeypatch.setattr(CorpusEncoder, "__call__", counted)
    return calls


def mapped(chunks: list[list[int]], dtype: Any = np.uint16) -> MappedTokens:
    """Each chunk is one or two lists of an arrow file."""
    arrays = []
    for chunk in chunks:
        offsets = pa.array([0, len(chunk) // 2, len(chunk)], pa.int32())
        arrays.append(pa.ListArray.from_arrays(offsets, pa.array(np.array(chunk, dtype))))
    return MappedTokens(pa.chunked_array(arrays, pa.list_(pa.from_numpy_dtype(dtype))))


def assert_equal_data(memory: TextData, file: TextData, context: int = 8) -> None:
    """Everything that training and evaluation see."""
    assert isinstance(memory.train, TokenFeed) and isinstance(file.train, TokenFeed)
    assert isinstance(memory.train.tokens, np.ndarray) and isinstance(file.train.tokens, MappedTokens)
    np.testing.assert_array_equal(file.train.tokens[:], memory.train.tokens)
    np.testing.assert_array_equal(file.eval_tokens[:], memory.eval_tokens)
    assert file.train.tokens.dtype == np.uint16
    assert file.characters_per_token == memory.characters_per_token
    assert (file.name, file.eval_split) == (memory.name, memory.eval_split)
    assert describe_tokenizer(file.tokenizer) == describe_tokenizer(memory.tokenizer)
    steps = 3 * (memory.train.num_examples or 0) // 5 + 2  # three epochs
    assert_same(some(file.train, steps, GlobalBatch(5)), some(memory.train, steps, GlobalBatch(5)))
    assert_same(list(file.eval_batches(3, CPU)), list(memory.eval_batches(3, CPU)))


def both(name: Path, context: int = 8, tokenizer: Any = None, **args: Any) -> tuple[TextData, TextData]:
    memory = text_of(name, context, tokenizer, in_memory=True, **args)
    return memory, text_of(name, context, tokenizer, in_memory=False, **args)


def word_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A BPE that merges within words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<end>"], show_progress=False)  # fmt: skip
    backend.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


# ------------------------------------------------------------------------------------------------------- the sequence


@settings(deadline=None, max_examples=200)
@given(
    chunks=st.lists(st.lists(st.integers(0, 65535), max_size=9), min_size=1, max_size=8),
    starts=st.lists(st.integers(0, 1000), min_size=1, max_size=5),
    length=st.integers(1, 40),
)
def test_windows_equal_those_of_one_array(chunks: list[list[int]], starts: list[int], length: int) -> None:
    """Over the ends of chunks, empty chunks, and several times around the ring."""
    flat = np.array([token for chunk in chunks for token in chunk], np.uint16)
    tokens = mapped(chunks)
    assert len(tokens) == len(flat)
    np.testing.assert_array_equal(tokens[starts[0] : starts[0] + length], flat[starts[0] : starts[0] + length])
    if len(flat):
        expected = flat[(np.array(starts)[:, None] + np.arange(length)) % len(flat)]
        np.testing.assert_array_equal(tokens.windows(np.array(starts), length), expected)


def test_slices_are_those_of_a_sequence_and_steps_are_refused() -> None:
    tokens = mapped([[1, 2, 3], [4], [5, 6]])
    assert tokens[:].tolist() == [1, 2, 3, 4, 5, 6] and tokens[2:-1].tolist() == [3, 4, 5]
    assert tokens[4:2].tolist() == tokens[9:].tolist() == []
    with pytest.raises(ValueError, match="without a step"):
        tokens[::2]


def test_the_file_is_not_copied() -> None:
    array = pa.ListArray.from_arrays(pa.array([0, 5], pa.int32()), pa.array(np.arange(5, dtype=np.uint16)))
    tokens = MappedTokens(pa.chunked_array([array]))
    assert tokens._chunks[0].ctypes.data == array.values.buffers()[1].address


@pytest.mark.parametrize("context", [3, 10, 60])
def test_feed_equals_that_of_memory_over_epochs_and_from_any_step(context: int) -> None:
    """Contexts shorter and longer than the chunks; batches that span epochs; windows that begin anew at the end."""
    flat = np.random.default_rng(0).integers(0, 60000, 125).astype(np.uint16)
    chunks = [part.tolist() for part in np.split(flat, [5, 6, 40, 40, 59, 121])]
    memory, file = TokenFeed(flat, context, seed=0), TokenFeed(mapped(chunks), context, seed=0)
    global_batch = GlobalBatch(3, accumulation=2, rank=1, processes=2)
    assert_same(some(file, 60, global_batch), some(memory, 60, global_batch))
    assert_same(some(file, 4, global_batch, first_step=7), some(file, 18, global_batch)[14:])


# ------------------------------------------------------------------------------------------------------- the same text


@pytest.mark.parametrize("pieces", [None, "tiny_pieces"])
def test_text_file_equals_memory(pieces: str | None, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if pieces:
        request.getfixturevalue(pieces)
    assert_equal_data(*both(write_text(tmp_path / "a.txt", TEXT * 9)))


def test_line_ends_of_all_kinds_equal_memory(tmp_path: Path, tiny_pieces: None) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n\n\r\n" * 30 + b"no end")
    assert_equal_data(*both(tmp_path / "a.txt"))


@pytest.mark.parametrize("options", [{}, {"max_train_samples": 2}, {"max_eval_samples": 1}, {"eval_split": "train"}])
def test_files_of_a_folder_are_documents_as_in_memory(tmp_path: Path, tiny_pieces: None, options: dict[str, Any]
                                                      ) -> None:  # fmt: skip
    """Also where the cut falls: into a file, with files after it; and files that are empty."""
    for name, length in {"a": 10, "b": 0, "d": 3, "c": 30, "sub/e": 1, "sub/f": 1}.items():
        write_text(tmp_path / "texts" / f"{name}.txt", (TEXT[len(name) :] * 2)[:7] * length)
    assert_equal_data(*both(tmp_path / "texts", **options))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text("abé👩\n", max_size=12), min_size=1, max_size=12), st.integers(1, 5))
def test_cut_at_nine_tenths_equals_memory(documents: list[str], size: int) -> None:
    """Exactly at the end of a document too, and whatever pieces the documents come in."""
    from training.data.text import _cut, _unwrap_single

    full = [document for document in documents if document]
    parts = _cut(full)
    cut = int(0.9 * sum(map(len, full)))
    source = InPieces(full, size)
    tokenizer = build_character_tokenizer("abé\n")
    for part, stretch in zip(parts, ({"stop": cut}, {"start": cut})):
        corpus = Corpus(source, "text", **stretch)
        pieces = list(corpus.pieces())
        assert sum(piece.ends for piece in pieces) == len(part)
        assert "".join(piece.text + "|" * piece.ends for piece in pieces) == "".join(text + "|" for text in part)
        ids = [CorpusEncoder(tokenizer, "abé👩\n")([p.text], [p.ends and len(part) > 1]) for p in pieces]
        if part:
            np.testing.assert_array_equal(np.concatenate(ids), encode_corpus(tokenizer, _unwrap_single(part)))


class InPieces:
    """Documents in pieces of so many characters."""

    def __init__(self, documents: list[str], size: int):
        self.documents, self.size = documents, size

    def pieces(self) -> Iterator[Piece]:
        for document in self.documents:
            for start in range(0, len(document), self.size):
                yield Piece(document[start : start + self.size], start + self.size >= len(document))


@pytest.mark.parametrize("tokenizer", [None, word_tokenizer(TEXT), build_character_tokenizer("To be")])
@pytest.mark.parametrize("limits", [{}, {"max_train_samples": 7, "max_eval_samples": 2}])
def test_documents_of_a_dataset_equal_memory(tmp_path: Path, tiny_pieces: None, tokenizer: Any, limits: dict[str, int]
                                             ) -> None:  # fmt: skip
    """With a tokenizer that merges, and with one that spells most characters by bytes, too."""
    documents = [None, *(TEXT[i % 60 :][: 3 * i] for i in range(40)), ""]
    datasets.Dataset.from_dict({"id": range(42), "body": documents}).to_parquet(tmp_path / "one" / "train.parquet")
    assert_equal_data(*both(tmp_path / "one", tokenizer=tokenizer, text_column="body", **limits))
    for split, part in (("train", documents[:30]), ("validation", documents[20:])):
        datasets.Dataset.from_dict({"body": part}).to_parquet(tmp_path / "two" / f"{split}.parquet")
    assert_equal_data(*both(tmp_path / "two", tokenizer=tokenizer, text_column="body", **limits))


def test_scattered_rows_and_built_ins_equal_memory(tmp_path: Path) -> None:
    """A dataset with an order of its own, saved to disk, and one that has no file at all."""
    dataset = datasets.Dataset.from_dict({"text": [f"{i} {TEXT}" for i in range(20)]}).shuffle(seed=1)
    source = Column(dataset, "text")
    assert [piece.text for piece in source.pieces()] == dataset["text"][:]
    dataset.save_to_disk(tmp_path / "saved")
    assert_equal_data(*both(tmp_path / "saved"))
    assert_equal_data(*both(Path("python-docs"), context=5000))


def test_merging_tokenizer_loses_only_merges_over_the_ends_of_pieces(tmp_path: Path, tiny_pieces: None) -> None:
    """This one never merges over a line end, where pieces end: it gives the very tokens of the whole."""
    text = "to\nbe\nor\nnot\nto\nbe\n"
    tokenizer = word_tokenizer(text)
    assert_equal_data(*both(write_text(tmp_path / "a.txt", text * 20), tokenizer=tokenizer))


def test_vocabulary_above_65536_is_kept_as_uint32(tmp_path: Path) -> None:
    letters = "".join(map(chr, [*range(0x4E00, 0x9FFF), *range(0xAC00, 0xD7A3), *range(0x20000, 0x2A000)]))
    tokenizer = build_character_tokenizer(letters)
    assert len(tokenizer) > 1 << 16
    memory, file = both(write_text(tmp_path / "a.txt", letters[-500:] * 2), tokenizer=tokenizer)
    assert isinstance(file.train, TokenFeed) and file.train.tokens.dtype == np.uint32
    assert file.train.tokens[:].max() > 1 << 16
    assert_same(some(file.train, 40, GlobalBatch(5)), some(memory.train, 40, GlobalBatch(5)))
    assert_same(list(file.eval_batches(3, CPU)), list(memory.eval_batches(3, CPU)))


def test_the_size_of_the_text_decides_unless_the_flag_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "abcd" * 100)  # 1600 bytes as tokens
    datasets.Dataset.from_dict({"text": ["abcd" * 100]}).to_parquet(tmp_path / "data" / "train.parquet")
    for name in ("a.txt", "data"):
        for limit, in_memory, expected in ((1601, None, np.ndarray), (1600, None, MappedTokens),
                                           (1, True, np.ndarray), (9999, False, MappedTokens)):  # fmt: skip
            monkeypatch.setattr("training.data.batches.IN_MEMORY_BYTES", limit)
            feed = text_of(tmp_path / name, in_memory=in_memory).train
            assert isinstance(feed, TokenFeed) and isinstance(feed.tokens, expected), (name, limit, in_memory)


# ------------------------------------------------------------------------------------------------------- the cache


def test_second_run_tokenizes_and_reads_nothing(
    tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text(tmp_path / "a.txt", TEXT * 9)
    first = text_of(path, in_memory=False)
    assert len(encoded) == 2  # training and evaluation
    with monkeypatch.context() as patch:
        patch.setattr(TextFiles, "pieces", lambda _: pytest.fail("read the text again"))
        second = text_of(path, context=16, in_memory=False)  # another context, the same tokens
    assert len(encoded) == 2
    np.testing.assert_array_equal(first.eval_tokens[:], second.eval_tokens[:])
    text_of(path, tokenizer=word_tokenizer(TEXT), in_memory=False)
    assert len(encoded) == 4
    write_text(path, TEXT[::-1] * 9)  # as long as before
    assert_equal_data(*both(path))


def test_earlier_calls_of_a_tokenizer_do_not_change_its_description() -> None:
    tokenizer = word_tokenizer(TEXT)
    before = describe_tokenizer(tokenizer)
    tokenizer(TEXT, truncation=True, max_length=3)
    assert describe_tokenizer(tokenizer) == before != describe_tokenizer(word_tokenizer("other words"))


def test_what_is_interrupted_leaves_nothing_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.txt", TEXT * 9)
    encode = CorpusEncoder.__call__
    with monkeypatch.context() as patch:
        patch.setattr(corpora, "PIECE_CHARACTERS", 20)
        patch.setattr(corpora, "GROUP_CHARACTERS", 100)
        calls = iter(range(3))

        def fail(*args: Any) -> np.ndarray:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return encode(*args)

        patch.setattr(CorpusEncoder, "__call__", fail)
        with pytest.raises(KeyboardInterrupt):
            text_of(path, in_memory=False)
    assert_equal_data(*both(path))


SCRIPT = """
import resource, signal, sys
from pathlib import Path
import datasets
datasets.disable_progress_bars()
from training.data.corpus import Corpus
from training.data.corpus import TextFiles
from training.data.corpus import scan
from hfgen.tokenization import CorpusEncoder, build_character_tokenizer
from training.data.mapped_tokens import map_tokens
"""


def run_script(code: str, cache: Path, *args: object) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT + textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_processes_one_tokenizes_and_the_other_waits_for_it(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", TEXT * 9)
    code = """
        import time
        encode = CorpusEncoder.__call__
        def counted(*args):
            print("encoded")
            time.sleep(1)
            return encode(*args)
        CorpusEncoder.__call__ = counted
        corpus = Corpus(TextFiles((Path(sys.argv[1]),)), "a.txt")
        found = scan(corpus)
        print(map_tokens(corpus, found, build_character_tokenizer(found.alphabet))[:].tolist())
    """
    started = [run_script(code, tmp_path / "cache", path) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert sum(output.count("encoded") for output, _ in outputs) == 1
    assert len({output.splitlines()[-1] for output, _ in outputs}) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the memory of a process on Linux only")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """200 MB of text, which would be 200 MB of str and 800 MB of int32: tokenized, fed and evaluated in far less."""
    path = tmp_path / "a.txt"
    line = (TEXT * 30).encode()
    with open(path, "wb") as file:
        for _ in range(200_000_000 // (len(line) * 100)):
            file.write(line * 100)
    code = """
        import threading, time, torch
        from itertools import islice
        from training.config.flags import DataArguments
        from training.data.batches import GlobalBatch
        from training.data.text import load_text
        def anonymous():
            lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
            return int(lines["RssAnon"].split()[0]) // 1000
        peak = before = anonymous()
        def watch():
            global peak
            while True:
                peak = max(peak, anonymous())
                time.sleep(0.01)
        threading.Thread(target=watch, daemon=True).start()
        data = load_text(DataArguments(dataset_name=sys.argv[1], in_memory=False), 0, 256)
        for batch in islice(data.train.batches(0, GlobalBatch(64), torch.device("cpu")), 200): pass
        for batch in islice(data.eval_batches(64, torch.device("cpu")), 200): pass
        print(len(data.train.tokens), peak - before)
    """
    process = run_script(code, tmp_path / "cache", path)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    tokens, grown = map(int, output.split())
    assert tokens > 160_000_000
    assert grown < 100, f"{grown} MB"


# ------------------------------------------------------------------------------------------------------- faults


def test_full_disk_is_told_in_one_paragraph(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", TEXT * 9000)
    code = """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        corpus = Corpus(TextFiles((Path(sys.argv[1]),)), "a.txt (train)")
        found = scan(corpus)
        try:
            map_tokens(corpus, found, build_character_tokenizer(found.alphabet))
        except ValueError as error:
            print(error)
    """
    process = run_script(code, tmp_path / "cache", path)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.startswith("The disk became full while the tokens of a.txt (train) were written to ")
    assert "HF_DATASETS_CACHE" in output and "--in_memory" in output and output.count("\n") == 1
    kept = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.arrow"))
    assert kept < 50_000  # the scan alone


def test_faults_name_the_flag(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(ValueError, match=r"latin.txt' cannot be read: .*utf-8"):
        text_of(tmp_path / "latin.txt", in_memory=False)
    short = write_text(tmp_path / "short.txt", "abcdefghij")
    with pytest.raises(ValueError, match=r"has 9 tokens, fewer than a context of 16.*--max_position_embeddings"):
        text_of(short, context=16, in_memory=False)
    with pytest.raises(ValueError, match=r"has 1 token\(s\): at least two are needed"):
        text_of(short, context=4, in_memory=False)
    with pytest.raises(ValueError, match=r"has no column 'body'; it has text.*--text_column"):
        text_of(short, text_column="body", in_memory=False)
    with pytest.raises(
        ValueError, match=r"There is no split 'test'; the dataset has train. Give another --eval_split"
    ):
        text_of(short, eval_split="test", in_memory=False)
    with pytest.raises(ValueError, match=r"has no text. Check --dataset_name"):
        text_of(write_text(tmp_path / "empty.txt", ""), in_memory=False)
    datasets.Dataset.from_dict({"text": [1, 2, 3]}).to_parquet(tmp_path / "numbers" / "train.parquet")
    with pytest.raises(ValueError, match=r"expected to hold text, found int.*--text_column"):
        text_of(tmp_path / "numbers", in_memory=False)
    with pytest.raises(ValueError, match=r"no folder or file .*absent.txt"):
        text_of(tmp_path / "absent.txt", in_memory=False)


def test_tokenizer_without_an_end_is_refused_where_documents_need_one(tmp_path: Path) -> None:
    for name in "ab":
        write_text(tmp_path / "texts" / f"{name}.txt", TEXT * 5)
    tokenizer = word_tokenizer(TEXT)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="expected one with an eos_token"):
        text_of(tmp_path / "texts", tokenizer=tokenizer, in_memory=False)


def test_survey_counts_characters_documents_and_the_alphabet(tmp_path: Path, tiny_pieces: None) -> None:
    paths = (write_text(tmp_path / "a.txt", "abc👩\n" * 7), write_text(tmp_path / "b.txt", "é"))
    found = scan(Corpus(TextFiles(paths), "two files"))
    assert (found.characters, found.documents, found.alphabet) == (36, 2, "\nabcé👩")
    assert len(map_tokens(Corpus(TextFiles(paths), "two files"), found, build_character_tokenizer("ab"))) > 36


# ------------------------------------------------------------------------------------------------------- trainings


def test_training_equals_that_of_memory_also_with_two_processes(tmp_path: Path) -> None:
    flags = ["--dataset_name", text_file()]
    folders = {}
    for held in ("true", "false"):
        for processes in (1, 2):
            folders[held, processes] = folder = tmp_path / f"{held}-{processes}"
            run = train("gpt", folder, *flags, "--in_memory", held, processes=processes)
            assert run.code == 0, run.output
    for processes in (1, 2):
        assert differences(everything(folders["true", processes]), everything(folders["false", processes])) == []
