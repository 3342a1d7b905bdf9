"""Seed and readers determine the order of a stream, and it resumes anywhere as if it had never stopped."""

from __future__ import annotations

import gc
import json
import multiprocessing
import signal
import subprocess
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch

from tests.training.data.tiny_data import (
    CPU,
    assert_same,
    images_of,
    picture,
    take,
    text_of,
    write_parquet,
    write_texts,
)
from training.data.feeds import streams
from training.data.feeds.batches import Batch, Feed, GlobalBatch
from training.data.feeds.streams import Reader, ShuffledExamples, State, StreamFeed, shard_count
from training.data.sources.splits import hold_out


def sharded(count: int, shards: int) -> Any:
    return datasets.Dataset.from_dict({"number": list(range(count))}).to_iterable_dataset(num_shards=shards)


def numbers(examples: ShuffledExamples, batch_size: int, state: State) -> Iterator[tuple[Batch, State]]:
    while True:
        rows = list(islice(examples, batch_size))
        yield {"number": torch.tensor([row["number"] for row in rows])}, examples.position


def numbers_feed(dataset: Any, buffer: int, workers: int = 0, seed: int = 0) -> StreamFeed:
    return StreamFeed(dataset, numbers, seed, buffer, workers)


def epoch_of(dataset: Any, reader: int, readers: int, epoch: int = 0, limit: int | None = None) -> list[int]:
    examples = Reader(dataset, 0, reader, readers, limit, streams.Place(epoch)).rest_of_epoch()
    return [example["number"] for _, example in examples]


def assert_resumes_from_every_step(feed: Feed, batches: int, global_batch: GlobalBatch, every: int = 1) -> None:
    """Also through JSON, and from the state of a resumed feed before its first batch."""
    states, whole = [], []
    for batch in islice(feed.batches(0, global_batch, CPU), batches):
        whole.append(batch)
        states.append(json.dumps(feed.state()))
    assert len({str(batch) for batch in whole}) > 3
    for step in range(0, batches - 1, every):
        rest = feed.batches(step + 1, global_batch, CPU, json.loads(states[step]))
        assert json.dumps(feed.state()) == states[step]
        following = whole[step + 1 : step + 21]
        assert_same(list(islice(rest, len(following))), following)


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("buffer", [1, 2, 9, 100])
@pytest.mark.parametrize(("shards", "processes"), [(1, 1), (5, 1), (1, 2), (5, 2), (4, 2)])
def test_stream_resumes_from_every_step(shards: int, processes: int, buffer: int) -> None:
    feed = numbers_feed(sharded(23, shards), buffer)
    for rank in range(processes):
        # Past the ends of two epochs.
        assert_resumes_from_every_step(feed, 20, GlobalBatch(3, rank=rank, processes=processes))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_stream_read_by_workers_resumes_with_the_one_whose_turn_it_is(workers: int) -> None:
    feed = numbers_feed(sharded(23, 5), 9, workers)
    assert_resumes_from_every_step(feed, 14, GlobalBatch(2, rank=1, processes=2), every=2 if workers < 3 else 4)


def test_state_is_that_after_the_last_batch_however_far_workers_read_ahead() -> None:
    feed = numbers_feed(sharded(100, 2), 10, workers=2)
    batches = feed.batches(0, GlobalBatch(4), CPU)
    for count in range(1, 6):
        next(batches)
        time.sleep(0.1)  # lets the workers fill their queues
        reached = [10 * reader["block"] + reader["used"] if reader else 0 for reader in feed.state()["readers"]]
        assert sum(reached) == 4 * count and feed.state()["next"] == count % 2


def text_dataset(folder: Path) -> Path:
    """Documents from empty to twice as long as what is tokenized together, in three shards."""
    documents = [" ".join(map(str, range(i, i + i * i % 2000))) if i % 10 else "" for i in range(90)]
    for shard in range(3):
        write_texts(folder, documents[shard::3], f"train-{shard}")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [2, 40])
def test_streamed_text_resumes_from_every_step(tmp_path: Path, batch_size: int, workers: int) -> None:
    folder = text_dataset(tmp_path / "text")
    data = text_of(folder, 64, streaming=True, shuffle_buffer_size=7, dataloader_num_workers=workers)
    assert_resumes_from_every_step(data.train, 40, GlobalBatch(batch_size), every=7 if workers else 1)
    assert len(json.dumps(data.train.state())) < 200 * (workers + 1)  # no tokens in it


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_resume_from_every_step(tmp_path: Path, workers: int) -> None:
    folder = write_parquet(tmp_path, [picture(i) for i in range(60)], labels=[i % 2 for i in range(60)])
    data = images_of(folder, streaming=True, shuffle_buffer_size=9, dataloader_num_workers=workers)
    assert_resumes_from_every_step(data.train, 20, GlobalBatch(4, rank=1, processes=2), every=6 if workers else 1)


