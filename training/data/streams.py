"""Datasets that are read while training, in an order that the seed decides and that any place can be returned to.

Readers (processes x workers) share the shards of an epoch, whose order is drawn anew each time; each reader shuffles
its examples block by block. Where a reader is, is a handful of whole numbers: a checkpoint holds them, and a resumed
run reads at most the part of a shard and the two blocks that it was in. Nothing is read from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils.data import get_worker_info

from ..randomness import derive_seed
from .batches import Batch, GlobalBatch, on_device
from .sources import one_line
from .workers import loaded


ROWS_AT_A_TIME = 32  # converted from Arrow to Python together: 5 to 10 times faster than one by one
MAX_SHARDS = 1000  # neighbours are joined where there are more: to pick one takes time in proportion to all of them
EMPTY_EPOCHS = 20  # a reader: with few shards that have examples, chance deals it one of them in some epoch
MAX_PARTS = 32  # of a shard, to which a reader can go at once
State = dict[str, Any]


@dataclass
class Place:
    """What a reader has passed of the source.

    Attributes:
        epoch: passes over the dataset.
        shard: shards of this epoch, in the reader's own order.
        part: parts of this shard: groups of row groups of a parquet file; other files have a single part.
        example: examples of this part, those of other readers included.
        shared: examples of this epoch in shards that all readers go through.
    """

    epoch: int = 0
    shard: int = 0
    part: int = 0
    example: int = 0
    shared: int = 0


class Origin(NamedTuple):
    """Where an example lies in the dataset; held-out examples are not counted."""

    shard: int
    part: int
    example: int

    def __str__(self) -> str:
        return f"{self.example} of " + (f"part {self.part} of " if self.part else "") + f"shard {self.shard}"


class Source:
    """The examples of one reader, as they lie in the shards.

    Shards are dealt out whole as long as each reader gets as many; the rest is shared: all readers go through it, and
    each takes every `readers`-th of its examples, others in each epoch. A limited source is shared as a whole and
    keeps the order of its shards, so that the examples are those that the dataset begins with.

    Args:
        dataset: a `datasets.IterableDataset`.
        seed: the order of shards derives from it.
        reader, readers: which reader this is, and of how many.
        limit: examples in an epoch of all readers together; None for all.
        place: where to begin; keeps up with what was read.
    """

    def __init__(self, dataset: Any, seed: int, reader: int, readers: int, limit: int | None, place: Place):
        self.dataset, self.seed, self.reader, self.readers, self.limit = dataset, seed, reader, readers, limit
        self.place = place
        self._empty_epochs = 0

    def next_epoch(self) -> Iterator[tuple[Origin, dict]]:
        """The examples of the next epoch.

        Raises:
            ValueError: there was none in so many epochs that there will never be one.
        """
        self._empty_epochs += 1
        if self._empty_epochs > EMPTY_EPOCHS * self.readers or self._empty_epochs > self.readers == 1:
            raise ValueError(
                f"Reader {self.reader} of {self.readers} (processes x dataloader workers) found no example in the "
                f"stream in {self._empty_epochs} epochs. Use fewer processes and workers, or more data."
            )
        self.place = Place(self.place.epoch + 1)
        return self.rest_of_epoch()

    def rest_of_epoch(self) -> Iterator[tuple[Origin, dict]]:
        """The examples from `place` to the end of its epoch."""
        for number, is_shared in self._shards()[self.place.shard :]:
            shard = split(self.dataset, shard_count(self.dataset), number)
            # Parquet: a shard for each row group from here on, found in the file's footer.
            shard = shard.reshard() if hasattr(shard, "reshard") else shard
            parts = min(shard.num_shards, MAX_PARTS)
            for part in range(self.place.part, parts):
                for example in self._part(split(shard, parts, part), is_shared):
                    self._empty_epochs = 0
                    yield Origin(number, part, self.place.example - 1), example
                if self.place.shared == self.limit:
                    return
                self.place = replace(self.place, part=part + 1, example=0)
            self.place = replace(self.place, shard=self.place.shard + 1, part=0)

    def _shards(self) -> list[tuple[int, bool]]:
        """(number, whether it is shared) of each shard that this reader goes through in the epoch."""
        count = shard_count(self.dataset)
        if self.limit is not None:
            return [(number, True) for number in range(count)]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "shards", self.place.epoch))
        order = torch.randperm(count, generator=generator).tolist()
        dealt = count - count % self.readers
        own = [(number, False) for number in order[self.reader : dealt : self.readers]]
        return own + [(number, True) for number in order[dealt:]]

    def _part(self, part: Any, is_shared: bool) -> Iterator[dict]:
        """This reader's examples of a part; `place` counts all of them."""
        place = self.place
        # Not `for example in part`: row by row is slow, and in a worker `datasets` would deal out the shard again.
        for columns in part.skip(place.example).iter(batch_size=ROWS_AT_A_TIME):
            names = list(columns)
            for values in zip(*columns.values()):
                if place.shared == self.limit:
                    return
                place.example += 1
                place.shared += is_shared
                if not is_shared or (place.shared - 1 + place.epoch) % self.readers == self.reader:
                    yield dict(zip(names, values))


