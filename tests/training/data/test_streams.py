"""A stream comes in an order that seed and readers decide, and goes on from any place as if it had never stopped."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import time
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

from tests.training.data.test_data import (
    CPU,
    ROOT,
    assert_same,
    encoded,
    images_of,
    own_cache,  # noqa: F401 (a fixture)
    picture,
    some,
    text_of,
    values,
    write_parquet,
    write_text,
)
from training.config.flags import DataArguments
from training.data.batches import Batch, Feed, GlobalBatch
from training.data.images import load_images
from training.data.sources import hold_out
from training.data.streams import (
    MAX_PARTS,
    MAX_SHARDS,
    ROWS_AT_A_TIME,
    Place,
    ShuffledExamples,
    Source,
    State,
    StreamFeed,
    shard_count,
)
from training.data.text import load_text


def sharded(count: int, shards: int) -> Any:
    return datasets.Dataset.from_dict({"number": list(range(count))}).to_iterable_dataset(num_shards=shards)


def numbers(examples: ShuffledExamples, batch_size: int, state: State) -> Iterator[tuple[Batch, State]]:
    while True:
        rows = list(islice(examples, batch_size))
        yield {"number": torch.tensor([row["number"] for row in rows])}, examples.position


def numbers_feed(dataset: Any, buffer: int, workers: int = 0, seed: int = 0) -> StreamFeed:
    return StreamFeed(dataset, numbers, seed, buffer, workers)


def epoch_of(dataset: Any, reader: int, readers: int, epoch: int = 0, limit: int | None = None) -> list[int]:
    source = Source(dataset, 0, reader, readers, limit, Place(epoch))
    return [example["number"] for _, example in source.rest_of_epoch()]


def assert_resumes_from_every_step(feed: Feed, batches: int, global_batch: GlobalBatch, every: int = 1) -> None:
    """Also through JSON, and from a state that a resumed feed told before its first batch."""
    states, whole = [], []
    for batch in islice(feed.batches(0, global_batch, CPU), batches):
        whole.append(batch)
        states.append(json.dumps(feed.state()))
    assert len({str(batch) for batch in whole}) > 3
    for step in range(0, batches - 1, every):
        rest = feed.batches(step + 1, global_batch, CPU, json.loads(states[step]))
        assert json.dumps(feed.state()) == states[step]
        assert_same(list(islice(rest, batches - step - 1)), whole[step + 1 :])


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("buffer", [1, 2, 9, 100])
@pytest.mark.parametrize(("shards", "processes"), [(1, 1), (5, 1), (1, 2), (5, 2), (4, 2)])
def test_stream_goes_on_from_every_step(shards: int, processes: int, buffer: int) -> None:
    feed = numbers_feed(sharded(23, shards), buffer)
    for rank in range(processes):
        assert_resumes_from_every_step(
            feed, 20, GlobalBatch(3, rank=rank, processes=processes)
        )  # over two epochs' ends


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_stream_read_by_workers_goes_on_at_the_one_whose_turn_it_is(workers: int) -> None:
    feed = numbers_feed(sharded(23, 5), 9, workers)
    assert_resumes_from_every_step(feed, 14, GlobalBatch(2, rank=1, processes=2), every=2 if workers < 3 else 4)


def test_state_is_of_the_last_batch_handed_out_whatever_workers_read_ahead() -> None:
    feed = numbers_feed(sharded(100, 2), 10, workers=2)
    batches = feed.batches(0, GlobalBatch(4), CPU)
    for count in range(1, 6):
        next(batches)
        time.sleep(0.1)  # for the workers, to fill their queues
        reached = [10 * reader["block"] + reader["used"] if reader else 0 for reader in feed.state()["readers"]]
        assert sum(reached) == 4 * count and feed.state()["next"] == count % 2


def text_dataset(folder: Path) -> Path:
    """Documents from empty to twice as long as what is tokenized together, in three shards."""
    documents = [" ".join(map(str, range(i, i + i * i % 2000))) if i % 10 else "" for i in range(90)]
    for shard in range(3):
        datasets.Dataset.from_dict({"text": documents[shard::3]}).to_parquet(folder / f"train-{shard}.parquet")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [2, 40])
def test_streamed_text_goes_on_from_every_step(tmp_path: Path, batch_size: int, workers: int) -> None:
    folder = text_dataset(tmp_path / "text")
    data = text_of(folder, 64, streaming=True, shuffle_buffer_size=7, dataloader_num_workers=workers)
    assert_resumes_from_every_step(data.train, 40, GlobalBatch(batch_size), every=7 if workers else 1)
    assert len(json.dumps(data.train.state())) < 200 * (workers + 1)  # no tokens in it


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_go_on_from_every_step(tmp_path: Path, workers: int) -> None:
    folder = write_parquet(tmp_path, [picture(i) for i in range(60)], labels=[i % 2 for i in range(60)])
    data = images_of(folder, streaming=True, shuffle_buffer_size=9, dataloader_num_workers=workers)
    assert_resumes_from_every_step(data.train, 20, GlobalBatch(4, rank=1, processes=2), every=6 if workers else 1)


def test_images_that_are_skipped_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images_of(write_parquet(tmp_path, [picture(i) for i in range(60)]), streaming=True, shuffle_buffer_size=50)
    some(data.train, 9, GlobalBatch(4))
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
def test_stream_of_row_groups_goes_on_from_every_step(tmp_path: Path, processes: int, held_out: bool) -> None:
    folder = write_row_groups(tmp_path / "rows", files=3, rows=60, group=10)
    dataset = datasets.load_dataset(str(folder), split="train", streaming=True)
    feed = numbers_feed(hold_out(dataset, "number", "train")[0] if held_out else dataset, buffer=7)
    assert_resumes_from_every_step(feed, 50, GlobalBatch(5, rank=processes - 1, processes=processes))


@pytest.mark.parametrize("held_out", [False, True])
def test_going_to_a_place_reads_nothing_of_what_is_before_it(tmp_path: Path, held_out: bool) -> None:
    """At most two blocks and a part of a shard are read again, whether a filter looks at each example or not."""
    folder = write_row_groups(tmp_path / "rows")
    converted = tmp_path / "converted"

    def watched(examples: dict[str, list]) -> list[bool]:
        with open(converted, "a") as file:
            file.writelines(f"{number}\n" for number in examples["number"])
        return [True] * len(examples["number"])

    dataset = datasets.load_dataset(str(folder), split="train", streaming=True)
    dataset = dataset.filter(watched, batched=True, batch_size=ROWS_AT_A_TIME)
    dataset = hold_out(dataset, "number", "train")[0] if held_out else dataset
    feed = numbers_feed(dataset, buffer=50)
    some(feed, 140, GlobalBatch(50))
    converted.unlink()
    assert next(feed.batches(140, GlobalBatch(50), CPU, feed.state()))
    assert len(converted.read_text().splitlines()) <= 2000 // 20 + 3 * 60 + 2 * ROWS_AT_A_TIME


def test_shards_and_row_groups_before_a_place_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.packaged_modules.parquet.parquet import Parquet

    opened: list[tuple[str, Any]] = []
    original = Parquet._generate_tables

    def watched(self: Any, files: list[str], row_groups_list: list[Any]) -> Any:
        opened.extend((Path(file).name, groups) for file, groups in zip(files, row_groups_list))
        return original(self, files, row_groups_list)

    monkeypatch.setattr(Parquet, "_generate_tables", watched)
    dataset = datasets.load_dataset(str(write_row_groups(tmp_path / "rows")), split="train", streaming=True)
    feed = numbers_feed(dataset, buffer=50)
    some(feed, 140, GlobalBatch(50))
    assert len(opened) >= 70
    opened.clear()
    next(feed.batches(140, GlobalBatch(50), CPU, feed.state()))
    assert 1 <= len(opened) <= 3 and all(len(groups) == 1 for _, groups in opened)


# ------------------------------------------------------------------------------------------------- readers and epochs


@pytest.mark.parametrize("readers", [1, 2, 3, 5])
@pytest.mark.parametrize("shards", [1, 2, 3, 4, 6, 7, 23])
def test_readers_together_get_each_example_once_an_epoch(shards: int, readers: int) -> None:
    for epoch in (0, 1):
        parts = [epoch_of(sharded(23, shards), reader, readers, epoch) for reader in range(readers)]
        assert sorted(chain.from_iterable(parts)) == list(range(23))
        if shards in (1, 23):  # shards of one size
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_each_reader_gets_its_share_of_every_epoch_through_the_feed() -> None:
    for rank in range(2):
        feed = numbers_feed(sharded(24, 4), buffer=5)
        seen = [int(b["number"]) for b in some(feed, 36, GlobalBatch(1, rank=rank, processes=2))]
        epochs = [seen[start : start + 12] for start in (0, 12, 24)]
        assert [sorted(epoch) for epoch in epochs] == [
            sorted(epoch_of(sharded(24, 4), rank, 2, number)) for number in range(3)
        ]


@pytest.mark.parametrize(("workers", "processes"), [(2, 1), (3, 1), (2, 2)])
def test_processes_and_workers_share_a_stream(workers: int, processes: int) -> None:
    seen: list[int] = []
    for rank in range(processes):
        feed = numbers_feed(sharded(24, 12), 5, workers)
        batches = some(feed, 24 // processes, GlobalBatch(1, rank=rank, processes=processes))
        seen += [int(batch["number"]) for batch in batches]
    assert sorted(seen) == list(range(24))


def test_order_of_shards_and_blocks_changes_with_epoch_and_seed() -> None:
    shards = [tuple(epoch_of(sharded(40, 8), 0, 1, epoch)) for epoch in range(4)]
    assert len(set(shards)) == 4
    for dataset in (sharded(40, 8), sharded(40, 1)):
        epochs = torch.stack([batch["number"] for batch in some(numbers_feed(dataset, 10), 3, GlobalBatch(40))])
        assert torch.equal(epochs.sort().values, torch.arange(40).expand(3, -1))
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
        other = some(numbers_feed(dataset, 10, seed=1), 1, GlobalBatch(40))[0]["number"]
        assert not torch.equal(other, epochs[0])


def test_stream_is_shuffled_within_its_buffer() -> None:
    (batch,) = some(numbers_feed(sharded(40, 1), buffer=10), 1, GlobalBatch(40))
    blocks = batch["number"].view(4, 10)
    assert torch.equal(blocks.sort().values, torch.arange(40).view(4, 10))
    assert all(not torch.equal(block, block.sort().values) for block in blocks)
    assert len({tuple((block - block.min()).tolist()) for block in blocks}) == 4  # no two in the same order
    (everything,) = some(numbers_feed(sharded(40, 1), buffer=1000), 1, GlobalBatch(40))
    assert (everything["number"][:10] >= 10).any()


def test_limit_keeps_the_first_examples_whoever_reads() -> None:
    for readers in (1, 2, 3):
        for epoch in (0, 1):
            parts = [epoch_of(sharded(100, 8), reader, readers, epoch, limit=17) for reader in range(readers)]
            assert sorted(chain.from_iterable(parts)) == list(range(17))
    feed = StreamFeed(sharded(100, 8), numbers, 0, buffer=5, limit=17)
    assert_resumes_from_every_step(feed, 15, GlobalBatch(3))
    counts = Counter(torch.cat([batch["number"] for batch in some(feed, 17, GlobalBatch(3))]).tolist())
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


def test_very_many_shards_are_joined_and_very_many_row_groups_too(tmp_path: Path) -> None:
    dataset = sharded(MAX_SHARDS + 500, MAX_SHARDS + 500)
    assert shard_count(dataset) == MAX_SHARDS
    assert sorted(epoch_of(dataset, 0, 1)) == list(range(MAX_SHARDS + 500))
    folder = write_row_groups(tmp_path / "rows", files=1, rows=200, group=2)
    dataset = datasets.load_dataset(str(folder), split="train", streaming=True)
    assert epoch_of(dataset, 0, 1) == list(range(200))
    source = Source(dataset, 0, 0, 1, None, Place())
    assert max(origin.part for origin, _ in source.rest_of_epoch()) < MAX_PARTS


def test_never_more_than_the_buffer_is_held() -> None:
    """Memory stays flat: what was read and not used yet is a buffer and a few rows, however long the stream is."""
    read = 0

    def rows() -> Iterator[dict]:
        nonlocal read
        for number in range(10**9):
            read += 1
            yield {"number": number}

    source = Source(datasets.IterableDataset.from_generator(rows), 0, 0, 1, None, Place())
    for used, _ in enumerate(islice(ShuffledExamples(source, buffer=100), 1000)):
        assert read - used <= 100 + ROWS_AT_A_TIME


def test_passes_over_parquet_do_not_wait(tmp_path: Path) -> None:
    """After a pass over files that `datasets` shuffles it waits 5 s, for fear of a crash at the interpreter's exit."""
    dataset = datasets.load_dataset(str(write_row_groups(tmp_path / "rows", 2, 20)), split="train", streaming=True)
    started = time.perf_counter()
    some(numbers_feed(dataset, 10), 12, GlobalBatch(20))
    assert time.perf_counter() - started < 4