def test_skipped_images_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images_of(write_parquet(tmp_path, [picture(i) for i in range(60)]), streaming=True, shuffle_buffer_size=50)
    take(data.train, 9, GlobalBatch(4))
    decoded = 0

    def counted(images: list[Any], *args: Any) -> Any:
        nonlocal decoded
        decoded += len(images)
        return original(images, *args)

    from training.data import images

    original = images.to_pixel_values
    monkeypatch.setattr(images, "to_pixel_values", counted)
    next(data.train.batches(9, GlobalBatch(4), CPU, data.train.state()))
    assert decoded == 4


def write_row_groups(folder: Path, files: int = 4, rows: int = 2000, group: int = 100) -> Path:
    folder.mkdir(parents=True)
    for file in range(files):
        table = pyarrow.table({"number": range(file * rows, (file + 1) * rows)})
        pyarrow.parquet.write_table(table, folder / f"train-{file}.parquet", row_group_size=group)
    return folder


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
def test_stream_of_row_groups_resumes_from_every_step(tmp_path: Path, processes: int, held_out: bool) -> None:
    folder = write_row_groups(tmp_path / "rows", files=3, rows=60, group=10)
    dataset = datasets.load_dataset(str(folder), split="train", streaming=True)
    feed = numbers_feed(hold_out(dataset, "number", "train")[0] if held_out else dataset, buffer=7)
    assert_resumes_from_every_step(feed, 50, GlobalBatch(5, rank=processes - 1, processes=processes))


@pytest.mark.parametrize("held_out", [False, True])
def test_resuming_reads_nothing_before_the_place(tmp_path: Path, held_out: bool) -> None:
    """At most two blocks and one part of a shard are reread, with or without a filter that sees each example."""
    folder = write_row_groups(tmp_path / "rows")
    converted = tmp_path / "converted"

    def watched(examples: dict[str, list]) -> list[bool]:
        with open(converted, "a") as file:
            file.writelines(f"{number}\n" for number in examples["number"])
        return [True] * len(examples["number"])

    dataset = datasets.load_dataset(str(folder), split="train", streaming=True)
    dataset = dataset.filter(watched, batched=True, batch_size=streams.ROWS_AT_A_TIME)
    dataset = hold_out(dataset, "number", "train")[0] if held_out else dataset
    feed = numbers_feed(dataset, buffer=50)
    take(feed, 140, GlobalBatch(50))
    converted.unlink()
    assert next(feed.batches(140, GlobalBatch(50), CPU, feed.state()))
    assert len(converted.read_text().splitlines()) <= 2000 // 20 + 3 * 60 + 2 * streams.ROWS_AT_A_TIME


def test_resuming_opens_no_earlier_shard_or_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.packaged_modules.parquet.parquet import Parquet

    opened: list[tuple[str, Any]] = []
    original = Parquet._generate_tables

    def watched(self: Any, files: list[str], row_groups_list: list[Any]) -> Any:
        opened.extend((Path(file).name, groups) for file, groups in zip(files, row_groups_list))
        return original(self, files, row_groups_list)

    monkeypatch.setattr(Parquet, "_generate_tables", watched)
    dataset = datasets.load_dataset(str(write_row_groups(tmp_path / "rows")), split="train", streaming=True)
    feed = numbers_feed(dataset, buffer=50)
    take(feed, 140, GlobalBatch(50))
    assert len(opened) >= 70
    opened.clear()
    next(feed.batches(140, GlobalBatch(50), CPU, feed.state()))
    assert 1 <= len(opened) <= 3 and all(len(groups) == 1 for _, groups in opened)


# ------------------------------------------------------------------------------------------------ readers and epochs


@pytest.mark.parametrize("readers", [1, 2, 3, 5])
@pytest.mark.parametrize("shards", [1, 2, 3, 4, 6, 7, 23])
def test_readers_together_get_each_example_once_per_epoch(shards: int, readers: int) -> None:
    for epoch in (0, 1):
        parts = [epoch_of(sharded(23, shards), reader, readers, epoch) for reader in range(readers)]
        assert sorted(chain.from_iterable(parts)) == list(range(23))
        if shards in (1, 23):  # shards of one size
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("workers", "processes"), [(0, 2), (2, 1), (3, 1), (2, 2)])
def test_processes_and_workers_divide_each_epoch(workers: int, processes: int) -> None:
    epochs: list[list[int]] = [[], []]
    for rank in range(processes):
        feed, own = numbers_feed(sharded(24, 12), 5, workers), 24 // processes
        batches = take(feed, 2 * own, GlobalBatch(1, rank=rank, processes=processes))
        seen = [int(batch["number"]) for batch in batches]
        epochs = [epochs[0] + seen[:own], epochs[1] + seen[own:]]
        if not workers:
            expected = [sorted(epoch_of(sharded(24, 12), rank, processes, number)) for number in (0, 1)]
            assert [sorted(seen[:own]), sorted(seen[own:])] == expected
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 2


