"""Names of folders and files tell splits and classes only where all of them agree."""

from __future__ import annotations

from typing import Any

import pytest

from training.data.sources.layout import find_classes, find_splits, in_natural_order


def splits_of(*paths: str, hold: Any = "images") -> dict[str, set[str]]:
    layout = find_splits([tuple(path.split("/")) for path in paths], hold)
    return {split: {paths[row] for row in rows} for split, rows in layout.splits.items()}


def classes_of(*paths: str) -> tuple[list[str], list[str | None]]:
    names, classes = find_classes(find_splits([tuple(path.split("/")) for path in paths], "images"))
    return names, [None if index is None else names[index] for index in classes]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a.png", "cat/b.png"], {"train": {"a.png", "cat/b.png"}}),
        (["train/a.png", "test/b.png"], {"train": {"train/a.png"}, "test": {"test/b.png"}}),
        (["x/Train/a.png", "x/VAL/b.png"], {"train": {"x/Train/a.png"}, "validation": {"x/VAL/b.png"}}),
        (["train_images/a.png", "dev_images/b.png"],
         {"train": {"train_images/a.png"}, "validation": {"dev_images/b.png"}}),
        (["cat/train/a.png", "cat/test/b.png", "dog/train/c.png"],
         {"train": {"cat/train/a.png", "dog/train/c.png"}, "test": {"cat/test/b.png"}}),
        (["train/a.png", "bus/b.png", "car/c.png"], {"train": {"train/a.png", "bus/b.png", "car/c.png"}}),
        (["train/a.png", "test/b.png", "bus/c.png"], {"train": {"train/a.png", "test/b.png", "bus/c.png"}}),
        (["train/cat/a.png", "test/cat/b.png", "unlabeled/c.png"],
         {"train": {"train/cat/a.png"}, "test": {"test/cat/b.png"}}),
        (["train/a.png", "test/b.png", "ground_truth/b.png"], {"train": {"train/a.png"}, "test": {"test/b.png"}}),
        (["a.png", "test/b.png"], {"train": {"a.png"}, "test": {"test/b.png"}}),
        (["overview.png", "train/b.png"], {"train": {"train/b.png"}}),
        (["overview.png", "x/train/a.png", "x/test/b.png", "x/ground_truth/b.png"],
         {"train": {"x/train/a.png"}, "test": {"x/test/b.png"}}),
        (["train_1.png", "test_1.png", "logo.png"], {"train": {"train_1.png"}, "test": {"test_1.png"}}),
        (["ann.png", "val.png"], {"train": {"ann.png", "val.png"}}),
        (["dev_notes.txt", "training_tips.txt"], {"train": {"dev_notes.txt", "training_tips.txt"}}),
        (["train.txt", "test.txt.gz"], {"train": {"train.txt"}, "test": {"test.txt.gz"}}),
    ],
)  # fmt: skip
def test_splits_of_images_and_texts(paths: list[str], expected: dict[str, set[str]]) -> None:
    assert splits_of(*paths) == expected


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["data/learn-00000-of-00002.csv", "data/learn-00001-of-00002.csv"],
         {"learn": {"data/learn-00000-of-00002.csv", "data/learn-00001-of-00002.csv"}}),
        (["train.csv", "test.csv", "sample_submission.csv"], {"train": {"train.csv"}, "test": {"test.csv"}}),
        (["cats.jsonl", "cats_test.jsonl"], {"train": {"cats.jsonl"}, "test": {"cats_test.jsonl"}}),
        (["my_train_data.JSONL.gz"], {"train": {"my_train_data.JSONL.gz"}}),
        (["one.csv", "two.csv"], {"train": {"one.csv", "two.csv"}}),
    ],
)  # fmt: skip
def test_splits_of_tables(paths: list[str], expected: dict[str, set[str]]) -> None:
    assert splits_of(*paths, hold="tables") == expected


def test_what_is_in_no_split_has_a_reason() -> None:
    paths = ["overview.png", "train/good/a.png", "test/bad/b.png", "ground_truth/bad/b.png"]
    places = [tuple(path.split("/")) for path in paths]
    assert find_splits(places, "images").left_out == {
        "they lie beside the folders test and train, which are the splits": [0],
        "they lie in ground_truth, beside test and train, and so are masks": [3],
    }


@pytest.mark.parametrize(
    ("paths", "masks"),
    [
        (["images/a.png", "masks/a.png"], {"masks/a.png"}),
        (["Images/Good/a.png", "Images/Bad/a.png", "Masks/Bad/a.png"], {"Masks/Bad/a.png"}),
        (["train/images/a.png", "train/labels/a.png", "test/images/b.png"], {"train/labels/a.png"}),
        (["good/a.png", "ground_truth/a.png"], {"ground_truth/a.png"}),
        (["mask/a.png", "no_mask/b.png"], set()),
        (["labels/a.png", "boxes/b.png"], set()),
        (["masks/a.png"], set()),
        (["train/mask/a.png", "train/no_mask/a.png", "test/mask/b.png"], set()),
    ],
)  # fmt: skip
def test_masks_of_images_are_no_images(paths: list[str], masks: set[str]) -> None:
    assert set().union(*splits_of(*paths).values()) == set(paths) - masks
    assert set().union(*splits_of(*paths, hold="text").values()) == set(paths)


def test_folders_name_classes() -> None:
    assert classes_of("10/a.png", "9/b.png", "2/c.png") == (["2", "9", "10"], ["10", "9", "2"])
    assert classes_of("train/good/a.png", "test/good/b.png", "test/bad/c.png") == (
        ["bad", "good"],
        ["good", "good", "bad"],
    )
    assert classes_of("train/cat/images/a.png", "train/dog/images/b.png", "val/images/c.png") == (
        ["cat", "dog"],
        ["cat", "dog", None],
    )
    assert classes_of("cat/train/a.png", "dog/train/b.png", "dog/test/c.png") == (
        ["cat", "dog"],
        ["cat", "dog", "dog"],
    )


def test_masks_belong_to_evaluation_images_of_the_same_place() -> None:
    paths = [
        "train/good/0.png", "train/dot/1.png",
        "test/dot/0.png", "test/dot/1.png", "test/dot/2.png", "test/stain/0.jpg",
        "ground_truth/dot/0_mask.png", "ground_truth/dot/1.png", "ground_truth/stain/0.png",
        "ground_truth/other/2.png",
    ]  # fmt: skip
    for home in ("", "bottle/"):
        masks = find_splits([tuple(f"{home}{path}".split("/")) for path in paths], "images").mask_of
        assert {paths[image]: paths[mask] for image, mask in masks.items()} == {
            "test/dot/0.png": "ground_truth/dot/0_mask.png",
            "test/dot/1.png": "ground_truth/dot/1.png",
            "test/stain/0.jpg": "ground_truth/stain/0.png",
        }


def test_a_single_folder_names_a_class_if_it_says_that_images_are_normal() -> None:
    assert classes_of("train/good/a.png", "test/good/b.png") == (["good"], ["good", "good"])
    assert classes_of("OK/a.png", "OK/b.png") == (["OK"], ["OK", "OK"])


def test_folders_that_name_no_classes() -> None:
    for paths in (["train/a.png", "test/b.png"], ["a.png", "cat/b.png", "dog/c.png"], ["all/a.png", "all/b.png"]):
        assert classes_of(*paths) == ([], [None] * len(paths))


def test_numbers_are_in_the_order_of_numbers() -> None:
    assert in_natural_order(["b", "class10", "class2", "10", "2", "a", "B"]) == [
        "2", "10", "B", "a", "b", "class2", "class10",
    ]  # fmt: skip