# ------------------------------------------------------------------------------------------------------------ faults


def test_stream_without_examples_says_so() -> None:
    for processes in (1, 2):
        feed = numbers_feed(sharded(5, 1).filter(lambda example: False), 10)
        with pytest.raises(
            ValueError, match=rf"Reader 0 of {processes} .*found no example in the stream in \d+ epochs"
        ):
            some(feed, 1, GlobalBatch(1, processes=processes))


def test_reader_whose_shards_are_empty_in_one_epoch_waits_for_the_next() -> None:
    dataset = sharded(2, 2).filter(lambda example: example["number"] == 1)
    for rank in (0, 1):
        batches = some(numbers_feed(dataset, 10), 3, GlobalBatch(1, rank=rank, processes=2))
        assert [int(batch["number"]) for batch in batches] == [1, 1, 1]
        one = some(
            numbers_feed(sharded(1, 1), 10), 3, GlobalBatch(1, rank=rank, processes=2)
        )  # the readers take turns
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
    some(feed, 2, GlobalBatch(2))
    other = numbers_feed(sharded(24, shards), 5, workers)
    with pytest.raises(ValueError, match=message):
        other.batches(2, GlobalBatch(2, processes=processes), CPU, feed.state())
    with pytest.raises(ValueError, match="first_step: a stream can begin at 0 or go on from a state, got 2"):
        feed.batches(2, GlobalBatch(2), CPU)


