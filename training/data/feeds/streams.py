"""Datasets that are read while training, in an order that the seed determines and that resumes anywhere.

Readers (processes x workers) divide the shards of an epoch, whose order is drawn again each time, and each reader
shuffles its examples block by block. A few integers say where a reader is: a checkpoint holds them, and a resumed run
rereads at most one part of a shard and two blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from ...randomness import derive_seed
from ..sources.splits import one_line
from .batches import Batch, Feed, GlobalBatch, on_device
from .workers import ReadByWorkers, load_batches


ROWS_AT_A_TIME = 32  # converted from Arrow to Python together: 5 to 10 times faster than one by one
MAX_SHARDS = 1000  # neighbors are joined beyond it: selecting one takes time in proportion to their number
MAX_PARTS = 32  # likewise, parts of a shard
EMPTY_EPOCHS = 20
State = dict[str, Any]


@dataclass
class Place:
    """How far a reader has come, and which block begins there."""

    epoch: int = 0
    shard: int = 0  # of this epoch, in the reader's own order
    part: int = 0  # of this shard: a group of row groups of a parquet file; other files are one part
    example: int = 0  # of this part, including those of other readers
    shared: int = 0  # examples of this epoch in shards that all readers go through
    block: int = 0
    used: int = 0  # examples of the block that were handed out


@dataclass
class Reader:
    """The examples of one reader, in the order of the shards.

    Every reader gets the same number of whole shards. Any that are left over are shared: all readers go through them,
    and each takes every `count`-th example, different ones in each epoch. So one file serves any number of readers.
    With a limit all shards are shared, in order, so that the examples are the first ones of the dataset.
    """

    dataset: Any  # a datasets.IterableDataset
    seed: int
    number: int
    count: int
    limit: int | None = None  # examples per epoch of all readers together
    place: Place = field(default_factory=Place)  # advances with what is read

    def rest_of_epoch(self) -> Iterator[tuple[str, dict]]:
        """Yields (where it is, example) for this reader's examples from `place` to the end of the epoch."""
        place, examples = self.place, self._pass_shards()
        if self.limit is not None:
            examples = islice(examples, self.limit - place.shared)
        for is_shared, origin, example in examples:
            if not is_shared or (place.shared - 1 + place.epoch) % self.count == self.number:
                yield origin, example

    def _pass_shards(self) -> Iterator[tuple[bool, str, dict]]:
        """Advances `place` example by example through this reader's shards."""
        place = self.place
        for number, is_shared in self._shards()[place.shard :]:
            shard = _piece(self.dataset, shard_count(self.dataset), number)
            # Parquet: a shard per row group, found in the file's footer.
            shard = shard.reshard() if hasattr(shard, "reshard") else shard
            parts = min(shard.num_shards, MAX_PARTS)
            for part in range(place.part, parts):
                file = f"part {part} of shard {number}" if part else f"shard {number}"
                for example in _rows(_piece(shard, parts, part).skip(place.example)):
                    place.example += 1
                    place.shared += is_shared
                    yield is_shared, f"{place.example - 1} of {file}", example
                place.part, place.example = part + 1, 0
            place.shard, place.part = place.shard + 1, 0

    def _shards(self) -> list[tuple[int, bool]]:
        """(number, whether it is shared) of each shard that this reader goes through in the epoch."""
        total = shard_count(self.dataset)
        if self.limit is not None:
            return [(number, True) for number in range(total)]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "shards", self.place.epoch))
        order = torch.randperm(total, generator=generator).tolist()
        whole = total - total % self.count
        own = [(number, False) for number in order[self.number : whole : self.count]]
        return own + [(number, True) for number in order[whole:]]


def shard_count(dataset: Any) -> int:
    """Number of shards that the readers divide."""
    return min(dataset.num_shards, MAX_SHARDS)


def _piece(dataset: Any, count: int, index: int) -> Any:
    """One of `count` contiguous pieces of a stream."""
    return dataset if count == 1 else dataset.shard(num_shards=count, index=index)


def _rows(dataset: Any) -> Iterator[dict]:
    # Not `yield from dataset`: slow row by row, and in a worker `datasets` would divide the shard again.
    for columns in dataset.iter(batch_size=ROWS_AT_A_TIME):
        for values in zip(*columns.values()):
            yield dict(zip(columns, values))