def test_order_of_shards_and_blocks_depends_on_epoch_and_seed() -> None:
    shards = [tuple(epoch_of(sharded(40, 8), 0, 1, epoch)) for epoch in range(4)]
    assert len(set(shards)) == 4
    for dataset in (sharded(40, 8), sharded(40, 1)):
        epochs = torch.stack([batch["number"] for batch in take(numbers_feed(dataset, 10), 3, GlobalBatch(40))])
        assert torch.equal(epochs.sort().values, torch.arange(40).expand(3, -1))
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
        other = take(numbers_feed(dataset, 10, seed=1), 1, GlobalBatch(40))[0]["number"]
        assert not torch.equal(other, epochs[0])


def test_stream_is_shuffled_within_the_buffer() -> None:
    (batch,) = take(numbers_feed(sharded(40, 1), buffer=10), 1, GlobalBatch(40))
    blocks = batch["number"].view(4, 10)
    assert torch.equal(blocks.sort().values, torch.arange(40).view(4, 10))
    assert all(not torch.equal(block, block.sort().values) for block in blocks)
    assert len({tuple((block - block.min()).tolist()) for block in blocks}) == 4  # no two in the same order
    (everything,) = take(numbers_feed(sharded(40, 1), buffer=1000), 1, GlobalBatch(40))
    assert (everything["number"][:10] >= 10).any()


@pytest.mark.parametrize("examples, batches", [(20, 1), (200, 4)])
def test_first_batches_can_end_with_the_stream(examples: int, batches: int) -> None:
    feed = StreamFeed(sharded(examples, 2), numbers, 0, buffer=5)
    first = [batch["number"].tolist() for batch in feed.first_batches(10_000, repeat=False)]
    assert len(first) == batches and {number for batch in first for number in batch} == set(range(examples))


def test_limit_keeps_the_first_examples_for_any_number_of_readers() -> None:
    for readers in (1, 2, 3):
        for epoch in (0, 1):
            parts = [epoch_of(sharded(100, 8), reader, readers, epoch, limit=17) for reader in range(readers)]
            assert sorted(chain.from_iterable(parts)) == list(range(17))
    feed = StreamFeed(sharded(100, 8), numbers, 0, buffer=5, limit=17)
    assert_resumes_from_every_step(feed, 15, GlobalBatch(3))
    counts = Counter(torch.cat([batch["number"] for batch in take(feed, 17, GlobalBatch(3))]).tolist())
    assert counts == dict.fromkeys(range(17), 3)


def test_limit_opens_no_shard_after_the_last_example() -> None:
    opened: list[int] = []

    def rows(files: list[int]) -> Iterator[dict]:
        for file in files:
            opened.append(file)
            yield from ({"number": 10 * file + row} for row in range(10))

    dataset = datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": list(range(9))})
    assert epoch_of(dataset, 0, 1, limit=20) == list(range(20))
    assert opened == [0, 1]


def test_very_many_shards_and_row_groups_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_SHARDS", 40)
    assert shard_count(sharded(60, 60)) == 40
    assert sorted(epoch_of(sharded(60, 60), 0, 1)) == list(range(60))
    folder = write_row_groups(tmp_path / "rows", files=1, rows=200, group=2)
    dataset = datasets.load_dataset(str(folder), split="train", streaming=True)
    assert epoch_of(dataset, 0, 1) == list(range(200))
    reader, parts = Reader(dataset, 0, 0, 1), set()
    for _ in reader.rest_of_epoch():
        parts.add(reader.place.part)
    assert len(parts) == streams.MAX_PARTS


def test_never_more_than_the_buffer_is_held() -> None:
    """What was read and is not used yet is a buffer and a few rows, however long the stream is."""
    read = 0

    def rows() -> Iterator[dict]:
        nonlocal read
        for number in range(10**9):
            read += 1
            yield {"number": number}

    reader = Reader(datasets.IterableDataset.from_generator(rows), 0, 0, 1)
    for used, _ in enumerate(islice(ShuffledExamples(reader, buffer=100), 1000)):
        assert read - used <= 100 + streams.ROWS_AT_A_TIME


def test_passes_over_parquet_do_not_wait(tmp_path: Path) -> None:
    """`datasets` waits 5 s after a pass over files that it shuffles itself, to avoid a crash at exit."""
    dataset = datasets.load_dataset(str(write_row_groups(tmp_path / "rows", 2, 20)), split="train", streaming=True)
    started = time.perf_counter()
    take(numbers_feed(dataset, 10), 12, GlobalBatch(20))
    assert time.perf_counter() - started < 4


