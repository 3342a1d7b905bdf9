"""Made datasets are read back as they were meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.config.flags import DataArguments
from training.data.images import load_images
from training.tools.gan_rows.image_sets import make, one_class, stacked, training_images


def read(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and test images."""
    data = load_images(DataArguments(dataset_name=str(folder)), 0)
    assert data.label_names == []
    return data.train.pixels, data.eval_pixels  # type: ignore[attr-defined,return-value]


def test_one_class_has_all_images_of_it_in_order(tmp_path: Path) -> None:
    digits = load_images(DataArguments(dataset_name="digits"), 0)
    pixels, labels = training_images(digits)
    train, test = read(one_class("digits", 8, tmp_path))
    assert torch.equal(train, pixels[labels == 8])
    assert torch.equal(test, digits.eval_pixels[digits.eval_labels == 8])


def test_each_channel_of_a_stack_has_every_image_once(tmp_path: Path) -> None:
    pixels, _ = training_images(load_images(DataArguments(dataset_name="digits"), 0))
    train, test = read(stacked("digits", tmp_path))
    assert train.shape == (1500, 3, 8, 8) and test.shape == (297, 3, 8, 8)
    expected = sorted(map(tuple, pixels.flatten(1).tolist()))
    for channel in train.flatten(2).unbind(1):
        assert sorted(map(tuple, channel.tolist())) == expected
    first, second, third = train.unbind(1)
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_a_dataset_is_made_once_and_whole(tmp_path: Path) -> None:
    def fail(data: object) -> dict[str, torch.Tensor]:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        make(tmp_path / "made", "digits", fail)
    assert not (tmp_path / "made").exists()
    splits = {"train": torch.zeros(3, 1, 4, 4, dtype=torch.uint8), "test": torch.ones(2, 1, 4, 4, dtype=torch.uint8)}
    made = make(tmp_path / "made", "digits", lambda data: splits)
    assert torch.equal(read(made)[1], splits["test"])
    assert make(tmp_path / "made", "digits", fail) == made
