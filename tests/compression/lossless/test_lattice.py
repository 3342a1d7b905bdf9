"""Latents on a lattice: they have the distributions that they should have, and cost what they should cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hfgen.compression.logit_levels import round_logits
from hfgen.compression.lossless.lattice import LARGEST, SCALES_PER_NAT, Lattice
from hfgen.compression.lossless.stack_coder import StackCoder, initial_words


COUNT = 20_000


def stack_of(words: int) -> StackCoder:
    stack = StackCoder()
    stack.put_below(initial_words(words))
    return stack


def rounded(lattice: Lattice, means: np.ndarray, stds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    means, scales = lattice.scaled(means, np.log(stds))
    return round_logits(means, 0)[0], round_logits(scales, 0)[0]


def bits_lost(before: int, stack: StackCoder) -> int:
    return 32 * (before - stack.num_words)


@pytest.mark.parametrize(
    "spacing_bits, mean, scale", [(0, 0.0, 0), (1, 22 / 32, -16), (3, -155 / 128, -60), (6, 2401 / 1024, -112)]
)
def test_drawn_latents_cost_the_divergence_of_their_posterior(spacing_bits: int, mean: float, scale: int) -> None:
    """With a mean and a standard deviation that need no rounding."""
    lattice, stack, std = Lattice(spacing_bits), stack_of(COUNT), math.exp(scale / SCALES_PER_NAT)
    means, scales = rounded(lattice, np.full(COUNT, mean), np.full(COUNT, std))
    indices = lattice.pop_posterior(stack, means, scales)

    values = lattice.to_values(indices)
    assert values.mean() == pytest.approx(mean, abs=0.03 * std) and values.std() == pytest.approx(std, rel=0.02)
    entropy = math.log2(std * math.sqrt(2 * math.pi * math.e)) + spacing_bits
    assert bits_lost(COUNT, stack) / COUNT == pytest.approx(entropy, abs=0.02)
    lattice.push_prior(stack, indices)
    divergence = (mean**2 + std**2 - 1 - 2 * math.log(std)) / 2 / math.log(2)
    assert -bits_lost(COUNT, stack) / COUNT == pytest.approx(divergence, abs=0.01 + 0.01 * divergence)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 8),
    arrays(np.float64, 12, elements=st.floats(-100, 100)),
    arrays(np.float64, 12, elements=st.floats(1e-9, 1e6)),
)
def test_any_latents_can_be_undone(spacing_bits: int, means: np.ndarray, stds: np.ndarray) -> None:
    lattice, stack = Lattice(spacing_bits), stack_of(50)
    posterior = rounded(lattice, means, stds)
    indices = lattice.pop_posterior(stack, *posterior)
    assert np.abs(lattice.to_values(indices)).max() <= LARGEST
    lattice.push_prior(stack, indices)
    assert lattice.pop_prior(stack, 12).tolist() == indices.tolist()
    lattice.push_posterior(stack, indices, *posterior)
    assert stack.words().tolist() == initial_words(50).tolist()


def test_latents_that_no_encoder_draws_are_refused() -> None:
    lattice = Lattice(3)
    means, scales = rounded(lattice, np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="near the mean of their posterior"):
        lattice.push_posterior(stack_of(50), np.array([0, 100]), means, scales)
