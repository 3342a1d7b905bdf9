"""Pixels as symbols: the likelihoods of a VAE as tables of integers, by integer arithmetic.

What the network says of a pixel is rounded to a grid; from there on, nothing but integers. A pixel of 8 bits is coded
as eight decisions, the highest bit first: is it in the upper or the lower half of the levels that are left? So a
distribution over 256 levels is never written out: each decision needs the distribution function at one more place.
"""

from __future__ import annotations

import decimal
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ...models.likelihoods import MAX_LOG_SCALE, Bernoulli, DiscretizedLogistic, Likelihood, LogisticMixture
from ..entropy_coder import MAX_WEIGHT
from ..logit_levels import LEVELS_PER_NAT, weights_of_levels
from .stack_coder import StackCoder


CODED_LIKELIHOODS = ("bernoulli", "discretized_logistic", "logistic_mixture")
_BITS = 8
# Means of logistics are multiples of a sixteenth of the distance between two levels of gray, and are clipped where
# nothing but the outermost levels would be left.
_SUBLEVELS = 16
_FARTHEST_MEAN = 16.0
_COEFFICIENT_BITS = 10
# Arguments of the sigmoid are multiples of 2^-24, and its values of 2^-32. It is a table with a step of 2^-8, and
# straight lines in between; it ends where it is 0 and 1.
_ARGUMENT_BITS, _STEP_BITS, _LARGEST_ARGUMENT = 24, 8, 23
_INVERSE_SCALE_BITS = 40
_ONE = 1 << 32
# Weights of a mixture's components: the largest is 2^20, and those that are below 1 are dropped.
_COMPONENT_BITS = 20
_MAX_MIXTURES = 512
_EXACT = decimal.Context(prec=40, rounding=decimal.ROUND_HALF_EVEN)


class BinaryPixels:
    """Pixels that are 0 or 255, with a Bernoulli distribution.

    Args:
        num_channels: of the images.

    Attributes:
        numbers_per_pixel: that `scaled` gives.
    """

    is_binary = True

    def __init__(self, num_channels: int):
        self.numbers_per_pixel = num_channels

    def scaled(self, parameters: Tensor) -> np.ndarray:
        """Decoder outputs in units in which they are to be rounded to a grid of 1 / LEVELS_PER_NAT.

        Args:
            parameters: (batch, parameters per pixel, height, width), float64.
        """
        return parameters.numpy()

    def push(self, stack: StackCoder, pixels: np.ndarray, levels: np.ndarray) -> None:
        """Pushes images.

        Args:
            stack: the coder.
            pixels: (batch, channels, height, width), uint8.
            levels: the rounded results of `scaled`, integers.
        """
        stack.push((pixels >= 128).ravel(), self._weights(levels))

    def pop(self, stack: StackCoder, levels: np.ndarray) -> np.ndarray:
        """Pops images that `push` pushed, (batch, channels, height, width), uint8."""
        return (stack.pop(self._weights(levels)) * 255).astype(np.uint8).reshape(levels.shape)

    def _weights(self, levels: np.ndarray) -> np.ndarray:
        logits = levels.ravel()
        return weights_of_levels(np.stack([np.zeros_like(logits), logits], axis=1))


