"""Examples: found, checked and handed out in an order that depends on the seed alone.

Everything is read through `datasets`. A dataset that fits is held as one uint8 tensor (or one array of tokens), which
is indexed and scaled on the device: many times faster than a DataLoader. What does not fit is decoded by workers, or
streamed.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hfgen.image_processing import to_pixel_values
from training.arguments import DataArguments
from training.randomness import derive_seed


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py"}
IN_MEMORY_BYTES = 2 * 10**9
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Share:
    """Which part of a global batch this process works on.

    A global batch of `batch_size * accumulation * processes` examples is laid out micro-step by micro-step, and within a
    micro-step process by process.
    """

    batch_size: int
    accumulation: int = 1
    rank: int = 0
    processes: int = 1

    @property
    def total(self) -> int:
        """Examples in the global batch."""
        return self.batch_size * self.accumulation * self.processes

    def rows(self, micro_step: int) -> slice:
        """This process's rows of the global batch in a micro-step."""
        start = (micro_step * self.processes + self.rank) * self.batch_size
        return slice(start, start + self.batch_size)


class Feed(Protocol):
    """Training examples without end.

    Attributes:
        num_examples: examples in an epoch, None where a stream does not tell.
    """

    num_examples: int | None

    def batches(self, first_step: int, share: Share, device: torch.device) -> Iterator[Batch]:
        """Micro-batches from a step on: this process's rows, on the device."""
        ...


