"""Datasets of every form are found and checked, and their examples come in an order that the seed alone decides."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hfgen.tokenization import build_character_tokenizer
from training.config.flags import DataArguments
from training.data.batches import Batch, EpochOrder, Feed, GlobalBatch
from training.data.feeds import DatasetFeed, TensorFeed, TokenFeed
from training.data.images import DecodedPixels, ImageData, load_images
from training.data.text import TextData, load_text
from training.data.workers import spare_workers


CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def images_of(name: str | Path, image_size: list[int] | None = None, num_channels: int | None = None, **args: Any
              ) -> ImageData:  # fmt: skip
    return load_images(DataArguments(dataset_name=str(name), **args), 0, image_size, num_channels)


def text_of(name: str | Path, context: int = 8, tokenizer: Any = None, **args: Any) -> TextData:
    return load_text(DataArguments(dataset_name=str(name), **args), 0, context, tokenizer)


def some(feed: Feed, count: int, global_batch: GlobalBatch, first_step: int = 0) -> list[Batch]:
    return list(islice(feed.batches(first_step, global_batch, CPU), count))


def assert_same(ones: list[Batch], others: list[Batch]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def picture(value: int, mode: str = "L", size: tuple[int, int] = (8, 4)) -> Image.Image:
    """One colour; width 8, height 4 unless told."""
    return Image.new("L", size, value).convert(mode)


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def write_parquet(folder: Path, images: list[Any], split: str = "train", labels: list[Any] | None = None) -> Path:
    """A dataset folder in the Hub's layout; images are PIL, bytes or None."""
    cells = [{"bytes": encoded(image) if isinstance(image, Image.Image) else image, "path": None} for image in images]
    columns: dict[str, list] = {"image": [cell if cell["bytes"] is not None else None for cell in cells]}
    features: dict[str, Any] = {"image": datasets.Image()}
    if labels is not None:
        columns["label"], features["label"] = labels, datasets.ClassLabel(names=["cat", "dog"])
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def values(pixels: Tensor) -> list[int]:
    """The colour of each one-coloured image."""
    return (pixels[:, 0, 0, 0] * (255 if pixels.is_floating_point() else 1)).round().int().tolist()


# ----------------------------------------------------------------------------------------------------------- order


def test_every_example_comes_once_an_epoch_and_batches_span_epochs() -> None:
    order = EpochOrder(10, seed=0)
    parts = list(order.positions(0, 40))
    assert [epoch for epoch, _ in parts] == [0, 1, 2, 3]
    assert all(sorted(part.tolist()) == list(range(10)) for _, part in parts)
    assert len({tuple(part.tolist()) for _, part in parts}) == 4  # each epoch in another order
    spanning = list(order.positions(7, 14))
    assert [(epoch, len(part)) for epoch, part in spanning] == [(0, 3), (1, 4)]
    sequence = torch.cat([part for _, part in parts])
    assert torch.equal(torch.cat([part for _, part in spanning]), sequence[7:14])
    assert not torch.equal(EpochOrder(10, seed=1).epoch(0), order.epoch(0))


@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(12, 1, 1), (6, 1, 2), (4, 3, 1), (2, 3, 2)])
def test_ranks_and_micro_steps_make_up_the_same_global_batches(batch_size: int, accumulation: int, processes: int
                                                               ) -> None:  # fmt: skip
    pixels = torch.arange(25, dtype=torch.uint8).view(-1, 1, 1, 1)
    whole = torch.cat([batch["pixel_values"] for batch in some(TensorFeed(pixels, None, 3), 5, GlobalBatch(12))])
    shares = [GlobalBatch(batch_size, accumulation, rank, processes) for rank in range(processes)]
    ranks = [some(TensorFeed(pixels, None, 3), 5 * accumulation, global_batch) for global_batch in shares]
    rows = [batches[micro]["pixel_values"] for micro in range(5 * accumulation) for batches in ranks]
    assert torch.equal(torch.cat(rows), whole)