def test_file_that_cannot_be_read_any_further_is_told_in_a_line(tmp_path: Path) -> None:
    def rows() -> Iterator[dict]:
        yield {"number": 1}
        raise ConnectionError("the line\nis dead")

    for workers in (0, 1):
        feed = numbers_feed(datasets.IterableDataset.from_generator(rows), 1, workers)
        with pytest.raises(ValueError, match=r"cannot be read any further: .*the line is dead Check the network"):
            some(feed, 5, GlobalBatch(1))


def test_image_at_fault_is_named_by_its_shard(tmp_path: Path) -> None:
    write_parquet(tmp_path, [*[picture(i) for i in range(13)], encoded(picture(1))[:-30], *[picture(2)] * 30])
    write_parquet(tmp_path, [picture(1)], "test")
    data = images_of(tmp_path, streaming=True, shuffle_buffer_size=5)
    with pytest.raises(ValueError, match=r"\(train\), example 13 of shard 0: expected a readable image"):
        some(data.train, 10, GlobalBatch(4))


# ----------------------------------------------------------------------------------------------------------- workers


def wait_until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_signals_to_the_whole_group_leave_workers_alone_until_the_training_ends() -> None:
    batches = numbers_feed(sharded(1000, 2), 10, workers=2).batches(0, GlobalBatch(1), CPU)
    assert len(list(islice(batches, 2))) == 2  # one of each worker: both are up
    workers = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not from this process, whose SIGTERM is the loader's way to end a worker.
        subprocess.run(["kill", f"-{number.value}", *[str(worker.pid) for worker in workers]], check=True)
    time.sleep(0.2)
    assert len(list(islice(batches, 50))) == 50
    assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
    workers[0].terminate()
    wait_until(lambda: not workers[0].is_alive())


