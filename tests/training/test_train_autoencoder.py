"""The loss of the Auto-Encoder's training."""

from __future__ import annotations

import json

import torch

from hfgen import AutoencoderConfig, AutoencoderModel
from training.randomness import BatchRNG
from training.train_autoencoder import ReconstructionLoss

from ..runs import shared_run


def test_noise_and_moves_and_erased_rectangles_belong_to_the_examples() -> None:
    """However a global batch is divided among processes, each image is changed in the same way."""
    torch.manual_seed(0)
    hiding = {"noise_std": 0.2, "erase_prob": 0.5, "affine_std": 0.1}
    sizes = {"image_size": 8, "hidden_channels": [4], "hidden_size": 8, "latent_dim": 2}
    loss = ReconstructionLoss(AutoencoderModel(AutoencoderConfig(**sizes, **hiding)).train())
    images = torch.rand(6, 1, 8, 8)

    def of(rows: slice, step: int = 0) -> torch.Tensor:
        rng = BatchRNG(("seed", step), 6, rows, torch.device("cpu"))
        return loss({"pixel_values": images[rows]}, rng, 0.0)[0]

    whole = of(slice(0, 6))

    torch.testing.assert_close((4 * of(slice(0, 4)) + 2 * of(slice(4, 6))) / 6, whole)
    assert not torch.equal(of(slice(0, 6), step=1), whole)


def test_a_finished_run_says_how_often_neighbors_have_the_same_class() -> None:
    results = json.loads((shared_run("autoencoder").folder / "results.json").read_text(encoding="utf-8"))

    assert 0.1 < results["metrics"]["neighbor_accuracy"] <= 1
    assert results["metrics_details"]["neighbors"] > 0
    assert "1-NN accuracy" in (shared_run("autoencoder").folder / "README.md").read_text(encoding="utf-8")