def feeds(tmp_path: Path) -> dict[str, Feed]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50, 333).astype(np.uint16)
    documents = [" ".join(f"w{i}-{j}" for j in range(i % 7 + 30)) for i in range(150)]
    text = datasets.Dataset.from_dict({"text": documents})
    text.to_parquet(tmp_path / "text" / "train.parquet")
    streamed_text = text_of(tmp_path / "text", streaming=True, shuffle_buffer_size=10)
    return {
        "tensor": images_of("digits", max_train_samples=50, max_eval_samples=2).train,
        "dataset": images_of("digits", max_train_samples=50, max_eval_samples=2, in_memory=False).train,
        "tokens": TokenFeed(tokens, 10, seed=0),
        "stream": images_of("digits", streaming=True, max_eval_samples=2, shuffle_buffer_size=50).train,
        "stream-workers": images_of("digits", streaming=True, max_eval_samples=2, dataloader_num_workers=2).train,
        "stream-text": streamed_text.train,
    }


def test_starting_at_a_step_equals_skipping_the_steps_before(tmp_path: Path) -> None:
    global_batch = GlobalBatch(4, accumulation=3, rank=1, processes=2)
    for feed in feeds(tmp_path).values():
        some(feed, 21, global_batch)
        state = feed.state()
        assert_same(list(islice(feed.batches(7, global_batch, CPU, state), 4)), some(feed, 25, global_batch)[21:])


def test_memory_and_workers_give_identical_batches() -> None:
    expected = some(images_of("digits", max_train_samples=100).train, 6, GlobalBatch(40))
    for workers in (0, 2):
        data = images_of("digits", max_train_samples=100, in_memory=False, dataloader_num_workers=workers)
        assert isinstance(data.train, DatasetFeed)
        assert_same(some(data.train, 6, GlobalBatch(40)), expected)


def test_by_default_there_are_as_many_workers_as_cores_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert spare_workers() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert spare_workers() == 3
    data = images_of("digits", in_memory=False, max_train_samples=20, max_eval_samples=2)
    assert isinstance(data.train, DatasetFeed) and data.train.num_workers == 3
    assert getattr(images_of("digits", streaming=True, max_eval_samples=2).train, "num_workers", None) == 0


def test_making_a_feed_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    """Else dropout of a resumed run would differ from that of a run that began its feed earlier."""
    for name, feed in feeds(tmp_path).items():
        torch.manual_seed(0)
        expected = torch.rand(2)
        torch.manual_seed(0)
        some(feed, 1, GlobalBatch(2))
        assert torch.equal(torch.rand(2), expected), name


# ----------------------------------------------------------------------------------------------------------- tokens


def test_labels_are_the_tokens_that_follow() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    for batch in some(TokenFeed(tokens, 8, seed=0), 10, GlobalBatch(5)):
        assert batch["input_ids"].shape == batch["labels"].shape == (5, 8)
        assert torch.equal((batch["input_ids"] + 1) % 100, batch["labels"])


def test_every_token_is_used_equally_and_meets_every_position() -> None:
    length, context = 61, 4
    feed = TokenFeed(np.arange(length, dtype=np.uint16), context, seed=0)
    assert feed.num_examples == 15
    epochs = 2000
    inputs = torch.cat([batch["input_ids"] for batch in some(feed, epochs, GlobalBatch(15))])
    for epoch in inputs.view(epochs, -1)[:50]:
        assert len(set(epoch.tolist())) == 60  # no token twice, and only the remainder left out
    starts = {min(epoch.tolist()[::context]) for epoch in inputs.view(epochs, -1)[:50]}
    assert len(starts) > 3  # the cut moves from epoch to epoch
    uses = torch.bincount(inputs.flatten(), minlength=length) / epochs
    assert (uses - 60 / 61).abs().max() < 0.02
    positions = torch.stack([torch.bincount(inputs[:, at], minlength=length) for at in range(context)]) / epochs
    assert (positions - 15 / 61).abs().max() < 0.06  # five standard errors


