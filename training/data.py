"""Examples, handed out in an order that depends on the seed alone.

A dataset that fits is held as one uint8 tensor (or one array of tokens), which is indexed and scaled on the device:
many times faster than a DataLoader. What does not fit is decoded by workers, mapped from a file of tokens or streamed,
in `streams.py`. Where datasets come from is in `sources.py`; `images.py` and `text.py` make them ready.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from training.randomness import derive_seed
from training.tokens import MappedTokens


Batch = dict[str, Tensor]
Decode = Callable[[dict[str, list], Sequence[object]], Batch]
Tokens = np.ndarray | MappedTokens

IN_MEMORY_BYTES = 2 * 10**9


def fits_in_memory(needed: int, in_memory: bool | None) -> bool:
    """Whether a dataset of so many bytes is to be held in memory: what --in_memory says, else if it is small."""
    return needed < IN_MEMORY_BYTES if in_memory is None else in_memory


@dataclass(frozen=True)
class Share:
    """Which part of a global batch this process works on.

    A global batch of `batch_size * accumulation * processes` examples is laid out micro-step by micro-step, and within
    a micro-step process by process.
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

    def batches(
        self, first_step: int, share: Share, device: torch.device, state: dict[str, Any] | None = None
    ) -> Iterator[Batch]:
        """Micro-batches from a step on: this process's rows, on the device. `state` is what `state` told before it."""
        ...

    def state(self) -> dict[str, Any]:
        """What must be known, besides the step, to go on after the last batch that was handed out; fits JSON."""
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
            # Half the memory of the usual int64, and the same permutation.
            narrow = torch.int32 if self.num_examples < 2**31 else torch.int64
            self._permutation = torch.randperm(self.num_examples, generator=generator, dtype=narrow)
            self._epoch = number
        return self._permutation

    def positions(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """(epoch, examples) for positions start to stop of the endless sequence: one part, or one for each epoch."""
        while start < stop:
            epoch, offset = divmod(start, self.num_examples)
            part = self.epoch(epoch)[offset : offset + stop - start]
            yield epoch, part.long()
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

    def batches(self, first_step: int, share: Share, device: torch.device, state: Any = None) -> Iterator[Batch]:
        pixels = self.pixels.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        for parts in self.order.micro_batches(first_step, share):
            index = torch.cat([examples for _, examples in parts]).to(device, non_blocking=True)
            yield image_batch(pixels[index], None if labels is None else labels[index])

    def state(self) -> dict[str, Any]:
        return {}


class TokenFeed:
    """Windows of a text, taken as a ring: every epoch cuts it anew, beginning at a random token.

    So each token is used as often as any other and meets every position of a window. Tokens in memory are sent to the
    device once, as int32; windows of a mapped file are gathered here and sent a batch at a time.
    """

    def __init__(self, tokens: Tokens, context: int, seed: int):
        if len(tokens) <= context:
            raise ValueError(f"tokens: expected more than a context of {context}, got {len(tokens)}")
        self.tokens, self.context, self.seed = tokens, context, seed
        self.num_examples: int | None = len(tokens) // context
        self.order = EpochOrder(self.num_examples, seed)

    def batches(self, first_step: int, share: Share, device: torch.device, state: Any = None) -> Iterator[Batch]:
        gather = self._held_on(device) if isinstance(self.tokens, np.ndarray) else self._mapped_to(device)
        for parts in self.order.micro_batches(first_step, share):
            starts = torch.cat([examples * self.context + self._offset(epoch) for epoch, examples in parts])
            windows = gather(starts).long()
            yield {"input_ids": windows[:, :-1].contiguous(), "labels": windows[:, 1:].contiguous()}

    def state(self) -> dict[str, Any]:
        return {}

    def _held_on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        tokens = torch.from_numpy(np.asarray(self.tokens, np.int32)).to(device)
        window = torch.arange(self.context + 1, device=device)
        return lambda starts: tokens[(starts.to(device, non_blocking=True)[:, None] + window) % len(tokens)]

    def _mapped_to(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        tokens, length, pin = cast(MappedTokens, self.tokens), self.context + 1, device.type == "cuda"

        def gather(starts: Tensor) -> Tensor:
            # torch does not hand pinned memory out again before the copy from it is done.
            windows = torch.empty((len(starts), length), dtype=torch.int32, pin_memory=pin)
            tokens.windows(starts.numpy(), length, out=windows.numpy())
            return windows.to(device, non_blocking=True)

        return gather

    def _offset(self, epoch: int) -> int:
        return derive_seed(self.seed, "offset", epoch) % len(self.tokens)


class DatasetFeed:
    """Images that do not fit in memory: decoded by DataLoader workers, in the same order that memory would give.

    Args:
        dataset: rows by index.
        decode: (columns, positions of the rows in the dataset) -> `pixels` (uint8) and `labels`.
        seed: the order of examples derives from it.
        num_workers: processes that decode; 0 decodes in this one.
    """

    def __init__(self, dataset: Any, decode: Decode, seed: int, num_workers: int):
        self.dataset, self.decode, self.num_workers = dataset, decode, num_workers
        self.num_examples: int | None = len(dataset)
        self.order = EpochOrder(len(dataset), seed)

    def batches(self, first_step: int, share: Share, device: torch.device, state: Any = None) -> Iterator[Batch]:
        indices = (
            torch.cat([examples for _, examples in parts]).tolist()
            for parts in self.order.micro_batches(first_step, share)
        )
        # Each "index" is a whole batch: fetched and decoded at once.
        for batch in loaded(_DecodedRows(self.dataset, self.decode), self.num_workers, device, sampler=indices):
            yield on_device(batch, device)

    def state(self) -> dict[str, Any]:
        return {}


class _DecodedRows(torch.utils.data.Dataset):
    def __init__(self, dataset: Any, decode: Decode):
        self.dataset, self.decode = dataset, decode

    def __getitem__(self, rows: list[int]) -> Batch | ValueError:
        try:
            return self.decode(self.dataset[rows], rows)
        except ValueError as error:
            return error  # raised by the reader: DataLoader would bury it under the worker's traceback


def loaded(dataset: Any, num_workers: int, device: torch.device, **options: Any) -> Iterator[Any]:
    """What a dataset of whole batches gives, read ahead by workers; the ValueErrors among it are raised."""
    # A generator of its own, or making the loader would draw from the global one, which a resumed run would notice.
    loader = DataLoader(
        dataset, batch_size=None, num_workers=num_workers, pin_memory=device.type == "cuda",
        generator=torch.Generator(), worker_init_fn=leave_signals_to_the_parent, **options,
    )  # fmt: skip
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield batch


def leave_signals_to_the_parent(_worker: int) -> None:
    """Called in a DataLoader worker: what asks a whole group of processes to end, as Ctrl-C does, is not meant for it.

    The training gets it too, and needs its workers until it has saved a checkpoint. Only the training's own SIGTERM,
    or its death, ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()  # not os.getppid(), which may be a server that forks for it
    while parent is not None and parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 1)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on the device, its images scaled."""
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return image_batch(batch["pixels"], batch.get("labels")) if "pixels" in batch else batch


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
        eval_pixels: uint8 (examples, channels, height, width), each measured once. Where they need too much memory,
            an object of that length that decodes a slice when it is asked for one.
        eval_labels: (examples,) or None.
        image_size: (height, width).
        num_channels: 1 or 3.
        label_names: the classes, empty where there are none.
        name, eval_split, revision: what results.json and the card call the data.
    """

    train: Feed
    eval_pixels: Any
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
    eval_tokens: Tokens
    tokenizer: Any
    context: int
    characters_per_token: float
    name: str
    eval_split: str
    revision: str | None = None

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
