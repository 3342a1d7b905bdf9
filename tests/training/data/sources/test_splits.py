"""Datasets of every form are found; what is not one is refused at once, with what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from tests.training.data.tiny_data import (
    ROOT,
    decoded,
    images_of,
    picture,
    take,
    text_of,
    values,
    write_parquet,
    write_text,
    write_texts,
)
from training.config.flags import DataArguments
from training.data.feeds.batches import GlobalBatch
from training.data.feeds.indexed import TokenFeed
from training.data.images import load_images
from training.data.text import load_text


def test_digits_need_nothing_but_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data = load_images(DataArguments(), 0)
    assert data.describe() == {"dataset": "digits", "dataset_revision": None, "split": "test"}
    assert (data.image_size, data.num_channels) == ((8, 8), 1)
    assert data.train.num_examples == 1500 and len(data.eval_pixels) == 297
    assert data.label_names == [str(digit) for digit in range(10)]
    expected = torch.from_numpy(load_digits().images[1500:])
    torch.testing.assert_close(data.eval_pixels[:, 0] / 255 * 16, expected.float(), atol=0.04, rtol=0)
    assert data.eval_labels is not None
    assert data.eval_labels.tolist() == load_digits().target[1500:].tolist()
    (batch,) = take(data.train, 1, GlobalBatch(64))
    assert batch["pixel_values"].min() >= 0 and batch["pixel_values"].max() == 1
    assert batch["labels"].dtype == torch.long


def test_python_docs_are_cut_at_nine_tenths() -> None:
    data = load_text(DataArguments(), 0, 64)
    assert isinstance(data.train, TokenFeed)
    total = len(data.train.tokens) + len(data.eval_tokens)
    assert total > 300_000 and len(data.train.tokens) == int(0.9 * total)
    assert data.characters_per_token == pytest.approx(1.0, abs=0.01)
    assert data.describe() == {"dataset": "python-docs", "dataset_revision": None, "split": "last 10 % of train"}


def test_built_ins_can_be_streamed() -> None:
    assert len(take(load_images(DataArguments(streaming=True), 0).train, 2, GlobalBatch(4))) == 2
    assert len(take(load_text(DataArguments(streaming=True), 0, 16).train, 2, GlobalBatch(4))) == 2


def test_dataset_folder_with_splits_and_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path, [picture(i) for i in range(10)], labels=[i % 2 for i in range(10)])
    write_parquet(tmp_path, [picture(100 + i) for i in range(3)], "validation", labels=[0, 1, 1])
    data = images_of(tmp_path)
    assert (data.image_size, data.num_channels, data.label_names) == ((4, 8), 1, ["cat", "dog"])
    assert data.eval_split == "validation" and values(data.eval_pixels) == [100, 101, 102]
    assert data.eval_labels is not None and data.eval_labels.tolist() == [0, 1, 1]
    (batch,) = take(data.train, 1, GlobalBatch(10))
    assert sorted(values(batch["pixel_values"])) == list(range(10))
    assert [value % 2 for value in values(batch["pixel_values"])] == batch["labels"].tolist()
    (swapped,) = take(images_of(tmp_path, train_split="validation", eval_split="train").train, 1, GlobalBatch(3))
    assert sorted(values(swapped["pixel_values"])) == [100, 101, 102]


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_of_images_with_and_without_classes(tmp_path: Path, streaming: bool) -> None:
    for number in range(60):
        path = tmp_path / "pictures" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    data = images_of(tmp_path / "pictures", streaming=streaming)
    assert data.label_names == ["cat", "dog"] and data.eval_labels is not None
    assert [value % 2 for value in values(data.eval_pixels)] == data.eval_labels.tolist()
    held_out = set(values(data.eval_pixels))
    (batch,) = take(data.train, 1, GlobalBatch(60 - len(held_out)))
    assert set(values(batch["pixel_values"])) == set(range(60)) - held_out
    without = images_of(tmp_path / "pictures" / "cat", streaming=streaming)
    assert without.label_names == [] and without.eval_labels is None
    assert "labels" not in take(without.train, 1, GlobalBatch(2))[0]


def test_folder_that_save_to_disk_wrote(tmp_path: Path) -> None:
    columns = {"image": [picture(i) for i in range(20)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "saved")
    for streaming in (False, True):
        data = images_of(tmp_path / "saved", streaming=streaming)
        assert set(values(take(data.train, 1, GlobalBatch(8))[0]["pixel_values"])).isdisjoint(values(data.eval_pixels))


def test_text_file_is_one_document(tmp_path: Path) -> None:
    text = "First line.\n\nSecond: äöü\n" * 20
    assert "".join(decoded(text_of(write_text(tmp_path / "input.txt", text)))) == text


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_each_file_of_a_folder_is_a_document(tmp_path: Path, suffix: str) -> None:
    for name in "abc":
        write_text(tmp_path / "texts" / f"{name}{suffix}", name * 50)
    data = text_of(tmp_path / "texts")
    text = "".join(decoded(data)).replace(data.tokenizer.eos_token, "|")
    assert text == "a" * 50 + "|" + "b" * 50 + "|" + "c" * 35 + "|" + "c" * 15


def test_streamed_text_file_comes_in_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}\nof two lines." + "x" * i for i in range(200)]
    data = text_of(write_text(tmp_path / "a.txt", "\n\n".join(paragraphs)), streaming=True)
    inputs = torch.cat([batch["input_ids"].flatten() for batch in take(data.train, 90, GlobalBatch(2))])
    read = data.tokenizer.decode(inputs.tolist()).split(data.tokenizer.eos_token)
    assert set(read[:-1]) <= set(paragraphs)


def test_text_splits_of_a_dataset(tmp_path: Path) -> None:
    for split, letter in (("train", "a"), ("test", "b"), ("validation", "c")):
        write_texts(tmp_path / "data", [letter * 30] * 3, split, column="body")
    data = text_of(tmp_path, text_column="body")
    assert data.eval_split == "test" and set(decoded(data)[1].replace(data.tokenizer.eos_token, "")) == {"b"}
    data = text_of(tmp_path, text_column="body", eval_split="validation", max_train_samples=2, max_eval_samples=1)
    train, evaluation = decoded(data)
    assert evaluation == "c" * 30 and train.count("a") == 60


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
    assert seen["revision"] == seen["asked"]["revision"] == data.describe()["dataset_revision"] == "v2"


def test_local_copy_is_read_instead_of_the_named_dataset_if_it_exists(tmp_path: Path) -> None:
    copy = write_text(tmp_path / "copy.txt", "the local copy " * 20)
    data = text_of("nobody/knows-it", dataset_path=str(copy))
    assert data.name == "nobody/knows-it" and set("".join(decoded(data))) == set("the local copy ")
    with pytest.raises(ValueError, match=r"There is no dataset 'nobody/knows-it'|The Hub cannot be reached"):
        text_of("nobody/knows-it", dataset_path=str(tmp_path / "gone"))


# ------------------------------------------------------------------------------------------------- held out, limits


def test_held_out_tenth_depends_only_on_the_dataset(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, [picture(i) for i in range(50)])
    for streaming in (False, True):
        args = DataArguments(dataset_name=str(folder), streaming=streaming)
        first, second = load_images(args, seed=0), load_images(args, seed=1)
        held_out = values(first.eval_pixels)
        assert values(second.eval_pixels) == held_out and 1 <= len(held_out) <= 12
        (batch,) = take(first.train, 1, GlobalBatch(50 - len(held_out)))
        assert sorted(values(batch["pixel_values"]) + held_out) == list(range(50))
        assert first.eval_split == "10 % of train"


def test_sample_limits_use_the_first_examples_held_or_streamed(tmp_path: Path) -> None:
    write_parquet(tmp_path, [picture(i) for i in range(50)])
    write_parquet(tmp_path, [picture(100 + i) for i in range(5)], "test")
    for streaming in (False, True):
        data = images_of(tmp_path, max_train_samples=7, max_eval_samples=2, streaming=streaming)
        assert values(data.eval_pixels) == [100, 101] and data.train.num_examples == (None if streaming else 7)
        counts = Counter(values(torch.cat([b["pixel_values"] for b in take(data.train, 3, GlobalBatch(7))])))
        assert counts == dict.fromkeys(range(7), 3)


# ----------------------------------------------------------------------------------------------------------- faults


def test_what_is_no_dataset_is_refused_without_asking_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: pytest.fail("asked the Hub"))
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "model.bin", "0")
    write_text(tmp_path / "odd" / "film.mkv2", "0")
    (tmp_path / "nothing").mkdir()
    for name, message in {
        "./absent": "--dataset_name must exist, got ./absent",
        "data/of/mine": "--dataset_name must exist, got data/of/mine",
        "absent.txt": "--dataset_name must exist, got absent.txt",
        "model.bin": r"must be a folder, the name of a dataset or a .*.csv, .*.parquet, .*.zip file, got model.bin",
        "absent.jsonl": "--dataset_name must exist, got absent.jsonl",
        "nothing": "got the empty folder nothing",
        "odd": "must hold images, text files, or .*, got odd",
    }.items():
        with pytest.raises(ValueError, match=message):
            images_of(name)


def test_datasets_without_examples(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a", [], labels=[])
    write_parquet(tmp_path / "a", [picture(1)], "test", labels=[0])
    with pytest.raises(ValueError, match=r"cannot be loaded: Instruction \"train\" corresponds to no data"):
        images_of(tmp_path / "a")
    with pytest.raises(ValueError, match=r"\(train\) has no examples. Check --train_split"):
        images_of(tmp_path / "a", streaming=True)
    write_parquet(tmp_path / "b", [picture(1)], labels=[0])
    write_parquet(tmp_path / "b", [], "test", labels=[])
    with pytest.raises(ValueError, match=r"\(test\) has no examples|\"test\" corresponds to no data"):
        images_of(tmp_path / "b")
    with pytest.raises(ValueError, match="must have at least 2 examples to hold one out, got 1"):
        images_of(write_parquet(tmp_path / "one", [picture(1)]))


CODE = """
import datasets, huggingface_hub, os, time
from training.config.flags import DataArguments
from training.data.sources.splits import load_splits
started = time.perf_counter()
try:
    load_splits('someone/something', DataArguments())
except ValueError as error:
    print(time.perf_counter() - started, datasets.config.HF_HUB_OFFLINE, error)
"""


@pytest.mark.parametrize("variables", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_without_network_a_hub_dataset_is_refused_promptly(tmp_path: Path, variables: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seconds, offline, message = done.stdout.split(" ", 2)
    assert float(seconds) < 5 and offline == str("HF_HUB_OFFLINE" in variables)  # the setting is back
    assert "The Hub cannot be reached to load the dataset 'someone/something'" in message
    assert "built-ins digits and python-docs" in message and "Traceback" not in done.stderr