def test_evaluation_counts_each_token_once_and_keeps_the_last_window(tmp_path: Path) -> None:
    data = text_of(write_text(tmp_path / "a.txt", "abcdefghij" * 23), context=8)
    assert len(data.eval_tokens) == 23  # the last tenth of 230 characters
    batches = list(data.eval_batches(2, CPU))
    inputs, labels = (torch.cat([batch[name] for batch in batches]).flatten() for name in ("input_ids", "labels"))
    counted = labels != -100
    assert inputs[counted].tolist() == data.eval_tokens[:-1].tolist()
    assert labels[counted].tolist() == data.eval_tokens[1:].tolist()
    assert [len(batch["labels"]) for batch in batches] == [2, 1]


# ----------------------------------------------------------------------------------------------------------- forms


def test_digits_need_nothing_but_scikit_learn() -> None:
    data = load_images(DataArguments(), 0)
    assert (data.name, data.eval_split, data.image_size, data.num_channels) == ("digits", "test", (8, 8), 1)
    assert data.train.num_examples == 1500 and len(data.eval_pixels) == 297
    assert data.label_names == [str(digit) for digit in range(10)]
    from sklearn.datasets import load_digits

    expected = torch.from_numpy(load_digits().images[1500:])
    torch.testing.assert_close(data.eval_pixels[:, 0] / 255 * 16, expected.float(), atol=0.04, rtol=0)
    assert data.eval_labels is not None
    assert data.eval_labels.tolist() == load_digits().target[1500:].tolist()
    (batch,) = some(data.train, 1, GlobalBatch(64))
    assert (
        batch["pixel_values"].min() >= 0 and batch["pixel_values"].max() == 1 and batch["labels"].dtype == torch.long
    )


def test_python_docs_are_cut_at_nine_tenths() -> None:
    data = load_text(DataArguments(), 0, 64)
    assert isinstance(data.train, TokenFeed)
    total = len(data.train.tokens) + len(data.eval_tokens)
    assert total > 300_000 and len(data.train.tokens) == int(0.9 * total)
    assert data.characters_per_token == pytest.approx(1.0, abs=0.01)
    assert data.eval_split == "last 10 % of train"


def test_dataset_folder_with_splits_and_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path, [picture(i) for i in range(10)], labels=[i % 2 for i in range(10)])
    write_parquet(tmp_path, [picture(100 + i) for i in range(3)], "validation", labels=[0, 1, 1])
    data = images_of(tmp_path)
    assert (data.image_size, data.num_channels, data.label_names) == ((4, 8), 1, ["cat", "dog"])
    assert data.eval_split == "validation" and values(data.eval_pixels) == [100, 101, 102]
    assert data.eval_labels is not None and data.eval_labels.tolist() == [0, 1, 1]
    (batch,) = some(data.train, 1, GlobalBatch(10))
    assert sorted(values(batch["pixel_values"])) == list(range(10))
    assert [value % 2 for value in values(batch["pixel_values"])] == batch["labels"].tolist()
    (swapped,) = some(images_of(tmp_path, train_split="validation", eval_split="train").train, 1, GlobalBatch(3))
    assert sorted(values(swapped["pixel_values"])) == [100, 101, 102]


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_of_images_with_classes(tmp_path: Path, streaming: bool) -> None:
    for number in range(60):
        path = tmp_path / "pictures" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    data = images_of(tmp_path / "pictures", streaming=streaming)
    assert data.label_names == ["cat", "dog"] and data.eval_labels is not None
    assert [value % 2 for value in values(data.eval_pixels)] == data.eval_labels.tolist()
    held_out = set(values(data.eval_pixels))
    (batch,) = some(data.train, 1, GlobalBatch(60 - len(held_out)))
    assert set(values(batch["pixel_values"])) == set(range(60)) - held_out


