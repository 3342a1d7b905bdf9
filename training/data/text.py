"""Datasets of text, made ready to train on: found, cut, tokenized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfgen.tokenization import build_character_tokenizer, encode_corpus

from ..config.flags import DataArguments
from .batches import Batch, Feed, fits_in_memory
from .corpus import Column, Corpus, TextFiles, scan
from .feeds import TokenFeed, Tokens
from .mapped_tokens import map_tokens
from .sources import find_eval_split, find_split, find_text_files, first_example, hold_out, limited, load_splits
from .streams import ShuffledExamples, State, StreamFeed


MAX_STREAMED_EVAL_TEXTS = 1000
TOKENIZER_TEXTS = 1000
CHUNK_CHARACTERS = 1 << 12  # a tokenizer costs less a character when it has many


def load_text(args: DataArguments, seed: int, context: int, tokenizer: Any = None) -> TextData:
    """Finds a text, builds a character tokenizer from its training part unless one is given, and tokenizes it.

    Where the dataset has no split to measure on, the last tenth of the characters is held out. A text that is streamed
    is tokenized and packed while training; its tokenizer knows the characters of the first documents, and spells
    others in bytes. One that does not fit in memory is tokenized once into a mapped file, to the same tokens (but see
    [`TextFiles`] for tokenizers that merge characters).

    Args:
        args: the flags that name it.
        seed: the order of examples derives from it.
        context: tokens in a window.
        tokenizer: None to build one.

    Raises:
        ValueError: the text is not there, is empty, or is shorter than the context.
    """
    name = args.dataset_name or "python-docs"
    splits = _find_files(name, args) or load_splits(name, args)
    train = find_split(splits, args.train_split, "--train_split")
    eval_name = find_eval_split(splits, args)
    if args.streaming:
        return _stream_text(args, name, splits, train, eval_name, seed, context, tokenizer)
    if not _fits_in_memory([train, *([splits[eval_name]] if eval_name else [])], args, name):
        return _map_text(args, name, splits, train, eval_name, seed, context, tokenizer)
    if eval_name is None:
        train_documents, eval_documents = _cut(_documents(train, args, f"{name} ({args.train_split})"))
        eval_name = f"last 10 % of {args.train_split}"
        train_documents = train_documents[: args.max_train_samples]
        eval_documents = eval_documents[: args.max_eval_samples]
    else:
        train_documents = _documents(limited(train, args.max_train_samples), args, f"{name} ({args.train_split})")
        eval_documents = _documents(limited(splits[eval_name], args.max_eval_samples), args, f"{name} ({eval_name})")
    if tokenizer is None:
        tokenizer = build_character_tokenizer(train_documents, model_max_length=context)
    train_tokens = encode_corpus(tokenizer, _unwrap_single(train_documents))
    feed = _token_feed(train_tokens, context, seed, f"{name} ({args.train_split})")
    return _text_data(feed, eval_documents, tokenizer, context, name, eval_name, args)


def _token_feed(tokens: Tokens, context: int, seed: int, name: str) -> TokenFeed:
    if len(tokens) < context + 1:
        raise ValueError(
            f"The text of {name} has {len(tokens)} tokens, fewer than a context of {context} tokens and the one after "
            "it. Use more text or a smaller --max_position_embeddings."
        )
    return TokenFeed(tokens, context, seed)


def _find_files(name: str, args: DataArguments) -> dict[str, TextFiles] | None:
    """The one split of a text file or a folder of them that is not to be held in memory; else None."""
    paths = None if args.streaming else find_text_files(name, args)
    files = TextFiles(tuple(paths or ()))
    return {"train": files} if paths and not _fits_in_memory([files], args, name) else None


def _fits_in_memory(splits: list[Any], args: DataArguments, name: str) -> bool:
    """Whether the tokens do, at 4 bytes each; a byte of text is counted as a token, which is the most it can be."""
    sources = [_source(split, args, name) for split in splits]
    return fits_in_memory(4 * sum(source.num_bytes for source in sources), args.in_memory)


def _source(split: Any, args: DataArguments, name: str) -> TextFiles | Column:
    _check_column(split, args, name)
    return split if isinstance(split, TextFiles) else Column(split, args.text_column)


def _map_text(args: DataArguments, name: str, splits: dict[str, Any], train: Any, eval_name: str | None, seed: int,
              context: int, tokenizer: Any) -> TextData:  # fmt: skip
    train_name = f"{name} ({args.train_split})"
    if eval_name is None:
        source = _source(train, args, train_name)
        cut = int(0.9 * scan(Corpus(source, train_name)).characters)
        eval_name = f"last 10 % of {args.train_split}"
        train_corpus = Corpus(source, train_name, stop=cut, max_documents=args.max_train_samples)
        eval_corpus = Corpus(source, f"{name} ({eval_name})", start=cut, max_documents=args.max_eval_samples)
    else:
        evaluation = limited(splits[eval_name], args.max_eval_samples)
        train_corpus = Corpus(_source(limited(train, args.max_train_samples), args, train_name), train_name)
        eval_corpus = Corpus(_source(evaluation, args, name), f"{name} ({eval_name})")
    found, eval_found = scan(train_corpus), scan(eval_corpus)
    for corpus, counts in ((train_corpus, found), (eval_corpus, eval_found)):
        if not counts.documents:
            raise ValueError(f"{corpus.name} has no text. Check --dataset_name, its splits and --text_column.")
    if tokenizer is None:
        tokenizer = build_character_tokenizer(found.alphabet, model_max_length=context)
    feed = _token_feed(map_tokens(train_corpus, found, tokenizer), context, seed, train_name)
    eval_tokens = map_tokens(eval_corpus, eval_found, tokenizer)
    return _measured_on(
        feed, eval_tokens, eval_found.characters, tokenizer, context, name, eval_name, args.dataset_revision
    )


def _stream_text(args: DataArguments, name: str, splits: dict[str, Any], train: Any, eval_name: str | None, seed: int,
                 context: int, tokenizer: Any) -> TextData:  # fmt: skip
    _check_column(train, args, f"{name} ({args.train_split})")
    if eval_name is None:
        train, evaluation, eval_name = hold_out(train, args.text_column, args.train_split)
    else:
        evaluation = splits[eval_name]
    evaluation = limited(evaluation, args.max_eval_samples or MAX_STREAMED_EVAL_TEXTS)
    eval_documents = _documents(evaluation, args, f"{name} ({eval_name})")
    if tokenizer is None:
        count = min(TOKENIZER_TEXTS, args.max_train_samples or TOKENIZER_TEXTS)
        documents = _documents(train.take(count), args, f"{name} ({args.train_split})")
        tokenizer = build_character_tokenizer(documents, model_max_length=context)
    packer = Packer(tokenizer, args.text_column, context)
    workers = args.dataloader_num_workers or 0
    feed = StreamFeed(train, packer, seed, args.shuffle_buffer_size, workers, args.max_train_samples)
    return _text_data(feed, eval_documents, tokenizer, context, name, eval_name, args)


def _text_data(feed: TokenFeed | StreamFeed, eval_documents: list[str], tokenizer: Any, context: int, name: str,
               eval_name: str, args: DataArguments) -> TextData:  # fmt: skip
    eval_tokens = encode_corpus(tokenizer, _unwrap_single(eval_documents))
    characters = sum(map(len, eval_documents))
    return _measured_on(feed, eval_tokens, characters, tokenizer, context, name, eval_name, args.dataset_revision)


def _measured_on(feed: TokenFeed | StreamFeed, eval_tokens: Tokens, characters: int, tokenizer: Any, context: int,
                 name: str, eval_name: str, revision: str | None) -> TextData:  # fmt: skip
    if len(eval_tokens) < 2:
        raise ValueError(
            f"The text of {name} ({eval_name}) has {len(eval_tokens)} token(s): at least two are needed to predict "
            "one. Use more text, or another --eval_split."
        )
    characters_per_token = characters / len(eval_tokens)
    return TextData(feed, eval_tokens, tokenizer, context, characters_per_token, name, eval_name, revision)


class Packer:
    """Documents -> batches of windows: tokenized, each closed by the end-of-text token, and joined.

    A batch is cut out of one run of tokens, and every token is predicted once. A class, not a closure, so that workers
    can be sent a copy.
    """

    def __init__(self, tokenizer: Any, column: str, context: int):
        self.tokenizer, self.column, self.context = tokenizer, column, context

    def __call__(self, examples: ShuffledExamples, batch_size: int, state: State) -> Iterator[tuple[Batch, State]]:
        """Batches, each with the state after it: where the chunk begins in which the next batch does, and how many of
        that chunk's tokens come before it. So the same documents are tokenized together when a run is resumed."""
        step = batch_size * self.context
        tokens = np.empty(0, np.int64)
        chunks: list[tuple[State, int]] = []  # of the tokens at hand: the examples' position before it, and its start
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
        """Documents, some at a time, and the examples' position before them."""
        position, documents, size = examples.position, [], 0
        for example in examples:
            if example[self.column]:
                documents.append(example[self.column])
                size += len(documents[-1])
            if size >= CHUNK_CHARACTERS:
                yield position, documents
                position, documents, size = examples.position, [], 0


