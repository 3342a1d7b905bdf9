"""The loss of the Auto-Encoder's training: reconstruction, and the contrastive term."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hfgen import AutoencoderConfig, AutoencoderModel
from tests.runs import metrics, train
from training.randomness import BatchRNG
from training.train_autoencoder import ReconstructionLoss, contrastive_loss


def tiny_model() -> AutoencoderModel:
    torch.manual_seed(0)
    return AutoencoderModel(AutoencoderConfig(image_size=8, hidden_channels=[4, 6], hidden_size=16, latent_dim=3))


def rng() -> BatchRNG:
    return BatchRNG((0, "draw", 7), 6, slice(None), torch.device("cpu"))


def losses(model: AutoencoderModel, weight: float) -> tuple[Tensor, dict[str, Any]]:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return ReconstructionLoss(model, weight)({"pixel_values": images}, rng(), 0.5)


def test_contrastive_loss_by_hand() -> None:
    """Two images at 0 and 2 on a line, copies at 1 and 2: half the squared distances are 1/2 and 2, and 1/2 and 0."""
    latents, copies = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [2.0]])
    forth = -math.log(1 / (1 + math.exp(-2 + 0.5))) - math.log(1 / (1 + math.exp(-0.5)))
    back = -math.log(1 / 2) - math.log(1 / (1 + math.exp(-2)))

    assert contrastive_loss(latents, copies).item() == pytest.approx((forth + back) / 4)


def test_contrastive_loss_of_latents_that_say_nothing_is_that_of_a_guess() -> None:
    same = torch.ones(8, 3, requires_grad=True)

    loss = contrastive_loss(same, same)
    loss.backward()

    assert loss.item() == pytest.approx(math.log(8)) and same.grad.isfinite().all()


def test_contrastive_loss_is_zero_where_copies_are_close_and_others_far() -> None:
    latents = 100 * torch.eye(4)[:, :, None, None].expand(4, 4, 2, 2)  # spatial
    assert contrastive_loss(latents, latents + 0.01).item() == pytest.approx(0, abs=1e-6)


def test_distances_are_exact_under_autocast() -> None:
    """Two images 0.1 apart, far from the origin: in bf16, the square of 100 has steps of 64."""
    latents = torch.tensor([[100.0, 0.0], [100.0, 0.1]])
    expected = contrastive_loss(latents, latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(latents, latents), expected)


def test_without_a_weight_the_loss_is_that_of_the_model() -> None:
    model = tiny_model()
    loss, logged = losses(model, 0)
    assert list(logged) == ["loss"] and torch.equal(loss, logged["loss"])


def test_contrastive_term_is_weighted_and_logged_beside_the_error() -> None:
    model = tiny_model()
    plain, _ = losses(model, 0)
    loss, logged = losses(model, 0.25)
    torch.testing.assert_close(logged["reconstruction_loss"], plain)
    torch.testing.assert_close(loss, plain + 0.25 * logged["contrastive_loss"])
    assert logged["contrastive_loss"] > 0


def test_contrastive_term_trains_the_encoder_alone() -> None:
    model = tiny_model()
    _, logged = losses(model, 1.0)
    logged["contrastive_loss"].backward()
    assert all(parameter.grad is None for parameter in model.decoder.parameters())
    assert model.encoder.to_latents.weight.grad.any()


def test_a_run_reports_both_terms(tmp_path: Path) -> None:
    run = train("autoencoder", tmp_path / "run", "--contrastive_weight", "0.01", "--logging_steps", "1")
    assert run.code == 0, run.output
    lines = [line for line in metrics(tmp_path / "run") if "contrastive_loss" in line]
    assert len(lines) == 12
    for line in lines:
        assert line["loss"] == pytest.approx(line["reconstruction_loss"] + 0.01 * line["contrastive_loss"], rel=1e-4)


def test_noise_and_erased_rectangles_belong_to_the_examples() -> None:
    """However a global batch is divided among processes, each image is hidden in the same way."""
    torch.manual_seed(0)
    sizes = {"image_size": 8, "hidden_channels": [4], "hidden_size": 8, "latent_dim": 2}
    loss = ReconstructionLoss(AutoencoderModel(AutoencoderConfig(**sizes, noise_std=0.2, erase_prob=0.5)).train(), 0.0)
    images = torch.rand(6, 1, 8, 8)

    def of(rows: slice, step: int = 0) -> torch.Tensor:
        rng = BatchRNG(("seed", step), 6, rows, torch.device("cpu"))
        return loss({"pixel_values": images[rows]}, rng, 0.0)[0]

    whole = of(slice(0, 6))

    torch.testing.assert_close((4 * of(slice(0, 4)) + 2 * of(slice(4, 6))) / 6, whole)
    assert not torch.equal(of(slice(0, 6), step=1), whole)