def test_folder_of_images_without_classes(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(20):
        picture(number, "RGB").save(tmp_path / "pictures" / f"{number:02d}.png")
    data = images_of(tmp_path / "pictures")
    assert data.label_names == [] and data.eval_labels is None
    assert data.num_channels == 3 and "labels" not in some(data.train, 1, GlobalBatch(2))[0]


def test_folder_that_save_to_disk_wrote(tmp_path: Path) -> None:
    images_dict = {"image": [picture(i) for i in range(20)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(images_dict, features=features).save_to_disk(tmp_path / "saved")
    for streaming in (False, True):
        data = images_of(tmp_path / "saved", streaming=streaming)
        assert set(values(some(data.train, 1, GlobalBatch(8))[0]["pixel_values"])).isdisjoint(values(data.eval_pixels))


def test_text_file_is_one_document(tmp_path: Path) -> None:
    text = "First line.\n\nSecond: äöü\n" * 20
    data = text_of(write_text(tmp_path / "input.txt", text))
    assert isinstance(data.train, TokenFeed)
    assert data.tokenizer.decode([*data.train.tokens.tolist(), *data.eval_tokens.tolist()]) == text


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_folder_of_text_files_has_a_document_a_file(tmp_path: Path, suffix: str) -> None:
    for name in "abc":
        write_text(tmp_path / "texts" / f"{name}{suffix}", name * 50)
    data = text_of(tmp_path / "texts")
    assert isinstance(data.train, TokenFeed)
    text = data.tokenizer.decode([*data.train.tokens.tolist(), *data.eval_tokens.tolist()])
    end = data.tokenizer.eos_token
    assert text.replace(end, "|") == "a" * 50 + "|" + "b" * 50 + "|" + "c" * 35 + "|" + "c" * 15


def test_text_splits_of_a_dataset(tmp_path: Path) -> None:
    for split, letter in (("train", "a"), ("test", "b"), ("validation", "c")):
        datasets.Dataset.from_dict({"body": [letter * 30] * 3}).to_parquet(
            tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        )
    data = text_of(tmp_path, text_column="body")
    assert data.eval_split == "test" and data.tokenizer.decode(data.eval_tokens[:3].tolist()) == "bbb"
    data = text_of(tmp_path, text_column="body", eval_split="validation", max_train_samples=2, max_eval_samples=1)
    assert data.tokenizer.decode(data.eval_tokens.tolist()) == "c" * 30
    assert isinstance(data.train, TokenFeed) and len(data.train.tokens) == 2 * 31


def test_revision_goes_to_the_hub_and_into_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load_dataset(*args: Any, **options: Any) -> dict[str, Any]:
        seen.update(options, args=args)
        part = datasets.Dataset.from_dict({"text": ["some text of a document"] * 9})
        return datasets.DatasetDict({"train": part, "test": part})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **options: seen.update(asked=options))
    data = text_of("me/some-text", dataset_revision="v2", dataset_config_name="en")
    assert seen["args"] == ("me/some-text", "en")
    assert seen["revision"] == seen["asked"]["revision"] == data.revision == "v2"


# ----------------------------------------------------------------------------------------------- kinds of images


def test_grey_of_any_depth_and_colour_of_any_kind(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 8), 257 * 30, np.uint16))
    data = images_of(write_parquet(tmp_path / "grey", [picture(10), deep, picture(255, "1")] * 4), max_eval_samples=2)
    assert data.num_channels == 1
    (batch,) = some(data.train, 1, GlobalBatch(30))
    assert set(values(batch["pixel_values"])) == {10, 30, 255}
    transparent = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    palette = Image.new("P", (8, 4))
    palette.putpalette([7, 8, 9])
    colours = [picture(10, "RGB"), transparent, palette]
    data = images_of(write_parquet(tmp_path / "colour", colours * 4), max_eval_samples=2)
    (batch,) = some(data.train, 1, GlobalBatch(30))
    assert data.num_channels == 3 and set(values(batch["pixel_values"])) == {10, 255, 7}