def _documents(dataset: Any, args: DataArguments, name: str) -> list[str]:
    """The texts that are not empty.

    Raises:
        ValueError: there is no such column, or no text.
    """
    _check_column(dataset, args, name)
    documents = [row[args.text_column] for row in dataset]
    documents = [document for document in documents if document]
    if not documents:
        raise ValueError(f"{name} has no text. Check --dataset_name, its splits and --text_column.")
    return documents


def _check_column(dataset: Any, args: DataArguments, name: str) -> None:
    columns = list(dataset.features or first_example(dataset, name))
    if args.text_column not in columns:
        raise ValueError(
            f"{name} has no column {args.text_column!r}; it has {', '.join(columns)}. Name the one with the text with "
            "--text_column."
        )


def _unwrap_single(documents: list[str]) -> str | list[str]:
    """One document is a text that no token closes."""
    return documents[0] if len(documents) == 1 else documents


def _cut(documents: list[str]) -> tuple[list[str], list[str]]:
    """The first 90 % of the characters to train on, the rest to measure on: the usual cut of tiny Shakespeare."""
    cut = int(0.9 * sum(map(len, documents)))
    train, evaluation = [], []
    for document in documents:
        train.append(document[: max(0, cut)])
        evaluation.append(document[max(0, cut) :])
        cut -= len(document)
    return [part for part in train if part], [part for part in evaluation if part]


