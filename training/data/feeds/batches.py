"""What a feed is, and which examples each process takes from it in each micro-step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...randomness import derive_seed


Batch = dict[str, Tensor]
Decode = Callable[[dict[str, list], Sequence[object]], Batch]
IN_MEMORY_BYTES = 2 * 10**9
FIRST_BATCH_SIZE = 64


def fits_in_memory(needed: int, in_memory: bool | None) -> bool:
    """True if `needed` bytes should be held in memory. `--in_memory` decides; by default anything under 2 GB is."""
    return needed < IN_MEMORY_BYTES if in_memory is None else in_memory


def evenly_spread(count: int, limit: int | None) -> Tensor:
    """Returns the indices of `count` examples, or of `limit` of them at equal distances."""
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.arange(limit) * count // limit


@dataclass(frozen=True)
class GlobalBatch:
    """The examples of one optimizer step, and the part of them that this process works on.

    The `batch_size * accumulation * processes` examples are laid out micro-step by micro-step, and within a micro-step
    process by process.
    """

    batch_size: int
    accumulation: int = 1
    rank: int = 0
    processes: int = 1

    @property
    def size(self) -> int:
        """Number of examples in the global batch."""
        return self.batch_size * self.accumulation * self.processes

    def rows(self, micro_step: int) -> slice:
        """The rows of the global batch that this process takes in a micro-step."""
        start = (micro_step * self.processes + self.rank) * self.batch_size
        return slice(start, start + self.batch_size)


class Feed(Protocol):
    """An endless supply of training examples.

    Attributes:
        num_examples: Number of examples in an epoch. None if unknown (streams).
    """

    num_examples: int | None

    def batches(
        self, first_step: int, global_batch: GlobalBatch, device: torch.device, state: dict[str, Any] | None = None
    ) -> Iterator[Batch]:
        """Yields this process's micro-batches from `first_step` on, on `device`.

        Args:
            first_step: Optimizer steps that are done.
            global_batch: Sizes, and the place of this process among the others.
            device: Where the batches go.
            state: As returned by `state()` after the last of those steps; None to start from the beginning.
        """
        ...

    def first_batches(self, examples: int, repeat: bool = True) -> Iterator[Batch]:
        """Yields the first training examples, as many as are asked for, on the CPU; the same in every process.

        If there are fewer, they come again and again, or with `repeat=False` the batches end.
        """
        if not repeat and self.num_examples is not None:
            examples = min(examples, self.num_examples)
        feed = self.batches(0, GlobalBatch(min(examples, FIRST_BATCH_SIZE)), torch.device("cpu"))
        while examples > 0:
            batch = {name: values[:examples] for name, values in next(feed).items()}
            yield batch
            examples -= len(next(iter(batch.values())))

    def state(self) -> dict[str, Any]:
        """JSON-serializable state needed, besides the step, to resume after the last batch that was handed out.

        Empty by default: the examples of most feeds follow from the step.
        """
        return {}


class EpochOrder:
    """The order of examples: an endless sequence of permutations, one per epoch, cut into global batches.

    A batch may span two epochs, so every example is used equally often whatever the batch size.
    """

    def __init__(self, num_examples: int, seed: int):
        self.num_examples = num_examples
        self.seed = seed
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.long)

    def epoch(self, number: int) -> Tensor:
        """The permutation of one epoch, (num_examples,)."""
        if number != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", number))
            # Half the memory of the usual int64, and the same permutation.
            narrow = torch.int32 if self.num_examples < 2**31 else torch.int64
            self._permutation = torch.randperm(self.num_examples, generator=generator, dtype=narrow)
            self._epoch = number
        return self._permutation

    def positions(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Yields (epoch, examples) for positions `start` to `stop` of the sequence, one pair for each epoch."""
        while start < stop:
            epoch, offset = divmod(start, self.num_examples)
            part = self.epoch(epoch)[offset : offset + stop - start]
            yield epoch, part.long()
            start += len(part)

    def micro_batches(self, first_step: int, global_batch: GlobalBatch) -> Iterator[list[tuple[int, Tensor]]]:
        """Yields the `positions` of this process for every micro-step from `first_step` on."""
        step = first_step
        while True:
            for micro_step in range(global_batch.accumulation):
                rows = global_batch.rows(micro_step)
                yield list(self.positions(step * global_batch.size + rows.start, step * global_batch.size + rows.stop))
            step += 1


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Moves a batch to the device; uint8 `pixels` become `pixel_values`."""
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return image_batch(batch["pixels"], batch.get("labels")) if "pixels" in batch else batch


def image_batch(pixels: Tensor, labels: Tensor | None) -> Batch:
    """uint8 pixels -> `pixel_values` in [0, 1], as every model expects them, and `labels` if there are any."""
    batch = {"pixel_values": pixels.float().div_(255)}
    if labels is not None:
        batch["labels"] = labels
    return batch