# ------------------------------------------------------------------------------------------------------------ faults


def test_stream_without_examples_says_so() -> None:
    for processes in (1, 2):
        feed = numbers_feed(sharded(5, 1).filter(lambda example: False), 10)
        with pytest.raises(
            ValueError, match=rf"Reader 0 of {processes} .*found no example in the stream in \d+ epochs"
        ):
            take(feed, 1, GlobalBatch(1, processes=processes))


def test_reader_without_examples_in_one_epoch_continues_with_the_next() -> None:
    dataset = sharded(2, 2).filter(lambda example: example["number"] == 1)
    for rank in (0, 1):
        batches = take(numbers_feed(dataset, 10), 3, GlobalBatch(1, rank=rank, processes=2))
        assert [int(batch["number"]) for batch in batches] == [1, 1, 1]
        # Two readers of one example take turns.
        one = take(numbers_feed(sharded(1, 1), 10), 3, GlobalBatch(1, rank=rank, processes=2))
        assert [int(batch["number"]) for batch in one] == [0, 0, 0]


@pytest.mark.parametrize(
    ("workers", "processes", "shards", "message"),
    [
        (1, 1, 4, "was read with 0 workers and now has 1.*--dataloader_num_workers"),
        (0, 2, 4, "was read with 1 processes and now has 2"),
        (0, 1, 5, "was read with 4 shards and now has 5.*--dataset_revision"),
    ],
)
def test_state_of_another_stream_is_refused(workers: int, processes: int, shards: int, message: str) -> None:
    feed = numbers_feed(sharded(24, 4), 5)
    take(feed, 2, GlobalBatch(2))
    other = numbers_feed(sharded(24, shards), 5, workers)
    with pytest.raises(ValueError, match=message):
        other.batches(2, GlobalBatch(2, processes=processes), CPU, feed.state())
    with pytest.raises(ValueError, match="first_step must be 0 for a stream without a state, got 2"):
        feed.batches(2, GlobalBatch(2), CPU)


def test_read_error_in_the_middle_of_a_stream_is_one_line(tmp_path: Path) -> None:
    def rows() -> Iterator[dict]:
        yield {"number": 1}
        raise ConnectionError("the line\nis dead")

    for workers in (0, 1):
        feed = numbers_feed(datasets.IterableDataset.from_generator(rows), 1, workers)
        with pytest.raises(ValueError, match=r"cannot be read any further: .*the line is dead Check the network"):
            take(feed, 5, GlobalBatch(1))


# ----------------------------------------------------------------------------------------------------------- workers


def wait_until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_workers_ignore_signals_to_the_process_group() -> None:
    batches = numbers_feed(sharded(1000, 2), 10, workers=2).batches(0, GlobalBatch(1), CPU)
    assert len(list(islice(batches, 2))) == 2  # one from each worker: both are up
    workers = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        # From another process: this one's SIGTERM is how the loader ends a worker.
        subprocess.run(["kill", f"-{number.value}", *[str(worker.pid) for worker in workers]], check=True)
    time.sleep(0.2)
    assert len(list(islice(batches, 50))) == 50
    assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
    workers[0].terminate()
    wait_until(lambda: not workers[0].is_alive())


def test_workers_end_when_the_training_is_killed() -> None:
    """As a fork of this process: the training is a child, its workers are grandchildren."""
    receive, send = multiprocessing.Pipe(duplex=False)
    training = multiprocessing.get_context("fork").Process(target=train_with_workers, args=(send,))
    training.start()
    assert receive.poll(20)
    pids = receive.recv()
    training.kill()
    training.join()
    assert len(pids) == 2
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def train_with_workers(send: Any) -> None:
    batches = numbers_feed(sharded(1000, 2), 10, workers=2).batches(0, GlobalBatch(1), CPU)
    next(batches)
    send.send([worker.pid for worker in multiprocessing.active_children()])
    time.sleep(100)


def is_running(pid: int) -> bool:
    """A zombie does not count."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


# ------------------------------------------------------------------------------------------------------------ memory


def test_memory_stays_flat_over_a_long_stream(tmp_path: Path) -> None:
    folder = write_row_groups(tmp_path / "rows", files=4, rows=5_000, group=500)
    dataset = datasets.load_dataset(str(folder), split="train", streaming=True)
    batches = numbers_feed(dataset, buffer=500).batches(0, GlobalBatch(500), CPU)
    held = []
    tracemalloc.start()
    for _ in range(4):
        assert len(list(islice(batches, 15))) == 15  # 30,000 examples in all: an epoch and a half
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0] + pyarrow.total_allocated_bytes())
    tracemalloc.stop()
    assert held[-1] - held[0] < 500_000  # bytes; the 22,500 examples read meanwhile take about 200 each