def shard_count(dataset: Any) -> int:
    """Shards that a stream is dealt out in."""
    return min(dataset.num_shards, MAX_SHARDS)


def split(dataset: Any, count: int, index: int) -> Any:
    """One of `count` neighbouring pieces of a stream."""
    return dataset if count == 1 else dataset.shard(num_shards=count, index=index)


class ShuffledExamples:
    """A reader's examples without end, shuffled block by block; a block ends with the epoch.

    While a block is handed out in random order the next one is read, one example for each: never more than `buffer`
    are held, besides the table that `datasets` is reading.

    Args:
        source: where they come from, at the place where the block began.
        buffer: examples in a block.
        block: blocks before it.
        used: examples of it that were handed out already.

    Attributes:
        origin: of the example that was handed out last.
    """

    def __init__(self, source: Source, buffer: int, block: int = 0, used: int = 0):
        self.source, self.buffer, self.block, self.used = source, buffer, block, used
        self.origin: Origin | None = None
        self._start = replace(source.place)
        self._examples = self._shuffled()

    @property
    def position(self) -> State:
        """From where the same examples follow again, whoever reads them; fits JSON."""
        return {**vars(self._start), "block": self.block, "used": self.used}

    def __iter__(self) -> Iterator[dict]:
        return self

    def __next__(self) -> dict:
        self.origin, example = next(self._examples)
        return example

    def _shuffled(self) -> Iterator[tuple[Origin, dict]]:
        rest = self.source.rest_of_epoch()

        def fill(block: list[Any], size: int) -> None:
            nonlocal rest
            while len(block) < size:
                example = next(rest, None)
                if example is not None:
                    block.append(example)
                elif block:
                    return  # the epoch is over, and so is the block
                else:
                    rest = self.source.next_epoch()

        block: list[Any] = []
        fill(block, self.buffer)
        used = self.used
        while True:
            following: list[Any] = []
            start = replace(self.source.place)
            for count, index in enumerate(self._permutation(len(block)), start=1):
                example, block[index] = block[index], None
                if count > used:
                    self.used = count
                    yield example
                del example
                fill(following, count)
            fill(following, self.buffer)
            block, self._start, self.block, self.used, used = following, start, self.block + 1, 0, 0

    def _permutation(self, size: int) -> list[int]:
        key = self.source.seed, "block", self.source.reader, self.block
        return torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(*key))).tolist()


ToBatches = Callable[[ShuffledExamples, int, State], Iterator[tuple[Batch, State]]]