def test_flags_convert_size_and_mode(tmp_path: Path) -> None:
    mixed = [picture(50), picture(60, "RGB", (20, 10)), picture(70, "RGBA", (3, 5))] * 4
    folder = write_parquet(tmp_path, mixed)
    for image_size, size in (([6], (6, 6)), ([4, 12], (4, 12))):
        for num_channels in (1, 3):
            data = images_of(folder, image_size, num_channels)
            assert (data.image_size, data.num_channels) == (size, num_channels)
            (batch,) = some(data.train, 1, GlobalBatch(30))
            assert batch["pixel_values"].shape == (30, num_channels, *size)
            assert set(values(batch["pixel_values"])) == {50, 60, 70}
    assert images_of(write_parquet(tmp_path / "b", [picture(1, "RGB")] * 4), None, 1).num_channels == 1


@pytest.mark.parametrize("where", [{}, {"in_memory": False}, {"in_memory": False, "dataloader_num_workers": 1},
                                   {"streaming": True, "shuffle_buffer_size": 1}])  # fmt: skip
@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (picture(1, size=(9, 4)), "expected 4 x 8 .height x width. as the first one, found 4 x 9. Give --image_size"),
        (picture(1, "RGB"), "expected a grey image as the first one, found a colour image. Give --num_channels"),
        (b"not an image", "expected a readable image, found corrupt or unknown data .*Repair the file or remove it"),
        (encoded(picture(1))[:-30], "expected a readable image, found corrupt or unknown data"),
        (None, "expected an image, found nothing. Remove the row"),
    ],
    ids=["size", "mode", "garbage", "truncated", "null"],
)
def test_image_at_fault_is_named_by_its_position(
    tmp_path: Path, odd: Any, message: str, where: dict[str, Any]
) -> None:
    write_parquet(tmp_path, [*[picture(i) for i in range(13)], odd, *[picture(i) for i in range(5)]])
    write_parquet(tmp_path, [picture(1)], "test")
    position = "13 of shard 0" if "streaming" in where else "13"
    with pytest.raises(ValueError, match=rf"\(train\), example {position}: {message}") as caught:
        some(images_of(tmp_path, **where).train, 10, GlobalBatch(4))
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_corrupt_first_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(train\), example 0: expected a readable image"):
        images_of(write_parquet(tmp_path, [b"", picture(1), picture(2)]))


def test_label_outside_of_the_classes_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path, [picture(1)] * 3, labels=[0, 1, 0])
    write_parquet(tmp_path, [picture(1)] * 3, "test", labels=[0, -1, None])
    with pytest.raises(
        ValueError, match=r"\(test\), example 1: expected a label from 0 to 1, found -1. Use another split"
    ):
        images_of(tmp_path)


# ------------------------------------------------------------------------------------------------- held out, limits


def test_held_out_tenth_depends_on_nothing_but_the_dataset(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, [picture(i) for i in range(50)])
    for streaming in (False, True):
        args = DataArguments(dataset_name=str(folder), streaming=streaming)
        first, second = load_images(args, seed=0), load_images(args, seed=1)
        held_out = values(first.eval_pixels)
        assert values(second.eval_pixels) == held_out and 1 <= len(held_out) <= 12
        (batch,) = some(first.train, 1, GlobalBatch(50 - len(held_out)))
        assert sorted(values(batch["pixel_values"]) + held_out) == list(range(50))
        assert first.eval_split == "10 % of train"


def test_sample_limits(tmp_path: Path) -> None:
    data = images_of(write_parquet(tmp_path, [picture(i) for i in range(50)]), max_train_samples=7, max_eval_samples=2)
    assert data.train.num_examples == 7 and len(data.eval_pixels) == 2
    streamed = images_of(tmp_path, max_train_samples=7, max_eval_samples=2, streaming=True)
    assert len(streamed.eval_pixels) == 2
    counts = Counter(values(torch.cat([b["pixel_values"] for b in some(streamed.train, 3, GlobalBatch(7))])))
    assert len(counts) == 7 and set(counts.values()) == {3}


