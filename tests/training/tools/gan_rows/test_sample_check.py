"""Samples beside the images of a whole dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hfgen import GANConfig, GANModel
from training.config.flags import DataArguments
from training.data.images import load_images
from training.tools.gan_rows.image_sets import training_images
from training.tools.gan_rows.sample_check import (
    RealImages,
    compare,
    independent_pixels,
    measure,
    read_real_images,
    verdict,
)


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return training_images(load_images(DataArguments(dataset_name="digits"), 0))[0]


@pytest.fixture(scope="module")
def real() -> RealImages:
    return read_real_images(load_images(DataArguments(dataset_name="digits"), 0), None)


def test_real_images_noise_and_a_collapse_are_told_apart(digits: torch.Tensor, real: RealImages) -> None:
    images = compare(digits[:297], real)
    assert images["state"] == "stable" and images["spread"] == pytest.approx(1, abs=0.2) and images["coverage"] > 0.5
    noise = compare(torch.randint(256, (297, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte(), real)
    assert noise["state"] == "diverged" and noise["classifier_fid"] > real.noise
    one = compare(digits[:1].expand(297, 1, 8, 8).contiguous(), real)
    assert one["state"] in ("collapsed", "diverged") and one["spread"] < 0.01
    assert images["classifier_fid"] < real.noise / 5 and real.floor < real.noise / 5


def test_verdict() -> None:
    assert verdict(classifier_fid=10, spread=0.9, noise=100) == "stable"
    assert verdict(classifier_fid=90, spread=0.59, noise=100) == "collapsed"
    assert verdict(classifier_fid=100, spread=0.9, noise=100) == "diverged"
    assert verdict(classifier_fid=float("nan"), spread=0.9, noise=100) == "diverged"


def test_independent_pixels_keep_the_distribution_of_each_pixel() -> None:
    pixels = torch.arange(4000).view(1000, 1, 2, 2) // 4 % 250
    pixels[:, :, 0, 0] = 7
    drawn = independent_pixels(pixels.byte())
    assert (drawn[:, :, 0, 0] == 7).all()
    pair = torch.stack([drawn[:, 0, 0, 1], drawn[:, 0, 1, 1]]).double()
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.15  # it was 1


def test_one_class_is_compared_with_that_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GANModel(GANConfig(image_size=8, generator_channels=[8])).save_pretrained(tmp_path)
    task = {"models": {"a": str(tmp_path)}, "dataset": "digits", "label": 8, "samples": 50, "max_eval_samples": None}
    found = measure(task)
    data = load_images(DataArguments(dataset_name="digits"), 0)
    assert found["real"]["images"] == int((data.eval_labels == 8).sum())
    assert found["models"]["a"]["state"] in ("diverged", "collapsed")  # it was not trained
    assert found["real"]["classifier_fid"] < found["real"]["noise_classifier_fid"]
