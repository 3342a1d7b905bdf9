"""Modes of stacked digits are counted as they should be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hfgen import GANConfig, GANModel
from training.tools.gan_rows import stacked_digits
from training.tools.gan_rows.figures import figure
from training.tools.gan_rows.stacked_digits import count_modes, measure, measure_stacked, stacks, triples
from training.tools.measuring.rows import Session


class MeanOfImage(nn.Module):
    """Takes an image of pixels 10 n for class n."""

    def forward(self, pixels: Tensor) -> Tensor:
        classes = (25.5 * pixels.mean((1, 2, 3))).round().long()
        return nn.functional.one_hot(classes, 10).float()


def test_triples_are_the_classes_of_the_channels_in_order() -> None:
    classes = torch.tensor([[1, 2, 3], [9, 0, 4], [0, 0, 0]])
    pixels = (10 * classes).byte()[:, :, None, None].expand(3, 3, 4, 4)
    assert triples(MeanOfImage(), pixels, 10).tolist() == [123, 904, 0]


def test_divergence_of_half_the_modes_is_the_logarithm_of_two() -> None:
    expected = torch.full((8,), 1 / 8, dtype=torch.double)
    assert count_modes(torch.arange(4).repeat(5), expected) == {"modes": 4, "kl": pytest.approx(math.log(2))}
    assert count_modes(torch.arange(8), expected) == {"modes": 8, "kl": pytest.approx(0)}


def test_finite_samples_of_the_real_distribution_have_the_divergence_of_theory() -> None:
    expected = torch.full((1000,), 1e-3, dtype=torch.double)
    found = torch.randint(1000, (26_000,), generator=torch.Generator().manual_seed(0))
    # (modes - 1) / (2 samples), to first order
    assert count_modes(found, expected)["kl"] == pytest.approx(999 / 52_000, rel=0.15)


def test_stacks_draw_each_channel_by_itself() -> None:
    gray = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 2, 2)
    found = stacks(gray, 20_000)
    assert found.shape == (20_000, 3, 2, 2)
    modes = triples(MeanOfImage(), 10 * found, 10)
    assert count_modes(modes, torch.full((1000,), 1e-3, dtype=torch.double))["modes"] == 1000


def test_row_trains_on_stacks_and_shows_real_images_beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained: list[list[str]] = []

    def run_training(family: str, recipe: list[str], output_dir: Path, flags: list[str], env: Any) -> dict[str, Any]:
        trained.append(flags)
        return {"seconds_trained": 5.0}

    def run_task(module: str, task: dict[str, Any], environment: Any) -> dict[str, Any]:
        assert module == "training.tools.gan_rows.stacked_digits" and task["samples"] == 26_000
        return {"model": {"modes": 980 + len(trained), "kl": 0.25}, "real": {"modes": 1000, "kl": 0.02}}

    monkeypatch.setattr(stacked_digits, "MNIST", "digits")
    monkeypatch.setattr(stacked_digits, "run_training", run_training)
    monkeypatch.setattr(stacked_digits, "run_task", run_task)
    lines = dict(measure_stacked(Session("no bf16 tiles", tmp_path, {}, seconds=5, seeds=[0, 1]), "stacked"))
    assert trained[0][1].endswith("data/digits-stacked") and trained[1][-4:] == [
        "--seed", "1", "--quality_samples", "0",
    ]  # fmt: skip
    real, ours = (figure(runs) for runs in lines.values())
    assert real == "**1000** of 1,000 modes, KL **0.020**"
    assert ours.startswith("**982** of 1,000 modes (981 to 982), KL **0.250** (0.250 to 0.250); 5 s of training")


def test_model_and_real_images_are_measured_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stacked_digits, "CLASSIFIER_STEPS", 200)
    torch.manual_seed(0)
    GANModel(GANConfig(image_size=8, num_channels=3, generator_channels=[8])).save_pretrained(tmp_path)
    found = measure({"dataset": "digits", "model": str(tmp_path), "samples": 2000})
    # Of 1,000 modes, 2,000 samples show a share of about 1 - exp(-2); a GAN that was not trained draws fewer
    assert 700 < found["real"]["modes"] < 900 and found["model"]["modes"] < found["real"]["modes"]
    assert 2 * found["real"]["kl"] < found["model"]["kl"]