def test_image_of_a_remote_path_is_fetched(tmp_path: Path) -> None:
    """A streamed Hub dataset of image files has URLs that PIL cannot open."""
    picture(42).save(tmp_path / "a.png")
    from training.data.images import ImageDecoder

    decode = ImageDecoder("image", None, 0, "remote", (4, 8), 1, resize=False, convert=False)
    batch = decode({"image": [{"bytes": None, "path": f"file://{tmp_path / 'a.png'}"}]}, [0])
    assert values(batch["pixels"]) == [42]


# ----------------------------------------------------------------------------------------------------------- faults


def test_faults_of_image_datasets(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "good", [picture(i) for i in range(5)], labels=[0] * 5)
    for message, arguments in {
        "There is no split 'learn'; the dataset has train. Give --train_split": {"train_split": "learn"},
        "There is no split 'exam'; the dataset has train. Give another --eval_split": {"eval_split": "exam"},
        "has no column 'picture'; it has image, label. Check --image_column": {"image_column": "picture"},
        "The column 'label' of .* holds no images": {"image_column": "label"},
        "has no column 'class'; it has image, label. Check --label_column": {"label_column": "class"},
        "The column 'image' of .* is not a ClassLabel": {"label_column": "image"},
    }.items():
        with pytest.raises(ValueError, match=message):
            images_of(folder, **arguments)
    with pytest.raises(ValueError, match=r"--image_size must be HEIGHT WIDTH or one number"):
        images_of(folder, [1, 2, 3])
    with pytest.raises(ValueError, match=r"num_channels: expected 1 .grey. or 3 .RGB., found 2"):
        images_of(folder, None, 2)
    write_parquet(tmp_path / "one", [picture(1)])
    with pytest.raises(ValueError, match=r"has 1 example.s.: too few to train and measure on"):
        images_of(tmp_path / "one")
    with pytest.raises(ValueError, match=r"no columns of images among text"):
        images_of("python-docs")


