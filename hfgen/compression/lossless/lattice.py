"""Latents as integers: a lattice of numbers, and tables of integers for N(0, 1) and for any posterior on it.

A latent is `index * spacing`. The spacing, 1 / 2^b, is the same for a whole level of latents, since a decoder must
know it before it knows the image. The prior has one table. A posterior N(mean, std^2) is rounded: its mean to a
sixteenth of the spacing, its standard deviation to a grid of logarithms. So its table depends on nothing but a few
small integers, and is computed from them by integer arithmetic.

A lattice about as fine as the posterior is wide loses no bits: a normal distribution on a lattice has the mean and the
variance of the continuous one but for a share of exp(-2 (pi std / spacing)^2). A finer one only takes more initial
bits.
"""

from __future__ import annotations

import decimal
from functools import cache
from math import isqrt
from typing import Any

import numpy as np

from ..logit_levels import LEVELS_PER_NAT, weights_of_levels
from .stack_coder import StackCoder, build_table


# Latents are from -LARGEST to LARGEST; a posterior beyond that is moved to it.
LARGEST = 16
MAX_SPACING_BITS = 8
# Of the standard deviation: steps of the logarithm per nat, and the largest, exp(0.75).
SCALES_PER_NAT = 32
_MAX_SCALE = 24
# Means are multiples of spacing / _SHIFTS.
_SHIFTS = 16
# Weights 18 nats below the largest are not told from those that have the least frequency, 2^-24.
_TABLE_NATS = 18
_FRACTION_BITS = 40


class Lattice:
    """The latents of one level.

    Args:
        spacing_bits: b, from 0 to MAX_SPACING_BITS; neighbors are 1 / 2^b apart.
    """

    def __init__(self, spacing_bits: int):
        self.spacing_bits = spacing_bits
        self._last = LARGEST << spacing_bits
        # A narrower posterior than a quarter of the spacing has one point, or two.
        least = decimal.Decimal(2) ** -(spacing_bits + 2)
        self._min_scale = int((least.ln() * SCALES_PER_NAT).to_integral_value())

    def to_values(self, indices: np.ndarray) -> np.ndarray:
        """Latents, float64, exactly."""
        return np.ldexp(indices.astype(np.float64), -self.spacing_bits)

    def scaled(self, means: np.ndarray, log_stds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and logarithms of standard deviations, clipped, in units in which they are to be rounded to a grid
        of 1 / LEVELS_PER_NAT."""
        units = (_SHIFTS << self.spacing_bits) / LEVELS_PER_NAT
        lowest, highest = self._min_scale / LEVELS_PER_NAT, _MAX_SCALE / LEVELS_PER_NAT
        return np.clip(means, -LARGEST, LARGEST) * units, np.clip(log_stds, lowest, highest)

    def push_prior(self, stack: StackCoder, indices: np.ndarray) -> None:
        """Pushes latents (n,) under N(0, 1)."""
        stack.push_alike(indices + self._last, _prior_table(self.spacing_bits))

    def pop_prior(self, stack: StackCoder, count: int) -> np.ndarray:
        """Pops latents that `push_prior` pushed, (count,), int64."""
        return stack.pop_alike(count, _prior_table(self.spacing_bits)).astype(np.int64) - self._last

    def pop_posterior(self, stack: StackCoder, means: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Draws latents (n,), int64, from their posteriors, out of the bits on the stack.

        Args:
            means, scales: the rounded results of `scaled`, (n,), integers.
        """
        indices = np.empty(len(means), np.int64)
        for places, centers, table, width in self._posteriors(means, scales):
            indices[places] = stack.pop_alike(len(places), table) - width + centers
        return indices

    def push_posterior(self, stack: StackCoder, indices: np.ndarray, means: np.ndarray, scales: np.ndarray) -> None:
        """The inverse of `pop_posterior`.

        Raises:
            ValueError: a latent is none that `pop_posterior` gives.
        """
        for places, centers, table, width in reversed(self._posteriors(means, scales)):
            symbols = indices[places] - centers + width
            if symbols.min() < 0 or symbols.max() > 2 * width:
                raise ValueError("Latents must be near the mean of their posterior, got others. The file was damaged.")
            stack.push_alike(symbols, table)

    def _posteriors(self, means: np.ndarray, scales: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, Any, int]]:
        """For each table in turn: the places of its latents, the centers of their posteriors, and half its width."""
        scales = np.clip(scales, self._min_scale, _MAX_SCALE)
        centers = (means + _SHIFTS // 2) // _SHIFTS
        shifts = means - centers * _SHIFTS
        keys = (scales - self._min_scale) * _SHIFTS + shifts + _SHIFTS // 2
        order = np.argsort(keys, kind="stable")
        found, starts = np.unique(keys[order], return_index=True)
        posteriors = []
        for key, places in zip(found.tolist(), np.split(order, starts[1:])):
            scale, shift = key // _SHIFTS + self._min_scale, key % _SHIFTS - _SHIFTS // 2
            table, width = _posterior_table(self.spacing_bits, scale, shift)
            inside = max(0, self._last - width)
            posteriors.append((places, np.clip(centers[places], -inside, inside), table, width))
        return posteriors


@cache
def _prior_table(spacing_bits: int) -> Any:
    """-z^2 / 2 in levels, for all latents z."""
    squares = np.arange(-LARGEST << spacing_bits, (LARGEST << spacing_bits) + 1) ** 2
    return build_table(weights_of_levels(-_round_shift(squares * LEVELS_PER_NAT, 2 * spacing_bits + 1)))


@cache
def _posterior_table(spacing_bits: int, scale: int, shift: int) -> tuple[Any, int]:
    """A table of latents around the center of a posterior, and how many there are on each side."""
    precision = _precision(spacing_bits, scale)
    farthest = isqrt((_TABLE_NATS * LEVELS_PER_NAT << _FRACTION_BITS) // precision)
    width = min(farthest // _SHIFTS + 1, LARGEST << spacing_bits)
    distances = np.arange(-width, width + 1) * _SHIFTS - shift
    return build_table(weights_of_levels(-_round_shift(distances**2 * precision, _FRACTION_BITS))), width


@cache
def _precision(spacing_bits: int, scale: int) -> int:
    """1 / (2 std^2) in levels per square of spacing / _SHIFTS, times 2^_FRACTION_BITS, rounded; by decimal arithmetic,
    which is the same everywhere."""
    with decimal.localcontext(decimal.Context(prec=40, rounding=decimal.ROUND_HALF_EVEN)):
        inverse_variance = (decimal.Decimal(-2 * scale) / SCALES_PER_NAT).exp()
        unit = decimal.Decimal(_SHIFTS << spacing_bits) ** 2
        exact = inverse_variance * LEVELS_PER_NAT / 2 / unit * (1 << _FRACTION_BITS)
        return max(1, int(exact.to_integral_value()))


def _round_shift(values: np.ndarray, bits: int) -> np.ndarray:
    """values / 2^bits, rounded to the nearest integer, halves up."""
    return (values + (1 << bits - 1)) >> bits
