"""Feeds of examples that are indexed: held in memory, mapped from a file, or decoded by workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..randomness import derive_seed
from .batches import Batch, Decode, EpochOrder, GlobalBatch, image_batch, on_device
from .mapped_tokens import MappedTokens
from .workers import loaded


Tokens = np.ndarray | MappedTokens


class TensorFeed:
    """Images (and labels) of a dataset that is held in memory, in the device's memory if it is one with its own."""

    def __init__(self, pixels: Tensor, labels: Tensor | None, seed: int):
        self.pixels, self.labels = pixels, labels
        self.num_examples: int | None = len(pixels)
        self.order = EpochOrder(len(pixels), seed)

    def batches(
        self, first_step: int, global_batch: GlobalBatch, device: torch.device, state: Any = None
    ) -> Iterator[Batch]:
        pixels = self.pixels.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        for parts in self.order.micro_batches(first_step, global_batch):
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

    def batches(
        self, first_step: int, global_batch: GlobalBatch, device: torch.device, state: Any = None
    ) -> Iterator[Batch]:
        gather = self._held_on(device) if isinstance(self.tokens, np.ndarray) else self._mapped_to(device)
        for parts in self.order.micro_batches(first_step, global_batch):
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

    def batches(
        self, first_step: int, global_batch: GlobalBatch, device: torch.device, state: Any = None
    ) -> Iterator[Batch]:
        indices = (
            torch.cat([examples for _, examples in parts]).tolist()
            for parts in self.order.micro_batches(first_step, global_batch)
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