@dataclass
class TextData:
    """A text, tokenized.

    Attributes:
        train: endless windows of `input_ids` and the `labels` that follow them.
        eval_tokens: (tokens,) of the evaluation split, each but the first predicted once.
        tokenizer: built from the training text, or the one that came with the model.
        context: tokens in a window.
        characters_per_token: of the evaluation split; nats per token over it are nats per character.
        name, eval_split, revision: what results.json and the card call the data.
    """

    train: Feed
    eval_tokens: Tokens
    tokenizer: Any
    context: int
    characters_per_token: float
    name: str
    eval_split: str
    revision: str | None = None

    def describe(self) -> dict[str, Any]:
        return {"dataset": self.name, "dataset_revision": self.revision, "split": self.eval_split}

    def eval_batches(self, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """Windows without overlap; the last one is filled up with the label -100, which counts for nothing."""
        predicted = len(self.eval_tokens) - 1
        windows = -(-predicted // self.context)
        for first in range(0, windows, batch_size):
            rows = min(batch_size, windows - first)
            start = first * self.context
            count = min(rows * self.context, predicted - start)
            tokens = torch.from_numpy(self.eval_tokens[start : start + count + 1].astype(np.int64))
            input_ids = torch.zeros(rows * self.context, dtype=torch.long)
            labels = torch.full((rows * self.context,), -100)
            input_ids[:count], labels[:count] = tokens[:-1], tokens[1:]
            yield {"input_ids": input_ids.view(rows, -1).to(device), "labels": labels.view(rows, -1).to(device)}
