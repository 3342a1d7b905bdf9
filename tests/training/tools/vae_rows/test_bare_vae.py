"""The bare loop trains the network of the model."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hfgen import VAEConfig, VAEModel
from training.tools.vae_rows import bare_vae
from training.tools.vae_rows.bare_vae import build_decoder, build_encoder, negative_elbo


@pytest.mark.parametrize("blocks", [0, 1])
def test_loss_is_that_of_the_model_with_the_same_weights(blocks: int) -> None:
    sizes = {"image_size": 16, "hidden_channels": [3, 5], "hidden_size": 7, "latent_dim": 4}
    config = VAEConfig(**sizes, num_residual_blocks=blocks, prior="normal")
    torch.manual_seed(0)
    model = VAEModel(config).double()
    encoder, decoder = build_encoder(config).double(), build_decoder(config).double()
    for bare, part in ((encoder, model.encoder), (decoder, model.decoder)):
        weights = {name: 0.3 * torch.randn_like(weight) for name, weight in part.named_parameters()}
        part.load_state_dict(weights)
        for own, weight in zip(bare.parameters(), weights.values(), strict=True):
            own.data.copy_(weight)
    pixels = (torch.rand(6, 1, 16, 16) < 0.5).double()
    noise = torch.randn(6, 4, dtype=torch.double)
    expected = model(pixels, noise=noise).loss
    assert torch.allclose(negative_elbo(encoder, decoder, pixels, noise), expected, rtol=1e-6)


def test_training_improves_the_loss_and_counts_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    config = VAEConfig(image_size=8, hidden_channels=[4], hidden_size=16, latent_dim=2, prior="normal")
    torch.manual_seed(0)
    clock = itertools.count(step=0.01)  # of a machine that takes 10 ms for a step
    monkeypatch.setattr(bare_vae, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = bare_vae.train(config, torch.zeros(40, 1, 8, 8), batch_size=16, learning_rate=1e-2, seconds=1.2)
    # 40 epochs of 16, 16 and 8 images
    assert found["examples_seen"] == 40 * 40 and found["seconds_trained"] == pytest.approx(1.2)
    assert found["images_per_second"] == pytest.approx(1600 / 1.2)
    assert found["loss"] < 64 * np.log(2) / 4
    assert found["num_parameters"] == VAEModel(config).num_parameters()