def test_workers_end_when_the_training_is_killed() -> None:
    code = (
        "import multiprocessing, time, torch\n"
        "from tests.training.data.test_streams import GlobalBatch, numbers_feed, sharded\n"
        "batches = numbers_feed(sharded(1000, 2), 10, workers=2).batches(0, GlobalBatch(1), torch.device('cpu'))\n"
        "next(batches)\n"
        "print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)\n"
        "time.sleep(100)\n"
    )
    training = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    pids = [int(pid) for pid in training.stdout.readline().split()]
    training.kill()
    training.wait()
    assert len(pids) == 2
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def is_running(pid: int) -> bool:
    """Not even as a zombie that nobody has waited for."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


# ------------------------------------------------------------------------------------------------------------ memory


def test_memory_stays_flat_over_a_long_stream(tmp_path: Path) -> None:
    write_row_groups(tmp_path / "rows", files=4, rows=50_000, group=5_000)
    code = (
        "import datasets, psutil, sys\n"
        "from itertools import islice\n"
        "from tests.training.data.test_streams import CPU, GlobalBatch, numbers_feed\n"
        "dataset = datasets.load_dataset(sys.argv[1], split='train', streaming=True)\n"
        "batches = numbers_feed(dataset, buffer=1000).batches(0, GlobalBatch(1000), CPU)\n"
        "memory = []\n"
        "for quarter in range(4):\n"
        "    assert len(list(islice(batches, 75)))\n"  # 300,000 examples: an epoch and a half
        "    memory.append(psutil.Process().memory_info().rss)\n"
        "print((memory[-1] - memory[0]) / 2**20)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rows")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 10  # MiB; the 225,000 examples read meanwhile take about 200 bytes each


# ------------------------------------------------------------------------------------------------------------- texts


def test_streamed_text_predicts_every_token_once(tmp_path: Path) -> None:
    documents = [f"Document {i} has its own text, {'x' * (i % 11 + 100)}." for i in range(100)]
    datasets.Dataset.from_dict({"text": documents}).to_parquet(tmp_path / "train.parquet")
    data = text_of(tmp_path, context=8, streaming=True, shuffle_buffer_size=1000)
    assert isinstance(data.train, StreamFeed) and data.eval_split == "10 % of train"
    end = data.tokenizer.eos_token
    evaluated = [part for part in data.tokenizer.decode(data.eval_tokens.tolist()).split(end) if part]
    assert 0 < len(evaluated) < 30
    trained = set(documents) - set(evaluated)
    batches = some(data.train, 400, GlobalBatch(5))
    inputs = torch.cat([batch["input_ids"].flatten() for batch in batches])
    labels = torch.cat([batch["labels"].flatten() for batch in batches])
    assert torch.equal(inputs[1:], labels[:-1])  # one run of tokens, batch after batch
    read = data.tokenizer.decode(inputs.tolist()).split(end)[: len(trained)]
    assert sorted(read) == sorted(trained)  # one epoch


def test_streamed_text_file_comes_in_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}\nof two lines." + "x" * i for i in range(200)]
    data = text_of(write_text(tmp_path / "a.txt", "\n\n".join(paragraphs)), streaming=True)
    text = data.tokenizer.decode(
        torch.cat([b["input_ids"].flatten() for b in some(data.train, 90, GlobalBatch(2))]).tolist()
    )
    assert set(text.split(data.tokenizer.eos_token)[:-1]) <= set(paragraphs)


def test_streamed_and_held_examples_are_the_same_with_a_limit(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, [picture(i) for i in range(50)])
    write_parquet(tmp_path, [picture(1)], "test")
    seen = []
    for streaming in (False, True):
        (batch,) = some(images_of(folder, streaming=streaming, max_train_samples=7).train, 1, GlobalBatch(7))
        seen.append(sorted(values(batch["pixel_values"])))
    assert seen[0] == seen[1] == list(range(7))


def test_built_ins_can_be_streamed() -> None:
    assert len(some(load_images(DataArguments(streaming=True), 0).train, 2, GlobalBatch(4))) == 2
    assert len(some(load_text(DataArguments(streaming=True), 0, 16).train, 2, GlobalBatch(4))) == 2
