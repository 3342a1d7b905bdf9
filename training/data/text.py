"""Datasets of text, made ready to train on: found, split, tokenized."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfgen.tokenization import build_bpe_tokenizer, build_character_tokenizer, encode_corpus

from ..config.flags import DataArguments
from .feeds.batches import Batch, Feed, evenly_spread, fits_in_memory
from .feeds.indexed import HeldTokens, TokenFeed, Tokens
from .feeds.mapped_tokens import map_tokens
from .feeds.streams import ShuffledExamples, State, StreamFeed
from .sources.corpus import Column, Corpus, CorpusScan, TextFiles, cached_scan, scan
from .sources.splits import find_eval_split, find_split, find_text_files, first_example, hold_out, limited, load_splits


logger = logging.getLogger(__name__)
MAX_STREAMED_EVAL_TEXTS = 1000
TOKENIZER_TEXTS = 1000
CHUNK_CHARACTERS = 1 << 12  # of a stream, tokenized together: a call of a tokenizer has a cost of its own


def load_text(
    args: DataArguments, seed: int, context: int, tokenizer: Any = None, bpe_vocab_size: int | None = None
) -> TextData:
    """Finds a text, builds a tokenizer from its training part unless one is given, and tokenizes it.

    If the dataset has no evaluation split, the last tenth of the characters is held out. A text that does not fit in
    memory is tokenized once into a mapped file, to the same tokens (but see [`TextFiles`] for tokenizers that merge
    characters). A streamed text is tokenized while training; its tokenizer is built from the first documents, and
    spells what they lack in bytes.

    Args:
        args: The flags that name the text.
        seed: Determines the order of the examples.
        context: Tokens per window.
        tokenizer: None to build one.
        bpe_vocab_size: Tokens of a byte-level BPE to build; None for a tokenizer of characters.

    Raises:
        ValueError: The text is missing, empty or shorter than the context; the message says what to do.
    """
    name = args.dataset_name or "python-docs"
    files = None if args.streaming else find_text_files(name, args)
    splits: dict[str, Any] = {split: TextFiles(tuple(paths)) for split, paths in (files or {}).items()}
    splits = splits or load_splits(name, args, "text")
    found = _split_stream(splits, name, args) if args.streaming else _split_text(splits, name, args)

    read, tokenize = (scan, _hold_tokens) if found.in_memory else (cached_scan, map_tokens)
    train_scan, eval_scan = read(found.train), read(found.evaluation)
    if tokenizer is None:
        tokenizer = _build_tokenizer(found.train, train_scan, context, bpe_vocab_size)

    feed: Feed
    if args.streaming:
        packer, workers = Packer(tokenizer, args.text_column, context), args.dataloader_num_workers or 0
        feed = StreamFeed(found.stream, packer, seed, args.shuffle_buffer_size, workers, args.max_train_samples)
    else:
        tokens = tokenize(found.train, train_scan, tokenizer)
        if len(tokens) <= context:
            raise ValueError(
                f"The text of {found.train.name} must be longer than a context of {context} tokens, got {len(tokens)} "
                "tokens. Use more text or a smaller --max_position_embeddings."
            )
        feed = TokenFeed(tokens, context, seed)

    eval_tokens = tokenize(found.evaluation, eval_scan, tokenizer)
    if len(eval_tokens) < 2:
        raise ValueError(
            f"The text of {found.evaluation.name} must have at least 2 tokens, as the first one is not predicted, got "
            f"{len(eval_tokens)}. Use more text or another --eval_split."
        )
    characters, size = eval_scan.characters / len(eval_tokens), eval_scan.bytes / len(eval_tokens)
    return TextData(feed, eval_tokens, tokenizer, context, characters, size, name, found.eval_split, args.version)


def _build_tokenizer(corpus: Corpus, counts: CorpusScan, context: int, bpe_vocab_size: int | None) -> Any:
    if bpe_vocab_size is None:
        return build_character_tokenizer(counts.alphabet, model_max_length=context)
    tokenizer = build_bpe_tokenizer((piece.text for piece in corpus.pieces()), bpe_vocab_size, context)
    if len(tokenizer) < bpe_vocab_size:
        logger.warning(
            "The text of %s has pairs for only %d tokens, instead of --train_bpe %d.", corpus.name, len(tokenizer),
            bpe_vocab_size,
        )  # fmt: skip
    return tokenizer


@dataclass
class _Split:
    """The documents to train and to evaluate on.

    Attributes:
        train: All of them or, of a stream, those that the tokenizer is built from.
        evaluation: Documents of `eval_split`.
        eval_split: A split of the dataset, or which part of one was held out.
        in_memory: Whether to hold the tokens, or to map them from a file.
        stream: The stream to train on, if it is one.
    """

    train: Corpus
    evaluation: Corpus
    eval_split: str
    in_memory: bool = True
    stream: Any = None


def _split_text(splits: dict[str, Any], name: str, args: DataArguments) -> _Split:
    train, eval_split = find_split(splits, args.train_split, "--train_split"), find_eval_split(splits, args)
    train_name, eval_name = f"{name} ({args.train_split})", f"{name} ({eval_split})"
    source = _source(train, args.text_column, train_name)
    num_bytes = source.num_bytes
    held_for_eval = None if eval_split is None else find_split(splits, eval_split, "--eval_split")
    if held_for_eval is not None:
        num_bytes += _source(held_for_eval, args.text_column, eval_name).num_bytes
    in_memory = fits_in_memory(4 * num_bytes, args.in_memory)  # at most one token per byte, 4 bytes per token
    if eval_split is None:
        total = (scan if in_memory else cached_scan)(Corpus(source, train_name)).characters
        cut = int(0.9 * total)  # the usual split of tiny Shakespeare
        eval_split = f"last 10 % of {args.train_split}"
        corpus = Corpus(source, train_name, stop=cut, max_documents=args.max_train_samples)
        evaluation = Corpus(source, f"{name} ({eval_split})", start=cut, max_documents=args.max_eval_samples)
        return _Split(corpus, evaluation, eval_split, in_memory)
    source = _source(limited(train, args.max_train_samples), args.text_column, train_name)
    eval_source = _source(limited(held_for_eval, args.max_eval_samples), args.text_column, eval_name)
    return _Split(Corpus(source, train_name), Corpus(eval_source, eval_name), eval_split, in_memory)


def _split_stream(splits: dict[str, Any], name: str, args: DataArguments) -> _Split:
    train, eval_split = find_split(splits, args.train_split, "--train_split"), find_eval_split(splits, args)
    train_name = f"{name} ({args.train_split})"
    _check_column(train, args.text_column, train_name)
    if eval_split is None:
        train, evaluation, eval_split = hold_out(train, args.text_column, args.train_split)
    else:
        evaluation = find_split(splits, eval_split, "--eval_split")
    eval_name = f"{name} ({eval_split})"
    _check_column(evaluation, args.text_column, eval_name)
    start = _read(train, min(TOKENIZER_TEXTS, args.max_train_samples or TOKENIZER_TEXTS), args.text_column)
    eval_texts = _read(evaluation, args.max_eval_samples or MAX_STREAMED_EVAL_TEXTS, args.text_column)
    return _Split(Corpus(start, train_name), Corpus(eval_texts, eval_name), eval_split, stream=train)


def _read(stream: Any, count: int, column: str) -> Column:
    import datasets

    texts = [_checked(row[column], column) for row in stream.take(count)]
    return Column(datasets.Dataset.from_dict({column: texts}), column)


def _checked(document: Any, column: str) -> str:
    """A document of a stream, whose columns may hold anything; "" for None. Raises ValueError if it is no text."""
    if document is None or isinstance(document, str):
        return document or ""
    raise ValueError(
        f"The column {column!r} must hold text, got {type(document).__name__}. Name another one with --text_column."
    )


def _source(split: Any, column: str, name: str) -> TextFiles | Column:
    _check_column(split, column, name)
    return split if isinstance(split, TextFiles) else Column(split, column)


def _check_column(dataset: Any, column: str, name: str) -> None:
    """Raises ValueError unless the column is there and holds text."""
    if isinstance(dataset, TextFiles):
        kinds: dict[str, str] = dict.fromkeys(dataset.features, "text")
    elif dataset.features:
        kinds = {key: _kind_of_feature(feature) for key, feature in dataset.features.items()}
    else:
        kinds = {key: _kind_of_value(value) for key, value in first_example(dataset, name).items()}
    if column not in kinds:
        raise ValueError(
            f"--text_column must be a column of {name} ({', '.join(kinds)}), got {column!r}. Name the one with the "
            "text."
        )
    if kinds[column] != "text":
        others = ", ".join(key for key, kind in kinds.items() if kind == "text")
        advice = f"Name one that does: {others}" if others else "None does: write a column of text first"
        raise ValueError(
            f"--text_column must name a column of {name} that holds text, got {column!r}, which holds "
            f"{kinds[column]}. {advice}."
        )


def _kind_of_feature(feature: Any) -> str:
    dtype = str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else ""
    if dtype in ("string", "large_string", "string_view", "null"):
        return "text"
    if dtype:
        return f"values of type {dtype}"
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
    if isinstance(inner, dict) and {"role", "content"} <= inner.keys():
        return "chats (lists of messages)"
    if isinstance(feature, dict):
        return f"dicts ({', '.join(feature)})"
    return "lists" if inner is not None else f"values of type {type(feature).__name__}"


def _kind_of_value(value: Any) -> str:
    return "text" if value is None or isinstance(value, str) else f"values of type {type(value).__name__}"


def _hold_tokens(corpus: Corpus, counts: CorpusScan, tokenizer: Any) -> HeldTokens:
    """As [`map_tokens`], in memory. A single document gets no end-of-text token."""
    documents = corpus.documents()
    return HeldTokens(encode_corpus(tokenizer, documents[0] if counts.documents == 1 else documents))


class Packer:
    """Documents -> batches of windows: tokenized, each closed by the end-of-text token, and joined.

    Batches are cut out of one run of tokens, so every token is predicted once. A class rather than a closure so that
    workers can be sent a copy.
    """

    def __init__(self, tokenizer: Any, column: str, context: int):
        self.tokenizer, self.column, self.context = tokenizer, column, context

    def __call__(self, examples: ShuffledExamples, batch_size: int, state: State) -> Iterator[tuple[Batch, State]]:
        """Yields batches, each with the state after it.

        The state is the position before the chunk in which the next batch begins, and how many of the chunk's tokens
        come before that. So a resumed run tokenizes the same documents together.
        """
        step = batch_size * self.context
        tokens = np.empty(0, np.int64)
        chunks: list[tuple[State, int]] = []  # of the tokens at hand: the position before each, and where it starts
        used = state.get("tokens", 0)
        for position, documents in self._chunks(examples):
            chunks.append((position, len(tokens) - used))
            read = encode_corpus(self.tokenizer, documents).astype(np.int64)
            tokens, used = np.concatenate([tokens, read[used:]]), 0
            while len(tokens) > step:
                windows = torch.from_numpy(tokens[: step + 1])
                inputs, labels = windows[:-1].view(batch_size, -1), windows[1:].view(batch_size, -1)
                tokens = tokens[step:]
                chunks = [(position, start - step) for position, start in chunks]
                chunks = chunks[sum(start <= 0 for _, start in chunks) - 1 :]
                position, start = chunks[0]
                yield {"input_ids": inputs.clone(), "labels": labels.clone()}, {**position, "tokens": -start}

    def _chunks(self, examples: ShuffledExamples) -> Iterator[tuple[State, list[str]]]:
        """Yields chunks of documents, each with the examples' position before it."""
        position, documents, size = examples.position, [], 0
        for example in examples:
            document = _checked(example[self.column], self.column)
            if document:
                documents.append(document)
                size += len(document)
            if size >= CHUNK_CHARACTERS:
                yield position, documents
                position, documents, size = examples.position, [], 0