class LogisticPixels:
    """Pixels of 8 bits, each with a mixture of discretized logistics; a single one is a mixture of one.

    Args:
        likelihood: that of the model.

    Attributes:
        numbers_per_pixel: that `scaled` gives.
    """

    is_binary = False

    def __init__(self, likelihood: DiscretizedLogistic | LogisticMixture):
        self._likelihood = likelihood
        self._num_channels = likelihood.num_channels
        is_mixture = isinstance(likelihood, LogisticMixture)
        self.numbers_per_pixel = likelihood.parameters_per_pixel + (0 if is_mixture else 1)

    def scaled(self, parameters: Tensor) -> np.ndarray:
        """As `BinaryPixels.scaled`; returns (kinds of numbers, batch, mixtures, height, width)."""
        if isinstance(self._likelihood, LogisticMixture):
            logits, components = self._likelihood.split(parameters)
        else:
            means_and_scales = self._likelihood.split(parameters)
            components = [part for both in means_and_scales for part in both.split(1, dim=1)]
            logits = torch.zeros_like(components[0])
        channels, scales_end = self._num_channels, 2 * self._num_channels
        to_sublevels = 255 * _SUBLEVELS / LEVELS_PER_NAT
        means = [mean.clip(-_FARTHEST_MEAN, _FARTHEST_MEAN) * to_sublevels for mean in components[:channels]]
        log_scales = [scale.clip(-MAX_LOG_SCALE, MAX_LOG_SCALE) for scale in components[channels:scales_end]]
        coefficients = [value * ((1 << _COEFFICIENT_BITS) / LEVELS_PER_NAT) for value in components[scales_end:]]
        return torch.stack([logits, *means, *log_scales, *coefficients]).numpy()

    def push(self, stack: StackCoder, pixels: np.ndarray, levels: np.ndarray) -> None:
        """As `BinaryPixels.push`."""
        mixtures = _Mixtures(levels, self._num_channels)
        decisions = []
        for channel in range(self._num_channels):
            mixtures.begin(channel)
            for bit in reversed(range(_BITS)):
                is_upper = pixels[:, channel] >> bit & 1
                decisions.append((is_upper.ravel(), mixtures.weights_of_halves()))
                mixtures.choose(is_upper)
            mixtures.end()
        for symbols, weights in reversed(decisions):
            stack.push(symbols, weights)

    def pop(self, stack: StackCoder, levels: np.ndarray) -> np.ndarray:
        """As `BinaryPixels.pop`."""
        mixtures = _Mixtures(levels, self._num_channels)
        for channel in range(self._num_channels):
            mixtures.begin(channel)
            for _ in range(_BITS):
                mixtures.choose(stack.pop(mixtures.weights_of_halves()))
            mixtures.end()
        return np.stack(mixtures.pixels, axis=1).astype(np.uint8)


