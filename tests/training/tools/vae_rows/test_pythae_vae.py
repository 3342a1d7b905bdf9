"""Importance weights of a model of pythae are right: checked against integrals, and without pythae."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.tools.vae_rows.pythae_vae import SETTINGS, Encode, Leapfrog, PythaeSampler, moved_moments


torch.manual_seed(0)
WEIGHT, BIAS = torch.randn(12, 2), torch.randn(12)
PIXELS = (torch.rand(5, 1, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.5).float()


def log_prob(latents: Tensor, pixels: Tensor) -> Tensor:
    logits = F.linear(torch.tanh(latents), WEIGHT, BIAS)
    return -F.binary_cross_entropy_with_logits(logits, pixels, reduction="none").sum(1)


def encode(pixels: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Some normal distribution near the prior: an estimate must be right for any."""
    return 0.3 * pixels[:, :2], 0.8 + 0.2 * pixels[:, 2:4]


def encode_and_move(pixels: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    return moved_moments(*encode(pixels, generator), pixels, log_prob, Leapfrog(4, 0.05), generator)


def log_likelihood() -> Tensor:
    """log p(x) by the sum over a grid of two latents."""
    axis = torch.linspace(-8, 8, 400)
    grid = torch.cartesian_prod(axis, axis)
    log_prior = -0.5 * grid.square().sum(1) - math.log(2 * math.pi) + 2 * math.log(16 / 399)
    return torch.stack([(log_prob(grid, x.expand(len(grid), -1)) + log_prior).logsumexp(0) for x in PIXELS.flatten(1)])


@pytest.mark.parametrize("encoder", [encode, encode_and_move])
def test_mean_weight_is_the_likelihood(encoder: Encode) -> None:
    sampler = PythaeSampler(encoder, log_prob)
    samples = 40_000
    weights = sampler.log_importance_weights(PIXELS, samples, generator=torch.Generator().manual_seed(2)).double()
    assert weights.shape == (samples, 5)
    estimate = weights.logsumexp(0) - math.log(samples)
    errors = (weights - estimate).exp().std(0) / math.sqrt(samples)  # of a logarithm: relative
    assert (errors < 0.02).all()
    assert ((estimate - log_likelihood().double()).abs() < 4 * errors).all()


def test_latents_are_moved_as_in_a_harmonic_potential() -> None:
    """-log p(x, z) = c z²/2: positions and momenta turn by the angle sqrt(c) t."""
    curvature, time = 4.0, 0.6
    mean, std = torch.tensor([[1.0, -0.5]]), torch.tensor([[0.3, 0.7]])
    moments = moved_moments(
        mean, std, torch.zeros(1, 1), lambda z, x: -0.5 * (curvature - 1) * z.square().sum(1),
        Leapfrog(60, time / 60), torch.Generator().manual_seed(0), count=100_000,
    )  # fmt: skip
    cosine, sine = math.cos(math.sqrt(curvature) * time), math.sin(math.sqrt(curvature) * time)
    assert torch.allclose(moments[0], mean * cosine, atol=0.01)
    assert torch.allclose(moments[1], torch.sqrt((std * cosine) ** 2 + sine**2 / curvature), atol=0.01)


def test_samples_do_not_depend_on_the_batch_that_the_decoder_gets() -> None:
    sampler = PythaeSampler(encode, log_prob)
    means = [
        sampler.log_importance_weights(PIXELS, 10_000, None, torch.Generator().manual_seed(3), chunk).exp().mean(0)
        for chunk in (1, 100_000)
    ]
    assert torch.allclose(means[0], means[1], rtol=0.15)


@pytest.mark.parametrize("name", SETTINGS)
def test_model_of_pythae_agrees_with_its_own_estimate(name: str) -> None:
    """Where pythae is installed: its VAE and IWAE estimate as we do."""
    pytest.importorskip("pythae")
    from training.tools.vae_rows.pythae_vae import build_model, compare_estimates, sampler_of

    torch.manual_seed(0)
    model = build_model(name, (1, 28, 28))
    images = (torch.rand(4, 1, 28, 28) < 0.1).float()
    found = compare_estimates(model, sampler_of(model, name), images, 500)
    if name != "HVAE":  # whose estimate leaves the momenta out
        assert found["checked_nll"] == pytest.approx(found["checked_nll_by_pythae"], abs=0.5)