def test_datasets_without_examples(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a", [], labels=[])
    write_parquet(tmp_path / "a", [picture(1)], "test", labels=[0])
    with pytest.raises(ValueError, match=r"cannot be loaded: Instruction \"train\" corresponds to no data"):
        images_of(tmp_path / "a")
    write_parquet(tmp_path / "b", [picture(1)], labels=[0])
    write_parquet(tmp_path / "b", [], "test", labels=[])
    with pytest.raises(ValueError, match=r"\(test\) has no examples|\"test\" corresponds to no data"):
        images_of(tmp_path / "b")
    with pytest.raises(ValueError, match=r"\(train\) has no examples. Check --train_split"):
        images_of(tmp_path / "a", streaming=True)


def test_faults_of_text_datasets(tmp_path: Path) -> None:
    short = write_text(tmp_path / "short.txt", "abcdefghij")
    with pytest.raises(
        ValueError, match=r"has 9 tokens, fewer than a context of 16 tokens.*--max_position_embeddings"
    ):
        text_of(short, context=16)
    with pytest.raises(ValueError, match=r"has 1 token\(s\): at least two are needed"):
        text_of(short, context=4)
    for empty in (write_text(tmp_path / "empty.txt", ""), write_text(tmp_path / "blank" / "empty.txt", "")):
        with pytest.raises(ValueError, match=r"empty.txt.* has no text|cannot be (read|loaded)"):
            text_of(empty)
    with pytest.raises(ValueError, match=r"has no column 'body'; it has text. Name the one with the text"):
        text_of(short, text_column="body")
    with pytest.raises(ValueError, match=r"has no column 'text'; it has image, label"):
        text_of("digits")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(ValueError, match=r"latin.txt' cannot be read: .*utf-8"):
        text_of(tmp_path / "latin.txt")


def test_evaluation_text_may_be_shorter_than_the_context(tmp_path: Path) -> None:
    data = text_of(write_text(tmp_path / "a.txt", "abcdefghij" * 10), context=32)
    (batch,) = data.eval_batches(4, CPU)
    assert batch["input_ids"].shape == (1, 32) and int((batch["labels"] != -100).sum()) == 9


def test_tokenizer_that_is_given_is_used(tmp_path: Path) -> None:
    tokenizer = build_character_tokenizer("abcdefghij and more", model_max_length=8)
    data = text_of(write_text(tmp_path / "a.txt", "abcdefghij" * 10), tokenizer=tokenizer)
    assert data.tokenizer is tokenizer


def test_what_is_no_dataset_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: pytest.fail("asked the Hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"0")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "film.mkv2").write_bytes(b"0")
    for name, message in {
        "./absent": "There is no folder or file ./absent",
        "data/of/mine": "There is no folder or file data/of/mine",
        "absent.txt": "There is no folder or file absent.txt",
        "model.bin": r"a file whose kind is not known: expected one of .md, .py, .rst, .txt",
        "nothing": "is an empty folder",
        "odd": "holds no data that is understood",
    }.items():
        with pytest.raises(ValueError, match=message):
            images_of(name)


@pytest.mark.parametrize("variables", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_without_network_a_hub_dataset_is_refused_promptly(tmp_path: Path, variables: dict[str, str]) -> None:
    code = (
        "import time\n"
        "from training.config.flags import DataArguments\n"
        "from training.data.images import load_images\n"
        "import datasets, huggingface_hub\n"
        "started = time.perf_counter()\n"
        "try:\n"
        "    load_images(DataArguments(dataset_name='someone/something'), 0)\n"
        "except ValueError as error:\n"
        "    print(time.perf_counter() - started, error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seconds, _, message = done.stdout.partition(" ")
    assert float(seconds) < 5
    assert "The Hub cannot be reached to load the dataset 'someone/something'" in message
    assert "built-ins digits and python-docs" in message and "Traceback" not in done.stderr


def test_reading_a_large_split_holds_its_pixels_only(tmp_path: Path) -> None:
    started = time.perf_counter()
    data = images_of(write_parquet(tmp_path, [picture(i % 256) for i in range(2500)]))
    assert data.eval_pixels.dtype == torch.uint8 and isinstance(data.train, TensorFeed)
    assert data.train.pixels.shape == (2250, 1, 4, 8)
    assert time.perf_counter() - started < 30


def test_evaluation_images_that_are_too_many_to_hold_are_decoded_a_batch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path, [picture(i) for i in range(30)], labels=[i % 2 for i in range(30)])
    write_parquet(tmp_path, [picture(100 + i) for i in range(7)], "test", labels=[0, 1, 1, 0, 1, 0, 0])
    held = images_of(tmp_path)
    monkeypatch.setattr("training.data.batches.IN_MEMORY_BYTES", 7 * 4 * 8)
    large = images_of(tmp_path)
    assert isinstance(held.eval_pixels, Tensor) and isinstance(large.eval_pixels, DecodedPixels)
    decoded: list[int] = []
    decode = large.eval_pixels.decode
    large.eval_pixels.decode = lambda rows, positions: (decoded.append(len(positions)), decode(rows, positions))[1]  # type: ignore[assignment]
    assert_same(list(large.eval_batches(3, CPU)), list(held.eval_batches(3, CPU)))
    assert decoded == [3, 3, 1]
    assert held.eval_labels is not None and large.eval_labels is not None
    assert large.eval_labels.tolist() == held.eval_labels.tolist()
    assert isinstance(images_of(tmp_path, in_memory=True).eval_pixels, Tensor)


def test_a_local_copy_is_read_in_place_of_the_named_dataset_where_it_exists(tmp_path: Path) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_text("the local copy " * 20, encoding="utf-8")

    data = load_text(DataArguments(dataset_name="nobody/knows-it", dataset_path=str(copy)), seed=0, context=8)

    assert data.name == "nobody/knows-it"
    assert set(data.tokenizer.decode(data.eval_tokens)) <= set("the local copy ")
    with pytest.raises(ValueError, match="nobody/knows-it"):
        load_text(
            DataArguments(dataset_name="nobody/knows-it", dataset_path=str(tmp_path / "gone")), seed=0, context=8
        )
