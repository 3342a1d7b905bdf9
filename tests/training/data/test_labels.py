"""Labels of any form name classes; a model that knows none never stops because of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.training.data.tiny_data import encoded, images_of, picture, take, values, write_parquet
from training.data.feeds.batches import GlobalBatch


def write_labels(folder: Path, labels: list[Any] | None, split: str = "train", column: str = "label") -> Path:
    """One picture for each label, the color of its position; labels have whatever type `datasets` infers."""
    count = 4 if labels is None else len(labels)
    columns: dict[str, list] = {"image": [{"bytes": encoded(picture(color)), "path": None} for color in range(count)]}
    if labels is not None:
        columns[column] = labels
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(folder / f"{split}.parquet")
    return folder


def classes_of(folder: Path, **flags: Any) -> tuple[list[str], list[int]]:
    """The names of the classes, and the class of each training example."""
    data = images_of(folder, **flags)
    (batch,) = take(data.train, 1, GlobalBatch(data.train.num_examples or 4))
    by_color = dict(zip(values(batch["pixel_values"]), batch["labels"].tolist()))
    return data.label_names, [by_color[color] for color in sorted(by_color)]


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        ([1, 0, 1, 0], ["0", "1"], [1, 0, 1, 0]),
        ([20, 3, 100, 3], ["3", "20", "100"], [1, 0, 2, 0]),
        ([1, -1, 1, -1], ["-1", "1"], [1, 0, 1, 0]),
        (["dog", "cat", "dog", "ape"], ["ape", "cat", "dog"], [2, 1, 2, 0]),
        (["10", "9", "2", "9"], ["2", "9", "10"], [2, 1, 0, 1]),
        ([True, False, False, True], ["False", "True"], [1, 0, 0, 1]),
        ([2.0, 1.0, 2.0, 1.0], ["1", "2"], [1, 0, 1, 0]),
    ],
)
def test_labels_of_any_form(
    tmp_path: Path, labels: list[Any], names: list[str], classes: list[int], conditional: bool
) -> None:
    write_labels(tmp_path, labels)
    write_labels(tmp_path, labels, "test")
    assert classes_of(tmp_path, conditional=conditional) == (names, classes)
    data = images_of(tmp_path, conditional=conditional)
    assert data.eval_labels is not None and data.eval_labels.tolist() == classes


def test_labels_of_a_stream_are_read_for_a_conditional_model(tmp_path: Path) -> None:
    write_labels(tmp_path, ["dog", "cat", "dog", "ape"])
    write_labels(tmp_path, ["eel", "cat"], "test")
    flags: dict[str, Any] = {"streaming": True, "shuffle_buffer_size": 1}
    assert classes_of(tmp_path, conditional=True, **flags) == (["ape", "cat", "dog", "eel"], [2, 1, 2, 0])
    data = images_of(tmp_path, **flags)
    assert data.label_names == [] and data.eval_labels is None
    assert "labels" not in take(data.train, 1, GlobalBatch(2))[0]


def test_class_that_only_the_evaluation_split_has_is_one(tmp_path: Path) -> None:
    write_labels(tmp_path, [3, 1, 3, 1])
    write_labels(tmp_path, [7, 3], "test")
    assert images_of(tmp_path).label_names == ["1", "3", "7"]


WAYS_TO_READ: list[dict[str, Any]] = [
    {},
    {"in_memory": False, "dataloader_num_workers": 0},
    {"streaming": True, "shuffle_buffer_size": 1},
]
BAD = {
    "missing": ([0, 1, None, 0], [0, 1]),
    "minus one": ([0, 1, 0, 1], [-1, -1]),
    "half": (["cat", "dog", None, None], ["dog", "cat"]),
    "no column": ([0, 1, 0, 1], None),
    "measurements": ([0.5, 1.25, 0.5, 3.0], [0.5, 2.0]),
    "lists": ([[0, 1], [1], [0], [1]], [[0], [1]]),
    "dicts": ([{"cat": 1.0}] * 4, [{"cat": 0.5}] * 2),
    "nothing": ([None] * 4, [None] * 2),
    "not a number": ([0.0, float("nan"), 1.0, 0.0], [1.0, 0.0]),
}


@pytest.mark.parametrize("way", WAYS_TO_READ, ids=str)
@pytest.mark.parametrize("case", BAD)
def test_unconditional_model_never_stops_because_of_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str, way: dict[str, Any]
) -> None:
    train, evaluation = BAD[case]
    write_labels(tmp_path, train)
    write_labels(tmp_path, evaluation, "test")
    data = images_of(tmp_path, **way)
    assert (data.label_names, data.eval_labels) == ([], None)
    (message,) = caplog.messages
    assert message.startswith("The labels are left out because ")
    (batch,) = take(data.train, 1, GlobalBatch(4))
    assert sorted(values(batch["pixel_values"])) == [0, 1, 2, 3] and "labels" not in batch


@pytest.mark.parametrize("way", WAYS_TO_READ, ids=str)
def test_unconditional_model_does_not_stop_at_classes_out_of_range(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, way: dict[str, Any]
) -> None:
    write_parquet(tmp_path, [picture(color) for color in range(4)], labels=[0, -1, 1, None])
    write_parquet(tmp_path, [picture(1)] * 2, "test", labels=[1, -1])
    with caplog.at_level(logging.WARNING):
        data = images_of(tmp_path, **way)
        (batch,) = take(data.train, 1, GlobalBatch(4))
    if "streaming" in way:  # found only while training: -1 is no class
        assert sorted(zip(values(batch["pixel_values"]), batch["labels"].tolist())) == [
            (0, 0),
            (1, -1),
            (2, 1),
            (3, -1),
        ]
    else:
        assert data.label_names == [] and "labels" not in batch
        (message,) = caplog.messages
        assert message.startswith("The labels are left out because some in the column 'label' of ")


@pytest.mark.parametrize("way", WAYS_TO_READ, ids=str)
@pytest.mark.parametrize(
    ("train", "evaluation", "message"),
    [
        ([0, 1, 1, 0], [0, -1], r"\(test\), example 1.*: label must be from 0 to 1, got -1. Use another split"),
        (["cat", None, "dog", "cat"], ["cat"], r"\(train\), example 1.*: label must be one of 'cat', 'dog', got None"),
        ([0.5, 0.25, 1.0, 0.0], [0.5], "--num_labels.* needs a label for each image, but the numbers in the column"),
        ([-1] * 4, [-1], "--num_labels.* needs a label for each image, but the column 'label' .* has none"),
        ([[0], [1], [0], [1]], [[0]], "--num_labels.* needs a label for each image, but the column 'label' .* holds"),
        ([0, 1, 0, 1], None, r"\(test\), example 0.*: label must be from 0 to 1, got None"),
    ],
)  # fmt: skip
def test_conditional_model_needs_a_label_for_each_image(
    tmp_path: Path, train: list[Any], evaluation: list[Any] | None, message: str, way: dict[str, Any]
) -> None:
    write_labels(tmp_path, train)
    write_labels(tmp_path, evaluation, "test")
    with pytest.raises(ValueError, match=message):
        take(images_of(tmp_path, conditional=True, **way).train, 4, GlobalBatch(4))


def test_evaluation_split_without_the_column(tmp_path: Path) -> None:
    train = datasets.Dataset.from_parquet(str(write_labels(tmp_path / "rows", [0, 1, 0, 1]) / "train.parquet"))
    splits = datasets.DatasetDict({"train": train, "test": train.remove_columns("label")})
    splits.save_to_disk(tmp_path / "saved")
    assert images_of(tmp_path / "saved").label_names == []
    with pytest.raises(ValueError, match=r"--num_labels.* but the evaluation split of .* has no column 'label'"):
        images_of(tmp_path / "saved", conditional=True)


def test_caption_is_no_class(tmp_path: Path) -> None:
    write_labels(tmp_path, [f"a picture of {number}" for number in range(150)])
    assert images_of(tmp_path).label_names == []
    assert len(images_of(tmp_path, conditional=True).label_names) == 150


def test_column_of_classes_that_are_named_comes_before_others(tmp_path: Path) -> None:
    columns = {
        "image": [{"bytes": encoded(picture(1)), "path": None}] * 4,
        "label": [5, 6, 7, 8],
        "labels": [0, 1, 0, 1],
    }
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.cast_column("labels", datasets.ClassLabel(names=["cat", "dog"])).to_parquet(tmp_path / "train.parquet")
    assert images_of(tmp_path).label_names == ["cat", "dog"]
    assert images_of(tmp_path, label_column="label").label_names == ["5", "6", "7", "8"]


def test_class_folders_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        (tmp_path / str(number)).mkdir()
        for copy in range(4):
            picture(number).save(tmp_path / str(number) / f"{copy}.png")
    data = images_of(tmp_path, conditional=True)
    assert data.label_names == ["1", "2", "10"]
    (batch,) = take(data.train, 1, GlobalBatch(11))
    assert [[1, 2, 10][label] for label in batch["labels"].tolist()] == values(batch["pixel_values"])


def test_folders_of_one_split_may_have_no_classes(tmp_path: Path) -> None:
    for path, color in (("train/cat/a", 1), ("train/dog/a", 2), ("test/a", 3), ("test/b", 4)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        picture(color).save(tmp_path / f"{path}.png")
    data = images_of(tmp_path)
    assert values(data.eval_pixels) == [3, 4] and data.label_names == []
    with pytest.raises(ValueError, match=r"\(test\), example 0: label must be from 0 to 1, got None"):
        images_of(tmp_path, conditional=True)