class _Mixtures:
    """The distributions of many pixels, narrowed down decision by decision, channel after channel.

    Args:
        levels: what `LogisticPixels.scaled` gave, rounded to integers.
        num_channels: of the images.

    Attributes:
        pixels: the channels that are known, each (batch, height, width).
    """

    def __init__(self, levels: np.ndarray, num_channels: int):
        logits, *others = levels
        self._means, self._log_scales = others[:num_channels], others[num_channels : 2 * num_channels]
        self._coefficients = others[2 * num_channels :]
        logits = np.moveaxis(logits, 1, -1)
        self._weights = np.moveaxis(weights_of_levels(logits), -1, 1) >> (32 - _COMPONENT_BITS)
        self.pixels: list[np.ndarray] = []

    def begin(self, channel: int) -> None:
        """Begins a channel, given the pixels of those before it."""
        mean = self._means[channel]
        for coefficient, pixels in zip(self._coefficients[channel * (channel - 1) // 2 :], self.pixels):
            # From the middle of the range, in half levels.
            moved = coefficient * (2 * pixels[:, None].astype(np.int64) - 255) * _SUBLEVELS
            mean = mean + (moved >> (_COEFFICIENT_BITS + 1))
        self._mean = mean
        self._inverse_scale = _inverse_scales()[self._log_scales[channel] + len(_inverse_scales()) // 2]
        batch, _, height, width = mean.shape
        self._first = np.zeros((batch, height, width), np.int64)
        self._count = 1 << _BITS
        self._below = np.zeros(mean.shape, np.int64)
        self._up_to = np.full(mean.shape, _ONE, np.int64)

    def weights_of_halves(self) -> np.ndarray:
        """Weights of the lower and the upper half of the levels that are left, (pixels, 2)."""
        self._middle = self._distribution(self._first + self._count // 2)
        halves = [self._middle - self._below, self._up_to - self._middle]
        weights = np.stack([(self._weights * half).sum(1).ravel() for half in halves], axis=1)
        return _shorten(weights, MAX_WEIGHT.bit_length() - 2) + 1

    def choose(self, is_upper: np.ndarray) -> None:
        """Keeps a half of the levels, for each pixel the upper one where `is_upper` is 1."""
        is_upper = is_upper.reshape(self._first.shape).astype(bool)
        self._count //= 2
        self._first = self._first + np.where(is_upper, self._count, 0)
        self._below = np.where(is_upper[:, None], self._middle, self._below)
        self._up_to = np.where(is_upper[:, None], self._up_to, self._middle)

    def end(self) -> None:
        """Ends a channel, of which one level is left: components that expected it weigh more from now on."""
        self.pixels.append(self._first)
        if len(self.pixels) < len(self._means):
            updated = self._weights * (self._up_to - self._below + 1)
            self._weights = _shorten(updated, _COMPONENT_BITS)

    def _distribution(self, edges: np.ndarray) -> np.ndarray:
        """The share of each component below a level, out of _ONE."""
        distances = (_SUBLEVELS * edges - _SUBLEVELS // 2)[:, None] - self._mean
        arguments = distances * self._inverse_scale >> (_INVERSE_SCALE_BITS - _ARGUMENT_BITS)
        most = (_LARGEST_ARGUMENT << _ARGUMENT_BITS) - 1
        arguments = np.clip(arguments, -most, most) + most + 1
        places, rest = arguments >> (_ARGUMENT_BITS - _STEP_BITS), arguments & ((1 << _ARGUMENT_BITS - _STEP_BITS) - 1)
        values, slopes = _sigmoids()
        return values[places] + (slopes[places] * rest >> (_ARGUMENT_BITS - _STEP_BITS))


def build_pixel_symbols(likelihood: Likelihood) -> BinaryPixels | LogisticPixels:
    """How the pixels of a model are coded.

    Raises:
        ValueError: its likelihood is not one of pixels with finitely many levels, or has too many components.
    """
    if isinstance(likelihood, Bernoulli):
        return BinaryPixels(likelihood.num_channels)
    if isinstance(likelihood, DiscretizedLogistic | LogisticMixture):
        mixtures = getattr(likelihood, "num_mixtures", 1)
        if mixtures > _MAX_MIXTURES:
            raise ValueError(f"num_mixtures must be at most {_MAX_MIXTURES} to compress, got {mixtures}.")
        return LogisticPixels(likelihood)
    raise ValueError(
        f"The model's likelihood must be {', '.join(CODED_LIKELIHOODS[:-1])} or {CODED_LIKELIHOODS[-1]}, got "
        "gaussian, which gives densities and no probabilities. Train one with --likelihood."
    )


def _shorten(weights: np.ndarray, bits: int) -> np.ndarray:
    """Divides by a power of two, chosen for each first and last index, so that the largest value along axis 1 fits in
    `bits` bits.

    Exact: a float64 holds the exponent of an int64, which its rounding can at most raise by one.
    """
    lengths = np.frexp(weights.max(axis=1, keepdims=True).astype(np.float64))[1].astype(np.int64)
    return weights >> np.maximum(lengths - bits, 0)


@cache
def _sigmoids() -> tuple[np.ndarray, np.ndarray]:
    """_ONE / (1 + exp(-x)) for all x at a distance of 2^-_STEP_BITS, and the differences of neighbors."""
    count = _LARGEST_ARGUMENT << _STEP_BITS
    with decimal.localcontext(_EXACT):
        upper = [
            int((_ONE / (1 + (decimal.Decimal(-place) / (1 << _STEP_BITS)).exp())).to_integral_value())
            for place in range(count + 1)
        ]
    values = np.array([_ONE - value for value in upper[:0:-1]] + upper, np.int64)
    return values, np.diff(values)


@cache
def _inverse_scales() -> np.ndarray:
    """exp(-log_scale) per sublevel, times 2^_INVERSE_SCALE_BITS, for all log-scales."""
    last = int(MAX_LOG_SCALE * LEVELS_PER_NAT)
    with decimal.localcontext(_EXACT):
        unit = decimal.Decimal(1 << _INVERSE_SCALE_BITS) / (255 * _SUBLEVELS)
        exact = [(decimal.Decimal(-level) / LEVELS_PER_NAT).exp() * unit for level in range(-last, last + 1)]
        return np.array([int(value.to_integral_value()) for value in exact], np.int64)
