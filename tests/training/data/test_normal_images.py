"""Which images are normal, which of them are held out, and which pixels of the others are not."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.data.tiny_data import picture, take, values, write_parquet
from training.config.flags import DataArguments
from training.data.feeds.batches import GlobalBatch
from training.data.images import ImageData
from training.data.normal_images import NormalImageData, find_normal_images


def normal_images_of(name: str | Path, *wanted: str, **args: Any) -> NormalImageData:
    data = load(name, *wanted, **args)
    assert isinstance(data, NormalImageData)
    return data


def load(name: str | Path, *wanted: str, **args: Any) -> ImageData:
    return find_normal_images(list(wanted) or None, DataArguments(dataset_name=str(name), **args)).load(0)


def train_values(data: ImageData, batches: int = 1) -> list[int]:
    batch = take(data.train, batches, GlobalBatch(data.train.num_examples or 4))
    return sorted(values(torch.cat([part["pixel_values"] for part in batch])))


def write_anomalies(folder: Path, kinds: tuple[str, ...] = ("dot", "stain"), normal: int = 50) -> Path:
    """The layout of MVTec AD: faint stripes of 8 x 8 pixels, of which the strange ones have a white dot of 2 x 2."""

    def write(path: Path, gray: int, top: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, columns = np.mgrid[:8, :8]
        pixels = (gray + gray * (rows + 2 * columns) % 7).astype(np.uint8) if gray else np.zeros((8, 8), np.uint8)
        if top is not None:
            pixels[top : top + 2, 3:5] = 255
        Image.fromarray(pixels).save(path)

    for row in range(normal):
        write(folder / "train" / "good" / f"{row:03d}.png", 60 + row)
    for row in range(4):
        write(folder / "test" / "good" / f"{row:03d}.png", 70 + row)
        for number, kind in enumerate(kinds):
            write(folder / "test" / kind / f"{row:03d}.png", 80 + row, top=row)
            if number == 0:  # the others have no masks
                write(folder / "ground_truth" / kind / f"{row:03d}_mask.png", 0, top=row)
    return folder


def test_a_folder_of_good_images_is_trained_on_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = normal_images_of(write_anomalies(tmp_path))
    assert "Training on 30 images of good, with 20 held out for the threshold." in caplog.text
    assert data.normal_names == ["good"] and data.label_names == ["dot", "good", "stain"]
    held_out = values(data.held_out)
    assert sorted([*train_values(data), *held_out]) == list(range(60, 110)) and len(held_out) == 20
    assert data.is_normal.tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_masks_lie_beside_the_splits(tmp_path: Path) -> None:
    data = normal_images_of(write_anomalies(tmp_path))
    assert data.masks is not None
    assert data.masks.are_known.tolist() == [True] * 8 + [False] * 4
    masks = data.masks[torch.tensor([4, 1, 3])]
    assert masks.dtype == torch.bool and masks.flatten(1).sum(1).tolist() == [0, 4, 4]
    assert masks[1, 1:3, 3:5].all() and masks[2, 3:5, 3:5].all()


def test_masks_are_resized_like_their_images_and_named_if_they_are_broken(tmp_path: Path) -> None:
    write_anomalies(tmp_path)
    (tmp_path / "ground_truth" / "dot" / "001_mask.png").write_bytes(b"no image")
    found = find_normal_images(None, DataArguments(dataset_name=str(tmp_path)), image_size=[16, 16]).load(0)
    assert isinstance(found, NormalImageData) and found.masks is not None
    assert found.masks[torch.tensor([0])].sum() == 16 and found.masks[torch.tensor([0])][0, :4, 6:10].all()
    with pytest.raises(ValueError, match=r"example 1 \(.*001_mask.png\): mask must be readable"):
        found.masks[torch.tensor([0, 1])]


def test_masks_of_zeros_and_ones_count_as_masks(tmp_path: Path) -> None:
    write_anomalies(tmp_path)
    path = tmp_path / "ground_truth" / "dot" / "000_mask.png"
    Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    masks = normal_images_of(tmp_path).masks
    assert masks is not None and masks[torch.tensor([0])].sum() == 4


def test_a_dataset_with_a_column_of_masks_needs_no_name_for_that_of_images(tmp_path: Path) -> None:
    """As on the Hub, where masks are images in a column of that name."""
    features = datasets.Features(
        {"image": datasets.Image(), "mask": datasets.Image(), "label": datasets.ClassLabel(names=["ok", "scratch"])}
    )
    for split, labels in {"train": [0] * 40, "test": [0, 1, 1]}.items():
        masks = [picture(255) if label else None for label in labels]
        columns = {"image": [picture(row) for row in range(len(labels))], "mask": masks, "label": labels}
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(tmp_path / f"{split}.parquet")
    data = normal_images_of(tmp_path)
    assert data.masks is not None and data.normal_names == ["ok"]
    assert data.masks[torch.arange(3)].flatten(1).all(1).tolist() == [False, True, True]


@pytest.mark.parametrize("wanted", [["8"], ["3", "8"]])
def test_normal_classes_of_a_dataset_with_labels(wanted: list[str]) -> None:
    data = normal_images_of("digits", *wanted)
    labels = take(data.train, 1, GlobalBatch(data.train.num_examples or 0))[0]["labels"]
    assert {data.label_names[label] for label in labels.unique()} == set(wanted) == set(data.normal_names)
    assert data.eval_labels is not None and data.num_eval_examples == 297
    expected = [data.label_names[label] in wanted for label in data.eval_labels]
    assert data.is_normal.tolist() == expected
    assert torch.equal(data.eval_batch(torch.tensor([3, 5]), torch.device("cpu"))["is_normal"], data.is_normal[[3, 5]])


def test_the_same_images_are_held_out_whatever_the_seed() -> None:
    args = DataArguments(dataset_name="digits")
    one, other = (find_normal_images(["8"], args).load(seed) for seed in (0, 1))
    assert isinstance(one, NormalImageData) and isinstance(other, NormalImageData)
    assert torch.equal(one.held_out, other.held_out)


def test_a_class_is_found_by_its_name_before_its_number(tmp_path: Path) -> None:
    for name in ("2", "0", "x"):
        for row in range(50):
            (tmp_path / name).mkdir(exist_ok=True)
            picture(10 * len(name) + row).save(tmp_path / name / f"{row}.png")
    assert normal_images_of(tmp_path, "2").normal_names == ["2"]  # number 1
    assert normal_images_of(tmp_path, "1").normal_names == ["2"]
    with pytest.raises(ValueError, match=re.escape("by name or number, got 'y'. The classes are 0, 2, x.")):
        load(tmp_path, "x", "y")


def test_without_an_evaluation_split_a_tenth_has_all_classes(tmp_path: Path) -> None:
    """And the images held out for the threshold are others."""
    write_parquet(tmp_path, [picture(row) for row in range(200)], labels=[row % 2 for row in range(200)])
    data = normal_images_of(tmp_path, "cat")
    evaluated, held_out, trained = set(values(data.eval_pixels)), set(values(data.held_out)), set(train_values(data))
    assert len(evaluated) == 20 and {row % 2 for row in evaluated} == {0, 1}
    assert trained | held_out == set(range(0, 200, 2)) - evaluated and not trained & held_out


def test_every_image_may_be_normal(tmp_path: Path) -> None:
    write_parquet(tmp_path, [picture(row) for row in range(100)])
    data = normal_images_of(tmp_path, "all")
    assert data.normal_names == ["all"] and data.is_normal.all() and data.masks is None
    assert len(data.held_out) == 20 and len(train_values(data)) == 70
    with pytest.raises(ValueError, match=r"--normal_label needs the classes of the images, and .* has none"):
        load(tmp_path, "cat")


def test_too_few_normal_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have at least 40 images of good, got 30: 20 are held out"):
        load(write_anomalies(tmp_path, normal=30))


def test_several_classes_or_another_name_are_no_anomaly_detection(tmp_path: Path) -> None:
    assert not isinstance(load("digits"), NormalImageData)
    write_parquet(tmp_path, [picture(row) for row in range(50)], labels=[0] * 50)  # all are cats
    assert not isinstance(load(tmp_path), NormalImageData)


def test_streamed_normal_images_are_held_out_by_their_content(tmp_path: Path) -> None:
    images, labels = [picture(row) for row in range(250)], [row % 2 for row in range(250)]
    write_parquet(tmp_path, images, labels=labels)
    write_parquet(tmp_path, images[:20], "test", labels[:20])
    data = normal_images_of(tmp_path, "dog", streaming=True, shuffle_buffer_size=50)
    held_out, trained = set(values(data.held_out)), set(train_values(data, batches=80))
    assert trained | held_out == set(range(1, 250, 2)) and not trained & held_out
    assert 3 <= len(held_out) <= 30 and data.is_normal.tolist() == [False, True] * 10