class StreamFeed:
    """A dataset read while training.

    Its order depends on the number of readers: a state of other processes or workers does not fit.

    Args:
        dataset: a `datasets.IterableDataset`.
        to_batches: (examples, batch size, state) -> batches, each with the state after it: the examples' position, and
            what else is needed to go on from there.
        seed: the order of examples derives from it.
        buffer: examples that are shuffled at a time, in each reader.
        num_workers: processes that read and decode; 0 does it in this one.
        limit: examples to use, the first ones; None for all.
    """

    def __init__(
        self, dataset: Any, to_batches: ToBatches, seed: int, buffer: int, num_workers: int = 0,
        limit: int | None = None,
    ):  # fmt: skip
        self.dataset, self.to_batches, self.seed, self.buffer = dataset, to_batches, seed, buffer
        self.num_workers, self.limit = num_workers, limit
        self.num_examples: int | None = None
        self._state: State = {}

    def state(self) -> State:
        """Where this process is: after the batch that `batches` handed out last, whatever workers have read ahead.

        Fits JSON; of each of the process's readers it has the position, None where it has not begun.
        """
        return {**self._state, "readers": list(self._state["readers"])}

    def batches(
        self, first_step: int, global_batch: GlobalBatch, device: torch.device, state: State | None = None
    ) -> Iterator[Batch]:
        """Micro-batches of this process, on the device, from the start or from a state on.

        Raises:
            ValueError: the first step is not 0 and there is no state, or the state is one of another stream.
        """
        expected: State = {"processes": global_batch.processes, "workers": self.num_workers,
                           "shards": shard_count(self.dataset)}  # fmt: skip
        if first_step and not state:
            raise ValueError(f"first_step: a stream can begin at 0 or go on from a state, got {first_step} alone")
        start = state or {**expected, "next": 0, "readers": [None] * max(1, self.num_workers)}
        for name, number in expected.items():
            if start[name] != number:
                raise ValueError(
                    f"The stream was read with {start[name]} {name} and now has {number}: its examples would come in "
                    "another order. Use the same dataset (--dataset_revision), processes and --dataloader_num_workers."
                )
        self._state = {**start, "readers": list(start["readers"])}
        return self._batches(global_batch, device)

    def _batches(self, global_batch: GlobalBatch, device: torch.device) -> Iterator[Batch]:
        readers = self._state["readers"]
        for reader, batch, after in loaded(_Batches(self, global_batch, self.state()), self.num_workers, device):
            readers[reader] = after
            self._state["next"] = (reader + 1) % len(readers)
            yield on_device(batch, device)


class _Batches(torch.utils.data.IterableDataset):
    """(reader of this process, batch, state after it), or the error that ends them."""

    def __init__(self, feed: StreamFeed, global_batch: GlobalBatch, state: State):
        self.feed, self.global_batch, self.state = feed, global_batch, state

    def __iter__(self) -> Iterator[tuple[int, Batch, State] | ValueError]:
        worker = get_worker_info()
        if worker is not None:
            import fsspec.asyn

            fsspec.asyn.reset_lock()  # a lock that a fork copied may be held for ever
        # Workers take turns, beginning with the first one, which therefore becomes the reader whose turn it is.
        states = self.state["readers"]
        reader = ((worker.id if worker else 0) + self.state["next"]) % len(states)
        try:
            for batch, after in self._read(reader, states[reader] or {}):
                yield reader, batch, after
        except ValueError as error:
            yield error
        except OSError as error:
            yield ValueError(
                f"The stream cannot be read any further: {one_line(error)} Check the network and the files, then run "
                "the same command again to go on from the last checkpoint."
            )

    def _read(self, reader: int, state: State) -> Iterator[tuple[Batch, State]]:
        feed, global_batch, readers = self.feed, self.global_batch, len(self.state["readers"])
        place = Place(**{name: state[name] for name in vars(Place())}) if state else Place()
        number, count = global_batch.rank * readers + reader, global_batch.processes * readers
        source = Source(feed.dataset, feed.seed, number, count, feed.limit, place)
        examples = ShuffledExamples(source, feed.buffer, state.get("block", 0), state.get("used", 0))
        return feed.to_batches(examples, global_batch.batch_size, state)