@dataclass
class TextData:
    """A text, tokenized.

    Attributes:
        train: Endless windows of `input_ids` and the `labels` that follow them, int64 (batch, context).
        eval_tokens: Those of the evaluation split; each but the first is predicted once.
        tokenizer: Built from the training text, or the one that came with the model.
        context: Tokens per window.
        characters_per_token: Of the evaluation split. Nats per token divided by it are nats per character.
        bytes_per_token: Likewise, for the bytes of UTF-8.
        name, eval_split, revision: What results.json and the card call the data.
    """

    train: Feed
    eval_tokens: Tokens
    tokenizer: Any
    context: int
    characters_per_token: float
    bytes_per_token: float
    name: str
    eval_split: str
    revision: str | None = None

    def describe(self) -> dict[str, str | None]:
        """The data that was evaluated on, as results.json and the card name it."""
        return {"dataset": self.name, "dataset_revision": self.revision, "split": self.eval_split}

    def eval_batches(self, batch_size: int, device: torch.device, limit: int | None = None) -> Iterator[Batch]:
        """Yields windows without overlap, all or `limit` of them, evenly spread.

        The last one is padded with the label -100, which losses ignore.
        """
        windows = -(-(len(self.eval_tokens) - 1) // self.context)
        for chosen in evenly_spread(windows, limit).split(batch_size):
            input_ids = torch.zeros(len(chosen), self.context, dtype=torch.long)
            labels = torch.full_like(input_ids, -100)
            for row, window in enumerate(chosen.tolist()):
                start = window * self.context
                tokens = self.eval_tokens[start : start + self.context + 1].long()
                input_ids[row, : len(tokens) - 1], labels[row, : len(tokens) - 1] = tokens[:-1], tokens[1:]
            yield {"input_ids": input_ids.to(device), "labels": labels.to(device)}
