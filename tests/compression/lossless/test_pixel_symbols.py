"""Pixels cost what their likelihood says, and come back."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfgen.compression.logit_levels import round_logits
from hfgen.compression.lossless.pixel_symbols import build_pixel_symbols
from hfgen.compression.lossless.stack_coder import StackCoder, initial_words
from hfgen.models.likelihoods import Likelihood, build_likelihood


KINDS = ["bernoulli", "discretized_logistic", "logistic_mixture"]


def likelihood_of(kind: str, num_channels: int = 1, num_mixtures: int = 4) -> Likelihood:
    return build_likelihood(SimpleNamespace(likelihood=kind, num_channels=num_channels, num_mixtures=num_mixtures))


def parameters_of(likelihood: Likelihood, size: int, spread: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, likelihood.parameters_per_pixel, size, size)
    return spread * torch.randn(shape, generator=generator, dtype=torch.float64)


def push(likelihood: Likelihood, parameters: torch.Tensor, pixels: np.ndarray) -> tuple[StackCoder, np.ndarray]:
    symbols, stack = build_pixel_symbols(likelihood), StackCoder()
    stack.put_below(initial_words(4))
    levels, _ = round_logits(symbols.scaled(parameters), 0)
    assert levels.size == pixels.shape[0] * symbols.numbers_per_pixel * pixels.shape[2] * pixels.shape[3]
    symbols.push(stack, pixels, levels)
    return stack, levels


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_take_the_bits_of_their_likelihood(kind: str, num_channels: int) -> None:
    likelihood = likelihood_of(kind, num_channels)
    parameters = parameters_of(likelihood, 32, 1.0)
    images = likelihood.draw(parameters, torch.Generator().manual_seed(0)).double()
    pixels = (255 * images).round().numpy().astype(np.uint8)
    stack, _ = push(likelihood, parameters, pixels)
    expected = -likelihood.log_prob(parameters, images).sum().item() / math.log(2)
    assert 32 * (stack.num_words - 4) == pytest.approx(expected, rel=0.003, abs=64)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(KINDS), st.sampled_from([1, 3]), st.floats(0, 50), st.integers(0, 1000))
def test_any_pixels_come_back(kind: str, num_channels: int, spread: float, seed: int) -> None:
    """However unlikely they are, and however extreme the parameters."""
    likelihood = likelihood_of(kind, num_channels, num_mixtures=2)
    pixels = np.random.default_rng(seed).integers(0, 256, (2, num_channels, 4, 4)).astype(np.uint8)
    pixels[0] = 255 * (pixels[0] > 127)
    pixels = 255 * (pixels > 127).astype(np.uint8) if kind == "bernoulli" else pixels
    stack, levels = push(likelihood, parameters_of(likelihood, 4, spread, seed), pixels)
    assert build_pixel_symbols(likelihood).pop(stack, levels).tolist() == pixels.tolist()
    assert stack.words().tolist() == initial_words(4).tolist()


def test_every_level_of_gray_takes_its_bits() -> None:
    """With a mixture whose components lie at the edges and in between."""
    likelihood = likelihood_of("logistic_mixture", num_mixtures=3)
    parameters = torch.zeros(1, 9, 16, 16, dtype=torch.float64)
    parameters[:, 3:6] = torch.tensor([-0.5, 0.02, 0.3])[:, None, None]
    parameters[:, 6:] = torch.tensor([-3.0, -4.0, 1.0])[:, None, None]
    for level in range(0, 256, 5):
        pixels = np.full((1, 1, 16, 16), level, np.uint8)
        stack, _ = push(likelihood, parameters, pixels)
        bits = 32 * (stack.num_words - 4) / 256
        image = torch.from_numpy(pixels / 255)
        expected = -likelihood.log_prob(parameters, image).item() / math.log(2) / 256
        assert bits == pytest.approx(expected, rel=0.01, abs=0.2)


def test_a_density_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be bernoulli, discretized_logistic or logistic_mixture, got gaussian"):
        build_pixel_symbols(likelihood_of("gaussian"))
    with pytest.raises(ValueError, match="num_mixtures must be at most 512 to compress, got 513"):
        build_pixel_symbols(likelihood_of("logistic_mixture", num_mixtures=513))