class ShuffledExamples:
    """Iterator over a reader's examples, endless, shuffled in blocks of `buffer` examples; an epoch ends a block.

    While one block is handed out in random order the next one is read, example for example: never more than `buffer`
    are held, plus the table that `datasets` is reading.

    Attributes:
        origin: Where the example that was handed out last is in the dataset, not counting held-out examples.
    """

    def __init__(self, reader: Reader, buffer: int):
        self.reader, self.buffer, self.origin = reader, buffer, ""
        self._start = replace(reader.place)  # of the current block
        self._rest = reader.rest_of_epoch()
        self._examples = self._shuffled()

    @property
    def position(self) -> State:
        """The place from which the same examples follow again; JSON-serializable."""
        return dict(vars(self._start))

    def __iter__(self) -> Iterator[dict]:
        return self

    def __next__(self) -> dict:
        self.origin, example = next(self._examples)
        return example

    def _shuffled(self) -> Iterator[tuple[str, dict]]:
        block: list[Any] = []
        self._fill(block, self.buffer)
        used = self._start.used  # before a resume
        while True:
            following: list[Any] = []
            following_start = replace(self.reader.place, block=self._start.block + 1, used=0)
            for count, index in enumerate(self._permutation(len(block)), start=1):
                example, block[index] = block[index], None
                if count > used:
                    self._start.used = count
                    yield example
                del example
                self._fill(following, count)
            self._fill(following, self.buffer)
            block, self._start, used = following, following_start, 0

    def _fill(self, block: list[Any], size: int) -> None:
        """Reads until the block has `size` examples, or the epoch ends and it has any."""
        empty_epochs = 0
        while len(block) < size:
            example = next(self._rest, None)
            if example is not None:
                block.append(example)
            elif block:
                return
            elif empty_epochs == EMPTY_EPOCHS:  # a reader's shards may be empty by chance, but not this often
                raise ValueError(
                    f"Reader {self.reader.number} of {self.reader.count} (processes x dataloader workers) found no "
                    f"example in the stream in {empty_epochs} epochs. Use fewer processes and workers, or more data."
                )
            else:
                self.reader.place = Place(self.reader.place.epoch + 1)
                self._rest = self.reader.rest_of_epoch()
                empty_epochs += 1

    def _permutation(self, size: int) -> list[int]:
        key = self.reader.seed, "block", self.reader.number, self._start.block
        return torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(*key))).tolist()


ToBatches = Callable[[ShuffledExamples, int, State], Iterator[tuple[Batch, State]]]


@dataclass
class StreamFeed(Feed):
    """A dataset that is read while training. Its order depends on the number of readers.

    Attributes:
        dataset: A `datasets.IterableDataset`.
        to_batches: (examples, batch size, state) -> batches, each with the state after it: the examples' position, and
            whatever else `to_batches` needs to continue from there.
        seed: Determines the order of the examples.
        buffer: Examples that each reader shuffles at a time.
        num_workers: Number of processes that read and decode; 0 does it in this one.
        limit: Use only the first `limit` examples; None for all.
    """

    dataset: Any
    to_batches: ToBatches
    seed: int
    buffer: int
    num_workers: int = 0
    limit: int | None = None
    num_examples: int | None = field(default=None, init=False)
    _state: State = field(default_factory=dict, init=False)

    def first_batches(self, examples: int, repeat: bool = True) -> Iterator[Batch]:
        """As [`Feed.first_batches`]; reads no more of the stream than these examples, and some for the last block. As
        only the end of a stream tells how long it is, the last batch may repeat some in any case."""
        feed = replace(self, buffer=min(self.buffer, examples), num_workers=0)
        for batch in Feed.first_batches(feed, examples):
            yield batch
            if not repeat and feed.state()["readers"][0]["epoch"] > 0:
                return

    def state(self) -> State:
        """The position of each of this process's readers after the last batch that `batches` handed out."""
        return {**self._state, "readers": list(self._state["readers"])}

    def batches(
        self, first_step: int, global_batch: GlobalBatch, device: torch.device, state: State | None = None
    ) -> Iterator[Batch]:
        """As [`Feed.batches`]. Raises ValueError if the state is missing or belongs to another stream."""
        if first_step and not state:
            raise ValueError(f"first_step must be 0 for a stream without a state, got {first_step}. Pass its state.")
        now = {"processes": global_batch.processes, "workers": self.num_workers, "shards": shard_count(self.dataset)}
        state = state or {**now, "next": 0, "readers": [None] * max(1, self.num_workers)}
        for name, number in now.items():
            if state[name] != number:
                raise ValueError(
                    f"The stream was read with {state[name]} {name} and now has {number}, which would change the "
                    "order of its examples. Use the same dataset (--dataset_revision), processes and "
                    "--dataloader_num_workers as before."
                )
        self._state = {**state, "readers": list(state["readers"])}
        return self._batches(global_batch, device)

    def _batches(self, global_batch: GlobalBatch, device: torch.device) -> Iterator[Batch]:
        readers = self._state["readers"]
        read = partial(self._read, global_batch, self.state())
        for reader, batch, after in load_batches(ReadByWorkers(read), self.num_workers, device):
            readers[reader] = after
            self._state["next"] = (reader + 1) % len(readers)
            yield on_device(batch, device)

    def _read(self, global_batch: GlobalBatch, state: State, worker: int) -> Iterator[tuple[int, Batch, State]]:
        """In a worker: yields (reader of this process, batch, its state after it)."""
        readers = state["readers"]
        # DataLoader asks worker 0 first, so that becomes the reader whose turn it is.
        reader = (worker + state["next"]) % len(readers)
        begin = readers[reader] or {}
        place = Place(**{key.name: begin[key.name] for key in fields(Place) if begin})
        number, count = global_batch.rank * len(readers) + reader, global_batch.processes * len(readers)
        examples = ShuffledExamples(Reader(self.dataset, self.seed, number, count, self.limit, place), self.buffer)
        try:
            for batch, after in self.to_batches(examples, global_batch.batch_size, begin):
                yield reader, batch, after
        except OSError as error:
            raise ValueError(
                f"The stream cannot be read any further: {one_line(error)} Check the network and the files, then run "
                "the same command again to resume from the last checkpoint."
            ) from error
