"""Feeds of examples that are indexed: held in memory, mapped from a file, or decoded by workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...randomness import derive_seed
from .batches import Batch, Decode, EpochOrder, Feed, GlobalBatch, image_batch, on_device
from .mapped_tokens import MappedTokens
from .workers import load_batches


class TensorFeed(Feed):
    """Images (and labels) that are held in memory: in the device's own, if it has any.

    Args:
        pixels: uint8 (examples, channels, height, width).
        labels: (examples,), or None.
        seed: Determines the order of the examples.
    """

    def __init__(self, pixels: Tensor, labels: Tensor | None, seed: int):
        self.pixels, self.labels = pixels, labels
        self.num_examples = len(pixels)
        self.order = EpochOrder(len(pixels), seed)

    def batches(
        self, first_step: int, global_batch: GlobalBatch, device: torch.device, state: dict[str, Any] | None = None
    ) -> Iterator[Batch]:
        pixels = self.pixels.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        for parts in self.order.micro_batches(first_step, global_batch):
            index = torch.cat([examples for _, examples in parts]).to(device, non_blocking=True)
            yield image_batch(pixels[index], None if labels is None else labels[index])


class HeldTokens:
    """Token ids in memory: in the device's own, if it has any."""

    def __init__(self, ids: np.ndarray | Tensor):
        self._ids = torch.as_tensor(ids if isinstance(ids, Tensor) else ids.astype(np.int32))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, part: slice) -> Tensor:
        """The ids of a slice, int32 (tokens,)."""
        return self._ids[part]

    def to(self, device: torch.device) -> HeldTokens:
        """The same tokens on `device`."""
        return HeldTokens(self._ids.to(device))

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """`length` ids from each start on, int32 (starts, length). The first token follows the last."""
        device = self._ids.device
        starts = starts.to(device, non_blocking=True)
        return self._ids[(starts[:, None] + torch.arange(length, device=device)) % len(self)]


Tokens = HeldTokens | MappedTokens


class TokenFeed(Feed):
    """Windows of a text that is treated as a ring: each epoch cuts it at a new random offset.

    So every token is used equally often and meets every position of a window.

    Args:
        tokens: The text, longer than `context`.
        context: Tokens per window.
        seed: Determines the offsets and the order of the windows.

    Raises:
        ValueError: `tokens` is too short.
    """

    def __init__(self, tokens: Tokens, context: int, seed: int):
        if len(tokens) <= context:
            raise ValueError(f"tokens must be longer than a context of {context}, got {len(tokens)}. Use more text.")
        self.tokens, self.context, self.seed = tokens, context, seed
        self.num_examples = len(tokens) // context
        self.order = EpochOrder(self.num_examples, seed)

    def batches(
        self, first_step: int, global_batch: GlobalBatch, device: torch.device, state: dict[str, Any] | None = None
    ) -> Iterator[Batch]:
        tokens = self.tokens.to(device)
        for parts in self.order.micro_batches(first_step, global_batch):
            starts = torch.cat([examples * self.context + self._offset(epoch) for epoch, examples in parts])
            windows = tokens.windows(starts, self.context + 1).long()
            yield {"input_ids": windows[:, :-1].contiguous(), "labels": windows[:, 1:].contiguous()}

    def _offset(self, epoch: int) -> int:
        return derive_seed(self.seed, "offset", epoch) % len(self.tokens)


class DatasetFeed(Feed):
    """Images that do not fit in memory: decoded by DataLoader workers, in the order that [`TensorFeed`] would use.

    Args:
        dataset: A `datasets.Dataset`, indexed by lists of rows.
        decode: (columns, positions of the rows in the dataset) -> `pixels` (uint8) and `labels`.
        seed: Determines the order of the examples.
        num_workers: Number of processes that decode; 0 decodes in this one.
    """

    def __init__(self, dataset: Any, decode: Decode, seed: int, num_workers: int):
        self.dataset, self.decode, self.num_workers = dataset, decode, num_workers
        self.num_examples = len(dataset)
        self.order = EpochOrder(len(dataset), seed)

    def batches(
        self, first_step: int, global_batch: GlobalBatch, device: torch.device, state: dict[str, Any] | None = None
    ) -> Iterator[Batch]:
        indices = (
            torch.cat([examples for _, examples in parts]).tolist()
            for parts in self.order.micro_batches(first_step, global_batch)
        )
        # Each "index" is a whole batch, fetched and decoded at once.
        rows = _DecodedRows(self.dataset, self.decode)
        for batch in load_batches(rows, self.num_workers, device, sampler=indices):
            yield on_device(batch, device)


class _DecodedRows(torch.utils.data.Dataset):
    def __init__(self, dataset: Any, decode: Decode):
        self.dataset, self.decode = dataset, decode

    def __getitem__(self, rows: list[int]) -> Batch | ValueError:
        try:
            return self.decode(self.dataset[rows], rows)
        except ValueError as error:
            return error  # raised by load_batches: DataLoader would bury it in the worker's traceback
