"""Text is tokenized, packed and evaluated so that every token counts once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from hfgen.tokenization import build_character_tokenizer
from tests.training.data.tiny_data import CPU, take, text_of, write_text, write_texts
from training.config.flags import DataArguments
from training.data.feeds.batches import GlobalBatch
from training.data.feeds.streams import StreamFeed
from training.data.text import load_text


def test_evaluation_predicts_each_token_once_and_keeps_the_last_window(tmp_path: Path) -> None:
    data = text_of(write_text(tmp_path / "a.txt", "abcdefghij" * 23), context=8)
    assert len(data.eval_tokens) == 23  # the last tenth of 230 characters
    batches = list(data.eval_batches(2, CPU))
    inputs, labels = (torch.cat([batch[name] for batch in batches]).flatten() for name in ("input_ids", "labels"))
    counted = labels != -100
    assert inputs[counted].tolist() == data.eval_tokens[:-1].tolist()
    assert labels[counted].tolist() == data.eval_tokens[1:].tolist()
    assert [len(batch["labels"]) for batch in batches] == [2, 1]


def test_evaluation_text_may_be_shorter_than_the_context(tmp_path: Path) -> None:
    data = text_of(write_text(tmp_path / "a.txt", "abcdefghij" * 10), context=32)
    (batch,) = data.eval_batches(4, CPU)
    assert batch["input_ids"].shape == (1, 32) and int((batch["labels"] != -100).sum()) == 9


def test_tokenizer_that_is_given_is_used(tmp_path: Path) -> None:
    tokenizer = build_character_tokenizer("abcdefghij and more", model_max_length=8)
    data = text_of(write_text(tmp_path / "a.txt", "abcdefghij" * 10), tokenizer=tokenizer)
    assert data.tokenizer is tokenizer


@pytest.mark.parametrize("in_memory", [True, False])
def test_bpe_is_built_from_the_training_part_alone(in_memory: bool, tmp_path: Path) -> None:
    """The last tenth is full of a word that the rest lacks."""
    path = write_text(tmp_path / "a.txt", "now is better than never\n" * 90 + "zyxwv " * 42)
    args = DataArguments(dataset_name=str(path), in_memory=in_memory)

    data = load_text(args, 0, 8, bpe_vocab_size=280)

    tokens = {*data.tokenizer.get_vocab()}
    assert len(tokens) <= 280 and "Ġbetter" in tokens and not any("zy" in token for token in tokens)
    text = data.tokenizer.decode(data.eval_tokens[:].tolist())
    assert text == path.read_text()[-len(text) :] and len(data.tokenizer(text)["input_ids"]) == len(data.eval_tokens)


def test_a_text_without_enough_pairs_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_text(tmp_path / "a.txt", "abcdefghij\n" * 50)

    data = load_text(DataArguments(dataset_name=str(path)), 0, 8, bpe_vocab_size=1000)

    assert f"pairs for only {len(data.tokenizer)} tokens, instead of --train_bpe 1000" in caplog.text


def test_characters_and_bytes_per_token_are_those_of_the_evaluation_text(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "a" * 900 + "é" * 100)  # é is two bytes, which are its tokens here

    data = text_of(path)

    assert len(data.eval_tokens) == 200
    assert (data.characters_per_token, data.bytes_per_token) == (0.5, 1.0)


def test_streamed_text_predicts_every_token_once(tmp_path: Path) -> None:
    documents = [f"Document {i} has its own text, {'x' * (i % 11 + 100)}." for i in range(100)]
    data = text_of(write_texts(tmp_path, documents), context=8, streaming=True, shuffle_buffer_size=1000)
    assert isinstance(data.train, StreamFeed) and data.eval_split == "10 % of train"
    end = data.tokenizer.eos_token
    evaluated = [part for part in data.tokenizer.decode(data.eval_tokens[:].tolist()).split(end) if part]
    assert 0 < len(evaluated) < 30
    trained = set(documents) - set(evaluated)
    batches = take(data.train, 400, GlobalBatch(5))
    inputs = torch.cat([batch["input_ids"].flatten() for batch in batches])
    labels = torch.cat([batch["labels"].flatten() for batch in batches])
    assert torch.equal(inputs[1:], labels[:-1])  # one run of tokens, batch after batch
    read = data.tokenizer.decode(inputs.tolist()).split(end)[: len(trained)]
    assert sorted(read) == sorted(trained)  # one epoch


# ----------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("in_memory", [True, False])
def test_faults_name_the_flag(tmp_path: Path, in_memory: bool) -> None:
    short = write_text(tmp_path / "short.txt", "abcdefghij")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    empty, blank = write_text(tmp_path / "empty.txt", ""), write_text(tmp_path / "blank" / "empty.txt", "")
    numbers = write_texts(tmp_path / "numbers", [1, 2, 3])
    for name, context, flags, message in [
        (short, 16, {}, "must be longer than a context of 16 tokens, got 9 tokens.*--max_position_embeddings"),
        (short, 4, {}, "must have at least 2 tokens.*, got 1. Use more text or another --eval_split"),
        (short, 4, {"text_column": "body"}, r"--text_column must be a column of .* \(text\), got 'body'"),
        (short, 4, {"eval_split": "test"}, r"--eval_split must be a split of the dataset \(train\), got 'test'"),
        ("digits", 4, {}, r"--text_column must be a column of .* \(image, label\), got 'text'"),
        (tmp_path / "latin.txt", 4, {}, "latin.txt' cannot be read: .*utf-8"),
        (empty, 4, {}, "empty.txt.* has no text. Check --dataset_name"),
        (blank, 4, {}, "blank.* has no text. Check --dataset_name"),
        (numbers, 4, {}, "--text_column must name a column .* holds text, got 'text', which holds .*int64. None does"),
        (tmp_path / "absent.txt", 4, {}, "--dataset_name must exist, got .*absent.txt"),
    ]:
        with pytest.raises(ValueError, match=message):
            text_of(name, context, in_memory=in_memory, **flags)


CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("value", "held"),
    [
        (3, "values of type int64"),
        (0.5, "values of type (double|float64)"),
        (True, "values of type bool"),
        ({"en": "Hello.", "de": "Hallo."}, r"dicts \((en, de|de, en)\)"),
        (CHAT, r"chats \(lists of messages\)"),
        (["Hello.", "Hallo."], "lists"),
    ],
    ids=str,
)
def test_column_without_text_is_refused(tmp_path: Path, value: Any, held: str, streaming: bool, kind: str) -> None:
    rows = [{"id": number, "text": value, "body": f"Some text {number}.", "title": None} for number in range(40)]
    table = datasets.Dataset.from_list(rows)
    getattr(table, f"to_{kind.removesuffix('l')}")(tmp_path / f"train.{kind}")
    message = (
        f"--text_column must name a column of .* that holds text, got 'text', which holds {held}. "
        "Name one that does: body"
    )
    with pytest.raises(ValueError, match=message) as caught:
        text_of(tmp_path, streaming=streaming)
    assert "\n" not in str(caught.value)
    assert text_of(tmp_path, text_column="body", streaming=streaming).characters_per_token > 0


def test_streamed_faults_name_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--text_column must be a column of .* \(text\), got 'body'"):
        text_of("python-docs", text_column="body", streaming=True)
    with pytest.raises(ValueError, match=r"has no text"):
        text_of(write_texts(tmp_path, [""] * 60), streaming=True)
