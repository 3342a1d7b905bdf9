"""Text that is mapped from files of tokens trains to the bit like text in memory, in little memory."""

from __future__ import annotations

import resource
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
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

from hfgen.tokenization import CorpusEncoder, build_character_tokenizer
from tests.runs import differences, everything, text_file, train
from tests.training.data.tiny_data import CPU, assert_same, take, text_of, write_text, write_texts
from training.data.feeds.batches import GlobalBatch
from training.data.feeds.indexed import HeldTokens, TokenFeed
from training.data.feeds.mapped_tokens import MappedTokens, describe_tokenizer, map_tokens
from training.data.sources import corpus as corpora
from training.data.sources.corpus import Corpus, TextFiles, scan
from training.data.text import TextData


TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler äöü 👩\n"


@pytest.fixture
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in pieces of a few characters, so that the arrow file has many chunks, shorter than a context."""
    for name, size in {"PIECE_CHARACTERS": 3, "GROUP_CHARACTERS": 7, "BATCH_BYTES": 50}.items():
        monkeypatch.setattr(corpora, name, size)


def mapped(chunks: list[list[int]]) -> MappedTokens:
    """Each chunk is two lists of an arrow file."""
    arrays = [
        pa.ListArray.from_arrays(pa.array([0, len(chunk) // 2, len(chunk)], pa.int32()), pa.array(chunk, pa.uint16()))
        for chunk in chunks
    ]
    return MappedTokens(pa.chunked_array(arrays, pa.list_(pa.uint16())))


def assert_equal_data(memory: TextData, file: TextData) -> None:
    """Everything that training and evaluation see."""
    assert isinstance(memory.train, TokenFeed) and isinstance(file.train, TokenFeed)
    assert isinstance(memory.train.tokens, HeldTokens) and isinstance(file.train.tokens, MappedTokens)
    assert torch.equal(file.train.tokens[:], memory.train.tokens[:])
    assert torch.equal(file.eval_tokens[:], memory.eval_tokens[:])
    assert file.characters_per_token == memory.characters_per_token and file.describe() == memory.describe()
    assert file.bytes_per_token == memory.bytes_per_token
    assert describe_tokenizer(file.tokenizer) == describe_tokenizer(memory.tokenizer)
    steps = 3 * (memory.train.num_examples or 0) // 5 + 2  # three epochs
    assert_same(take(file.train, steps, GlobalBatch(5)), take(memory.train, steps, GlobalBatch(5)))
    assert_same(list(file.eval_batches(3, CPU)), list(memory.eval_batches(3, CPU)))


def assert_file_equals_memory(name: str | Path, context: int = 8, **args: Any) -> None:
    assert_equal_data(text_of(name, context, in_memory=True, **args), text_of(name, context, in_memory=False, **args))


def word_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A BPE that merges within words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [text],
        trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


# ------------------------------------------------------------------------------------------------------ the sequence


@settings(deadline=None, max_examples=200)
@given(
    chunks=st.lists(st.lists(st.integers(0, 65535), max_size=9), min_size=1, max_size=8),
    starts=st.lists(st.integers(0, 1000), min_size=1, max_size=5),
    length=st.integers(1, 40),
)
def test_windows_equal_those_of_tokens_in_memory(chunks: list[list[int]], starts: list[int], length: int) -> None:
    """Across the ends of chunks, with empty chunks, and several times around the ring."""
    flat, tokens = np.array([token for chunk in chunks for token in chunk], np.uint16), mapped(chunks)
    held = HeldTokens(flat)
    assert len(tokens) == len(held) == len(flat)
    part = slice(starts[0], starts[0] + length)
    assert tokens[part].tolist() == held[part].tolist() == flat[part].tolist()
    if len(flat):
        expected = flat[(np.array(starts)[:, None] + np.arange(length)) % len(flat)].tolist()
        for kind in (tokens, held, tokens.to(CPU), held.to(CPU)):
            windows = kind.windows(torch.tensor(starts), length)
            assert windows.tolist() == expected and windows.dtype == torch.int32


def test_slices_are_those_of_a_sequence_and_steps_are_refused() -> None:
    tokens = mapped([[1, 2, 3], [4], [5, 6]])
    assert tokens[:].tolist() == [1, 2, 3, 4, 5, 6] and tokens[2:-1].tolist() == [3, 4, 5]
    assert tokens[4:2].tolist() == tokens[9:].tolist() == []
    with pytest.raises(ValueError, match="part must be a slice without a step, got a step of 2"):
        tokens[::2]


@pytest.mark.parametrize("context", [3, 10, 60])
def test_feed_equals_that_of_memory_over_epochs_and_from_any_step(context: int) -> None:
    """Contexts shorter and longer than the chunks; batches that span epochs; windows that wrap around."""
    flat = np.random.default_rng(0).integers(0, 60000, 125).astype(np.uint16)
    chunks = [part.tolist() for part in np.split(flat, [5, 6, 40, 40, 59, 121])]
    memory, file = TokenFeed(HeldTokens(flat), context, seed=0), TokenFeed(mapped(chunks), context, seed=0)
    global_batch = GlobalBatch(3, accumulation=2, rank=1, processes=2)
    assert_same(take(file, 60, global_batch), take(memory, 60, global_batch))
    assert_same(take(file, 4, global_batch, first_step=7), take(file, 18, global_batch)[14:])


# ------------------------------------------------------------------------------------------------------ the same text


@pytest.mark.parametrize("pieces", [None, "tiny_pieces"])
def test_text_file_equals_memory(pieces: str | None, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if pieces:
        request.getfixturevalue(pieces)
    (tmp_path / "a.txt").write_bytes((TEXT * 9 + "one\r\ntwo\rthree\n\n\r\n" * 30 + "no end").encode())
    assert_file_equals_memory(tmp_path / "a.txt")


@pytest.mark.parametrize("options", [{}, {"max_train_samples": 2}, {"max_eval_samples": 1}, {"eval_split": "train"}])
def test_files_of_a_folder_equal_memory(tmp_path: Path, tiny_pieces: None, options: dict[str, Any]) -> None:
    """Also if the cut falls into a file with files after it, and with files that are empty."""
    for name, length in {"a": 10, "b": 0, "d": 3, "c": 30, "sub/e": 1, "sub/f": 1}.items():
        write_text(tmp_path / "texts" / f"{name}.txt", (TEXT[len(name) :] * 2)[:7] * length)
    assert_file_equals_memory(tmp_path / "texts", **options)


@pytest.mark.parametrize("tokenizer", [None, word_tokenizer(TEXT), build_character_tokenizer("To be")])
@pytest.mark.parametrize("limits", [{}, {"max_train_samples": 7, "max_eval_samples": 2}])
def test_documents_of_a_dataset_equal_memory(tmp_path: Path, tiny_pieces: None, tokenizer: Any, limits: Any) -> None:
    """Also with a tokenizer that merges, and with one that spells most characters in bytes."""
    documents = [None, *(TEXT[i % 60 :][: 3 * i] for i in range(40)), ""]
    write_texts(tmp_path / "one", documents)
    write_texts(tmp_path / "two", documents[:30])
    write_texts(tmp_path / "two", documents[20:], "validation")
    for name in ("one", "two"):
        assert_file_equals_memory(tmp_path / name, tokenizer=tokenizer, **limits)


def test_shuffled_datasets_and_built_ins_equal_memory(tmp_path: Path) -> None:
    """A dataset with its own order, saved to disk, and one that has no file at all."""
    dataset = datasets.Dataset.from_dict({"text": [f"{i} {TEXT}" for i in range(20)]}).shuffle(seed=1)
    dataset.save_to_disk(tmp_path / "saved")
    assert_file_equals_memory(tmp_path / "saved")
    assert_file_equals_memory("python-docs", context=5000)


def test_merging_tokenizer_loses_only_merges_across_the_ends_of_pieces(tmp_path: Path, tiny_pieces: None) -> None:
    """This one never merges across a line end, where pieces end, so it gives the tokens of the whole text."""
    text = "to\nbe\nor\nnot\nto\nbe\n"
    assert_file_equals_memory(write_text(tmp_path / "a.txt", text * 20), tokenizer=word_tokenizer(text))


def test_vocabulary_above_65536_equals_memory(tmp_path: Path) -> None:
    letters = "".join(map(chr, [*range(0x4E00, 0x9FFF), *range(0xAC00, 0xD7A3), *range(0x20000, 0x2A000)]))
    tokenizer = build_character_tokenizer(letters)
    assert len(tokenizer) > 1 << 16
    path = write_text(tmp_path / "a.txt", letters[-500:] * 2)
    assert_file_equals_memory(path, tokenizer=tokenizer)
    assert text_of(path, tokenizer=tokenizer).eval_tokens[:].max() > 1 << 16


def test_size_of_the_text_decides_unless_the_flag_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "abcd" * 100)  # 1600 bytes as tokens
    write_texts(tmp_path / "data", ["abcd" * 100])
    cases = (1601, None, HeldTokens), (1600, None, MappedTokens), (1, True, HeldTokens), (9999, False, MappedTokens)
    for name in ("a.txt", "data"):
        for limit, in_memory, expected in cases:
            monkeypatch.setattr("training.data.feeds.batches.IN_MEMORY_BYTES", limit)
            feed = text_of(tmp_path / name, in_memory=in_memory).train
            assert isinstance(feed, TokenFeed) and isinstance(feed.tokens, expected), (name, limit, in_memory)


# ---------------------------------------------------------------------------------------------------------- the cache


def test_second_run_neither_reads_nor_tokenizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.txt", TEXT * 9)
    first = text_of(path, in_memory=False)
    with monkeypatch.context() as patch:
        patch.setattr(TextFiles, "pieces", lambda _: pytest.fail("read the text again"))
        second = text_of(path, context=16, in_memory=False)  # another context, the same tokens
    assert torch.equal(first.eval_tokens[:], second.eval_tokens[:])
    assert_file_equals_memory(path, tokenizer=word_tokenizer(TEXT))
    write_text(path, TEXT[::-1] * 9)  # as long as before
    assert_file_equals_memory(path)


def test_tokenizer_has_the_same_description_after_a_call() -> None:
    tokenizer = word_tokenizer(TEXT)
    before = describe_tokenizer(tokenizer)
    tokenizer(TEXT, truncation=True, max_length=3)
    assert describe_tokenizer(tokenizer) == before != describe_tokenizer(word_tokenizer("other words"))


def test_interrupted_tokenization_leaves_nothing_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.txt", TEXT * 9)
    encode, calls = CorpusEncoder.__call__, iter(range(3))

    def fail_at_the_third(*args: Any) -> np.ndarray:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return encode(*args)

    with monkeypatch.context() as patch:
        patch.setattr(corpora, "PIECE_CHARACTERS", 20)
        patch.setattr(corpora, "GROUP_CHARACTERS", 100)
        patch.setattr(CorpusEncoder, "__call__", fail_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            text_of(path, in_memory=False)
    assert_file_equals_memory(path)


def processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, get_context("fork"), torch.set_num_threads, (1,))


def map_file(path: Path) -> list[int]:
    corpus = Corpus(TextFiles((path,)), "a.txt")
    counts = scan(corpus)
    return map_tokens(corpus, counts, build_character_tokenizer(counts.alphabet))[:].tolist()


def test_of_two_processes_one_tokenizes_and_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.txt", TEXT * 9)
    encode = CorpusEncoder.__call__

    def slow(*args: Any) -> np.ndarray:
        with open(tmp_path / "encoded", "a") as file:
            file.write("once\n")
        time.sleep(0.5)
        return encode(*args)

    monkeypatch.setattr(CorpusEncoder, "__call__", slow)
    with processes(2) as pool:
        first, second = pool.map(map_file, [path, path])
    assert first == second and (tmp_path / "encoded").read_text() == "once\n"


def train_and_evaluate(path: Path) -> tuple[int, int]:
    """(tokens, MB that memory grew by at its peak)."""
    peak = before = anonymous_memory()

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, anonymous_memory())
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    data = text_of(path, context=256, in_memory=False)
    assert isinstance(data.train, TokenFeed)
    assert len(list(map(len, islice(data.train.batches(0, GlobalBatch(64), CPU), 200)))) == 200
    assert all(map(len, islice(data.eval_batches(64, CPU), 200)))
    return len(data.train.tokens), peak - before


def anonymous_memory() -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) // 1000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process, on Linux only")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """70 MB of text, 280 MB as str and as int32 and 130 MB as uint16, is tokenized, fed and evaluated in far less."""
    line = TEXT * 3000
    path = write_text(tmp_path / "a.txt", line * (70_000_000 // len(line.encode())))
    with processes(1) as pool:
        tokens, grown = pool.submit(train_and_evaluate, path).result()
    assert tokens > 55_000_000
    assert grown < 100, f"{grown} MB"


# ------------------------------------------------------------------------------------------------------------- faults


def map_file_on_a_full_disk(path: Path) -> str:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with pytest.raises(ValueError) as caught:
        map_file(path)
    return str(caught.value)


def test_full_disk_is_explained_in_one_paragraph(tmp_path: Path) -> None:
    with processes(1) as pool:
        message = pool.submit(map_file_on_a_full_disk, write_text(tmp_path / "a.txt", TEXT * 9000)).result()
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    assert message.startswith(f"The disk filled up while the tokens of a.txt were written to {cache}")
    assert "HF_DATASETS_CACHE" in message and "--in_memory" in message and "\n" not in message
    assert not list(cache.rglob("*.arrow"))


def test_tokenizer_without_an_end_is_refused_if_documents_need_one(tmp_path: Path) -> None:
    for name in "ab":
        write_text(tmp_path / "texts" / f"{name}.txt", TEXT * 5)
    tokenizer = word_tokenizer(TEXT)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="must have an eos_token"):
        text_of(tmp_path / "texts", tokenizer=tokenizer, in_memory=False)


# ---------------------------------------------------------------------------------------------------------- trainings


def test_training_by_two_processes_equals_that_of_memory(tmp_path: Path) -> None:
    results = []
    for in_memory in ("true", "false"):
        run = train("gpt", tmp_path / in_memory, "--dataset_name", text_file(), "--in_memory", in_memory, processes=2)
        assert run.code == 0, run.output
        results.append(everything(tmp_path / in_memory))
    assert differences(*results) == []