class EpochOrder:
    """The order of examples: permutations without end, one an epoch, cut into global batches.

    A batch may span two epochs, so that every example is used equally often whatever the batch size.
    """

    def __init__(self, num_examples: int, seed: int):
        self.num_examples = num_examples
        self.seed = seed
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.long)

    def epoch(self, number: int) -> Tensor:
        """The permutation of an epoch, (num_examples,)."""
        if number != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", number))
            self._permutation = torch.randperm(self.num_examples, generator=generator)
            self._epoch = number
        return self._permutation

    def positions(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """(epoch, examples) for positions start to stop of the endless sequence: one part, or one for each epoch."""
        while start < stop:
            epoch, offset = divmod(start, self.num_examples)
            part = self.epoch(epoch)[offset : offset + stop - start]
            yield epoch, part
            start += len(part)

    def micro_batches(self, first_step: int, share: Share) -> Iterator[list[tuple[int, Tensor]]]:
        """This process's part of every micro-step from a step on."""
        step = first_step
        while True:
            for micro_step in range(share.accumulation):
                rows = share.rows(micro_step)
                yield list(self.positions(step * share.total + rows.start, step * share.total + rows.stop))
            step += 1


class TensorFeed:
    """Images (and labels) of a dataset that is held in memory, in the device's memory if it is one with its own."""

    def __init__(self, pixels: Tensor, labels: Tensor | None, seed: int):
        self.pixels, self.labels = pixels, labels
        self.num_examples: int | None = len(pixels)
        self.order = EpochOrder(len(pixels), seed)

    def batches(self, first_step: int, share: Share, device: torch.device) -> Iterator[Batch]:
        pixels = self.pixels.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        for parts in self.order.micro_batches(first_step, share):
            index = torch.cat([examples for _, examples in parts]).to(device, non_blocking=True)
            yield image_batch(pixels[index], None if labels is None else labels[index])


class TokenFeed:
    """Windows of a text: every epoch cuts it anew at a random offset, so that a token meets every position."""

    def __init__(self, tokens: np.ndarray, context: int, seed: int):
        self.tokens, self.context, self.seed = tokens, context, seed
        # One window less than would fit, as the offset moves all of them by up to a window.
        self.num_examples: int | None = max(1, (len(tokens) - 1) // context - 1)
        self.order = EpochOrder(self.num_examples, seed)

    def batches(self, first_step: int, share: Share, device: torch.device) -> Iterator[Batch]:
        tokens = torch.from_numpy(self.tokens.astype(np.int32)).to(device)
        window = torch.arange(self.context + 1, device=device)
        slack = len(self.tokens) - 1 - int(self.num_examples or 0) * self.context
        for parts in self.order.micro_batches(first_step, share):
            starts = []
            for epoch, examples in parts:
                generator = torch.Generator().manual_seed(derive_seed(self.seed, "offset", epoch))
                offset = int(torch.randint(slack + 1, (), generator=generator))
                starts.append(examples * self.context + offset)
            windows = tokens[torch.cat(starts).to(device)[:, None] + window].long()
            yield {"input_ids": windows[:, :-1].contiguous(), "labels": windows[:, 1:].contiguous()}


class DatasetFeed:
    """Images that do not fit in memory: decoded by DataLoader workers, in the same order that memory would give."""

    def __init__(self, dataset: Any, decode: Callable[[dict[str, list]], Batch], seed: int, num_workers: int):
        self.dataset, self.decode, self.num_workers = dataset, decode, num_workers
        self.num_examples: int | None = len(dataset)
        self.order = EpochOrder(len(dataset), seed)

    def batches(self, first_step: int, share: Share, device: torch.device) -> Iterator[Batch]:
        indices = (
            torch.cat([examples for _, examples in parts]).tolist()
            for parts in self.order.micro_batches(first_step, share)
        )
        loader = torch.utils.data.DataLoader(
            _DecodedRows(self.dataset, self.decode),
            sampler=indices,  # type: ignore[arg-type]  # each "index" is a whole batch: fetched and decoded at once
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=device.type == "cuda",
        )
        for batch in loader:
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            yield image_batch(batch["pixels"], batch.get("labels"))


class _DecodedRows(torch.utils.data.Dataset):
    def __init__(self, dataset: Any, decode: Callable[[dict[str, list]], Batch]):
        self.dataset, self.decode = dataset, decode

    def __getitem__(self, rows: list[int]) -> Batch:
        return self.decode(self.dataset[rows])


class StreamFeed:
    """A dataset read while training: shards are split over processes, examples shuffled within a buffer.

    After a resume the stream is read from the start of the epoch and what was used is skipped: slower than a restart
    but exact.
    """

    def __init__(self, dataset: Any, to_batches: Callable[[Iterator[dict], int], Iterator[Batch]], seed: int, buffer: int):
        self.dataset, self.to_batches, self.seed, self.buffer = dataset, to_batches, seed, buffer
        self.num_examples: int | None = None

    def batches(self, first_step: int, share: Share, device: torch.device) -> Iterator[Batch]:
        from datasets.distributed import split_dataset_by_node

        dataset = self.dataset.shuffle(seed=derive_seed(self.seed, "stream") % 2**32, buffer_size=self.buffer)
        if share.processes > 1:
            dataset = split_dataset_by_node(dataset, share.rank, share.processes)

        def examples() -> Iterator[dict]:
            epoch = 0
            while True:
                dataset.set_epoch(epoch)
                read = 0
                for read, example in enumerate(dataset, start=1):  # noqa: B007
                    yield example
                if not read:
                    raise ValueError(
                        f"Process {share.rank} found no example in the stream: it has fewer shards or examples than "
                        f"the {share.processes} processes. Use fewer processes, or more shards."
                    )
                epoch += 1

        batches = self.to_batches(examples(), share.batch_size)
        for _ in range(first_step * share.accumulation):
            next(batches)
        for batch in batches:
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            yield image_batch(batch["pixels"], batch.get("labels")) if "pixels" in batch else batch


def image_batch(pixels: Tensor, labels: Tensor | None) -> Batch:
    """uint8 pixels -> pixel_values in [0, 1], the contract of every model."""
    batch = {"pixel_values": pixels.float().div_(255)}
    if labels is not None:
        batch["labels"] = labels
    return batch


@dataclass
class ImageData:
    """A dataset of images, ready to train on.

    Attributes:
        train: endless training batches with `pixel_values` and, where the dataset has them, `labels`.
        eval_pixels: uint8 (examples, channels, height, width), each measured once.
        eval_labels: (examples,) or None.
        image_size: (height, width).
        num_channels: 1 or 3.
        label_names: the classes, empty where there are none.
        name, eval_split, revision: what results.json and the card call the data.
    """

    train: Feed
    eval_pixels: Tensor
    eval_labels: Tensor | None
    image_size: tuple[int, int]
    num_channels: int
    label_names: list[str]
    name: str
    eval_split: str
    revision: str | None = None

    def eval_batches(self, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """Every evaluation example once."""
        for start in range(0, len(self.eval_pixels), batch_size):
            rows = slice(start, start + batch_size)
            labels = None if self.eval_labels is None else self.eval_labels[rows].to(device)
            yield image_batch(self.eval_pixels[rows].to(device), labels)


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
    eval_tokens: np.ndarray
    tokenizer: Any
    context: int
    characters_per_token: float
    name: str
    eval_split: str
    revision: str | None = None

    def eval_batches(self, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """Windows without overlap; the last one is filled up with the label -100, which counts for nothing."""
        tokens = torch.from_numpy(self.eval_tokens.astype(np.int64))
        windows = -(-(len(tokens) - 1) // self.context)
        input_ids = torch.zeros(windows * self.context, dtype=torch.long)
        labels = torch.full((windows * self.context,), -100)
        input_ids[: len(tokens) - 1], labels[: len(tokens) - 1] = tokens[:-1], tokens[1:]
        for start in range(0, windows, batch_size):
            rows = slice(start, start + batch_size)
            yield {
                "input_ids": input_ids.view(windows, -1)[rows].to(device),
                "labels": labels.view(windows, -1)[rows].to(device),
            }


def load_images(
    args: DataArguments,
    seed: int,
    image_size: list[int] | None = None,
    num_channels: int | None = None,
) -> ImageData:
    """Finds a dataset of images and makes it ready to train on.

    Args:
        args: the flags that name it.
        seed: the order of examples derives from it.
        image_size: (height, width) or (side,) to resize to; all images must have one size when None.
        num_channels: 1 or 3 to convert to; that of the first image when None, and then of all images.

    Raises:
        ValueError: the dataset, split or column is not there, or its images are not of one kind; the message says what
            to do.
    """
    name = args.dataset_name or "digits"
    splits = _load_splits(name, args)
    train, evaluation, eval_split = _train_and_eval(splits, args)
    column = _image_column(train, args.image_column, name)
    label_column, label_names = _label_column(train, args.label_column)
    size = None if image_size is None else (image_size[0], image_size[-1])
    if num_channels is None or size is None:
        first = _first(train, name)[column]
        num_channels = num_channels or (1 if first.mode in ("1", "L", "I;16") else 3)
        strict = size is None
        size = size or (first.height, first.width)
    else:
        strict = False
    decode = _ImageDecoder(column, label_column, num_channels, size, strict, name)
    eval_pixels, eval_labels = _decode_all(_limited(evaluation, args.max_eval_samples), decode, f"{name} ({eval_split})")
    train = _limited(train, args.max_train_samples)
    feed: Feed
    if args.streaming:
        feed = StreamFeed(_undecoded(train, column), decode.stream, seed, args.shuffle_buffer_size)
    else:
        needed = len(train) * num_channels * size[0] * size[1]
        if needed < IN_MEMORY_BYTES if args.in_memory is None else args.in_memory:
            feed = TensorFeed(*_decode_all(train, decode, f"{name} ({args.train_split})"), seed)
        else:
            feed = DatasetFeed(_undecoded(train, column), decode, seed, args.dataloader_num_workers)
    return ImageData(
        feed, eval_pixels, eval_labels, size, num_channels, label_names, name, eval_split, args.dataset_revision
    )


def load_text(args: DataArguments, seed: int, context: int, tokenizer: Any = None) -> TextData:
    """Finds a text, builds a character tokenizer from its training part unless one is given, and tokenizes it.

    Raises:
        ValueError: the text is not there, is empty, or is shorter than the context.
    """
    from hfgen.tokenization import build_character_tokenizer, encode_corpus

    name = args.dataset_name or "python-docs"
    if args.streaming:
        return _stream_text(args, name, seed, context, tokenizer)
    splits = _load_splits(name, args)
    if len(splits) == 1 and args.eval_split is None:
        documents = _documents(splits[args.train_split] if args.train_split in splits else _missing_split(splits, args), args)
        train_documents, eval_documents = _cut_text(documents)
        eval_split = f"last 10 % of {args.train_split}"
    else:
        train, evaluation, eval_split = _train_and_eval(splits, args)
        train_documents = _documents(_limited(train, args.max_train_samples), args)
        eval_documents = _documents(_limited(evaluation, args.max_eval_samples), args)
    train_text: Any = train_documents[0] if len(train_documents) == 1 else train_documents
    eval_text: Any = eval_documents[0] if len(eval_documents) == 1 else eval_documents
    if tokenizer is None:
        tokenizer = build_character_tokenizer(train_text, model_max_length=context)
    train_tokens, eval_tokens = encode_corpus(tokenizer, train_text), encode_corpus(tokenizer, eval_text)
    for split, tokens in ((args.train_split, train_tokens), (eval_split, eval_tokens)):
        if len(tokens) < context + 1:
            raise ValueError(
                f"The text of {name} ({split}) has {len(tokens)} tokens, fewer than a context of {context} tokens and the "
                "one after it. Use more text or a smaller --max_position_embeddings."
            )
    characters = sum(map(len, eval_documents))
    return TextData(
        TokenFeed(train_tokens, context, seed), eval_tokens, tokenizer, context,
        characters / len(eval_tokens), name, eval_split, args.dataset_revision,
    )  # fmt: skip


def _stream_text(args: DataArguments, name: str, seed: int, context: int, tokenizer: Any) -> TextData:
    """Tokenizes and packs while training. The tokenizer's alphabet is that of the first documents; other characters
    are spelled in bytes."""
    from hfgen.tokenization import build_character_tokenizer, encode_corpus

    splits = _load_splits(name, args)
    train = splits.get(args.train_split) or _missing_split(splits, args)
    eval_split = args.eval_split or next((s for s in ("test", "validation", "valid") if s in splits), None)
    if eval_split not in splits:
        held_out = args.max_eval_samples or 100
        evaluation, train, eval_split = train.take(held_out), train.skip(held_out), f"first documents of {args.train_split}"
    else:
        evaluation = splits[eval_split].take(args.max_eval_samples or 1000)
    eval_documents = _documents(evaluation, args)
    if tokenizer is None:
        tokenizer = build_character_tokenizer(_documents(train.take(1000), args), model_max_length=context)
    eval_tokens = encode_corpus(tokenizer, eval_documents)
    if len(eval_tokens) < context + 1:
        raise ValueError(
            f"The text of {name} ({eval_split}) has {len(eval_tokens)} tokens, fewer than a context of {context} tokens "
            "and the one after it. Use more text or a smaller --max_position_embeddings."
        )

    def pack(examples: Iterator[dict], batch_size: int) -> Iterator[Batch]:
        tokens: list[np.ndarray] = []
        count, needed = 0, batch_size * context + 1
        for example in examples:
            tokens.append(encode_corpus(tokenizer, [example[args.text_column]]))
            count += len(tokens[-1])
            if count < needed:
                continue
            stream = np.concatenate(tokens).astype(np.int64)
            while len(stream) >= needed:
                windows = torch.from_numpy(stream[:needed])
                yield {"input_ids": windows[:-1].view(batch_size, -1), "labels": windows[1:].view(batch_size, -1)}
                stream = stream[needed - 1 :]
            tokens, count = [stream], len(stream)

    feed = StreamFeed(train, pack, seed, args.shuffle_buffer_size)
    characters = sum(map(len, eval_documents))
    return TextData(feed, eval_tokens, tokenizer, context, characters / len(eval_tokens), name, eval_split,
                    args.dataset_revision)  # fmt: skip


class _ImageDecoder:
    """Rows of a dataset -> uint8 pixels and labels. A class, not a closure, so that workers can be sent a copy."""

    def __init__(self, column: str, label_column: str | None, num_channels: int, size: tuple[int, int], strict: bool,
                 name: str):  # fmt: skip
        self.column, self.label_column, self.name = column, label_column, name
        self.num_channels, self.size, self.strict = num_channels, size, strict

    def __call__(self, rows: dict[str, list]) -> Batch:
        if self.strict:
            self._check_kinds(rows[self.column])
        pixels = to_pixel_values(rows[self.column], self.num_channels, None if self.strict else self.size)
        batch = {"pixels": pixels}
        if self.label_column:
            batch["labels"] = torch.tensor(rows[self.label_column], dtype=torch.long)
        return batch

    def stream(self, examples: Iterator[dict], batch_size: int) -> Iterator[Batch]:
        while True:
            rows = [next(examples) for _ in range(batch_size)]
            yield self({key: [row[key] for row in rows] for key in (self.column, self.label_column) if key})

    def _check_kinds(self, images: list) -> None:
        """All images must be of the first one's size and kind unless the flags say what to make of them."""
        import io

        from PIL import Image, UnidentifiedImageError

        for position, image in enumerate(images):
            try:
                header = Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"])
            except (UnidentifiedImageError, OSError):
                continue  # to_pixel_values names the image that it cannot read
            if (header.height, header.width) != self.size:
                raise ValueError(
                    f"images: expected one size, found {header.height} x {header.width} (height x width) at position "
                    f"{position} after {self.size[0]} x {self.size[1]}. Give --image_size HEIGHT WIDTH to resize all."
                )
            channels = 1 if header.mode in ("1", "L", "I;16") else 3
            if channels != self.num_channels:
                raise ValueError(
                    f"images: expected one mode, found {header.mode} at position {position} after images of "
                    f"{self.num_channels} channel(s). Give --num_channels 1 or 3 to convert all."
                )


def _decode_all(dataset: Any, decode: _ImageDecoder, what: str) -> tuple[Tensor, Tensor | None]:
    """A whole split as one tensor, decoded in chunks so that only the uint8 pixels are held."""
    dataset = _undecoded(dataset, decode.column)
    rows = dataset.iter(batch_size=1000)
    pixels, labels, done = [], [], 0
    for chunk in rows:
        try:
            batch = decode(chunk)
        except ValueError as error:
            raise ValueError(f"{what}, in examples {done} to {done + len(chunk[decode.column]) - 1}: {error}") from None
        pixels.append(batch["pixels"])
        labels += [batch["labels"]] if "labels" in batch else []
        done += len(batch["pixels"])
    if not done:
        raise ValueError(f"{what} has no examples. Check --train_split, --eval_split and the dataset.")
    return torch.cat(pixels), torch.cat(labels) if labels else None


def _undecoded(dataset: Any, column: str) -> Any:
    """The dataset with image files as bytes: hfgen decodes them, and can then name a corrupt one."""
    from datasets import Image

    return dataset.cast_column(column, Image(decode=False))


def _load_splits(name: str, args: DataArguments) -> dict[str, Any]:
    """Every split of the dataset, through `datasets`, whatever form it has."""
    if name == "digits":
        return _digits()
    if name == "python-docs":
        return _python_docs()
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    path, options = _how_to_load(name)
    try:
        loaded = datasets.load_dataset(
            path, args.dataset_config_name, revision=args.dataset_revision, streaming=args.streaming, **options
        )
    except (DatasetNotFoundError, FileNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"There is no dataset {name!r}: no such local folder or file, and none of that name can be seen on the Hub. "
            "Check the spelling of --dataset_name, log in (hf auth login) for a private dataset, or use the built-ins "
            f"digits and python-docs. ({_one_line(error)})"
        ) from error
    except (ConnectionError, OfflineModeIsEnabled, TimeoutError) as error:
        raise ValueError(
            f"The Hub cannot be reached to load the dataset {name!r} and no copy is in the cache. Check the network, "
            f"give a local folder to --dataset_name, or use the built-ins digits and python-docs. ({_one_line(error)})"
        ) from error
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise ValueError(f"The dataset {name!r} cannot be read: {_one_line(cause)}") from error
    except ValueError as error:
        raise ValueError(
            f"The dataset {name!r} cannot be loaded: {_one_line(error)} Check --dataset_name and --dataset_config_name."
        ) from error
    return dict(loaded)


def _how_to_load(name: str) -> tuple[str, dict[str, Any]]:
    """Path and options of `load_dataset`: text files and folders of images have loaders of their own."""
    path = Path(name)
    if path.is_file():
        if path.suffix.lower() in TEXT_SUFFIXES:
            return "text", {"data_files": {"train": str(path)}, "sample_by": "document"}
        raise ValueError(
            f"--dataset_name {name} is a file whose kind is not known: expected one of "
            f"{', '.join(sorted(TEXT_SUFFIXES))}, a folder, or the name of a dataset."
        )
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        if not files:
            raise ValueError(f"--dataset_name {name} is an empty folder: expected images, text files or a dataset.")
        data_files = {".parquet", ".arrow", ".jsonl", ".json", ".csv"}
        suffixes = {file.suffix.lower() for file in files}
        if suffixes & IMAGE_SUFFIXES and not suffixes & (data_files - {".jsonl", ".csv", ".json"}):
            return "imagefolder", {"data_dir": str(path)}
        if suffixes & {".txt"} and not suffixes & data_files:
            return "text", {"data_dir": str(path), "sample_by": "document"}
    return name, {}


def _train_and_eval(splits: dict[str, Any], args: DataArguments) -> tuple[Any, Any, str]:
    """Training and evaluation data, and what the latter is called."""
    if args.train_split not in splits:
        _missing_split(splits, args)
    train = splits[args.train_split]
    if args.eval_split is not None:
        if args.eval_split not in splits:
            raise ValueError(f"There is no split {args.eval_split!r}; the dataset has {', '.join(splits)}.")
        return train, splits[args.eval_split], args.eval_split
    for name in ("test", "validation", "valid"):
        if name in splits:
            return train, splits[name], name
    if args.streaming:
        held_out = args.max_eval_samples or 1000
        return train.skip(held_out), train.take(held_out), f"first {held_out} of {args.train_split}"
    if len(train) < 2:
        raise ValueError(f"The split {args.train_split!r} has {len(train)} examples: too few to train and measure on.")
    # The held-out tenth depends on nothing but the dataset, so that runs with other seeds can be compared.
    parts = train.train_test_split(test_size=max(1, len(train) // 10), seed=0)
    return parts["train"], parts["test"], f"10 % of {args.train_split}"


def _missing_split(splits: dict[str, Any], args: DataArguments) -> Any:
    raise ValueError(f"There is no split {args.train_split!r}; the dataset has {', '.join(splits)}. Give --train_split.")


def _image_column(dataset: Any, wanted: str | None, name: str) -> str:
    features = dataset.features or {}
    names = list(features)
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{name} has no column {wanted!r}; it has {', '.join(names)}. Check --image_column.")
        return wanted
    images = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    if len(images) != 1:
        raise ValueError(
            f"{name} has {len(images) or 'no'} columns of images among {', '.join(names)}. Name one with --image_column, "
            "or use another dataset."
        )
    return images[0]


def _label_column(dataset: Any, wanted: str | None) -> tuple[str | None, list[str]]:
    features = dataset.features or {}
    if wanted is not None and wanted not in features:
        raise ValueError(f"There is no column {wanted!r}; the dataset has {', '.join(features)}. Check --label_column.")
    for column in [wanted] if wanted else ["label", "labels", "fine_label"]:
        names = getattr(features.get(column), "names", None)
        if names:
            return column, list(names)
    if wanted:
        raise ValueError(f"The column {wanted!r} is not a ClassLabel, whose classes are named. Cast it first.")
    return None, []


def _first(dataset: Any, name: str) -> dict[str, Any]:
    try:
        return next(iter(dataset))
    except StopIteration:
        raise ValueError(f"{name} has no examples. Check --train_split and the dataset.") from None
    except Exception as error:
        raise ValueError(f"The first example of {name} cannot be read: {_one_line(error)}") from error


def _limited(dataset: Any, count: int | None) -> Any:
    if count is None:
        return dataset
    return dataset.select(range(min(count, len(dataset)))) if hasattr(dataset, "select") else dataset.take(count)


def _documents(dataset: Any, args: DataArguments) -> list[str]:
    names = list(dataset.features or next(iter(dataset), {}))
    if args.text_column not in names:
        raise ValueError(f"There is no column {args.text_column!r}; the dataset has {', '.join(names)}. Give --text_column.")
    documents = [row[args.text_column] for row in dataset]
    documents = [document for document in documents if document]
    if not documents:
        raise ValueError("The dataset has no text. Check --dataset_name, --train_split and --text_column.")
    return documents


def _cut_text(documents: list[str]) -> tuple[list[str], list[str]]:
    """The first 90 % of the characters to train on, the rest to measure on: the usual cut of tiny Shakespeare."""
    cut = int(0.9 * sum(map(len, documents)))
    train, evaluation = [], []
    for document in documents:
        train.append(document[: max(0, cut)])
        evaluation.append(document[max(0, cut) :])
        cut -= len(document)
    return [part for part in train if part], [part for part in evaluation if part]


def _digits() -> dict[str, Any]:
    """scikit-learn's 1,797 images of handwritten digits, 8 x 8 in 17 grey levels: the last 297 are for measuring.

    The last ones were written by other people than the first ones, as in the usual split of this dataset.
    """
    import datasets
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )

    def part(rows: slice) -> datasets.Dataset:
        from PIL import Image

        columns = {"image": [Image.fromarray(image) for image in images[rows]], "label": digits.target[rows].tolist()}
        return datasets.Dataset.from_dict(columns, features=features)

    return {"train": part(slice(0, 1500)), "test": part(slice(1500, None))}


def _python_docs() -> dict[str, Any]:
    """The language reference that ships inside CPython (pydoc_data/topics), about 465,000 characters of English."""
    import datasets

    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    if not path.is_file():
        raise ValueError(
            "This Python comes without its language reference (pydoc_data). Install it, or give a text file to "
            "--dataset_name."
        )
    # Read, not imported: the file is one dictionary literal, and nothing in it needs to run.
    tree = ast.parse(path.read_text(encoding="utf-8"))
    topics: dict[str, str] = next(
        ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
    )
    return {"train": datasets.Dataset.from_dict({"text": ["\n\n".join(topics[key] for key in sorted(topics))]})}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] + (" ..." if len(text) > 300 else "")
