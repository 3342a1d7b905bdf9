"""p(x|z): distributions over the pixels of an image, whose parameters a decoder computes from latents.

    likelihood = build_likelihood(config)                   of the kind that config.likelihood names
    parameters = decoder(latents)                           (batch, likelihood.parameters_per_pixel, height, width)
    likelihood.log_prob(parameters, pixel_values)           (batch,) nats
    likelihood.mean(parameters)                             the expected image
    likelihood.draw(parameters, generator)                  an image with its pixels drawn
    likelihood.average(pixel_values)                        parameters to begin with, the same for every pixel

Given the latents, pixels are independent of each other. The classes hold no weights: a weight that is learned along
with the decoder, as the Gaussian's scale, belongs to the model and is passed to `build_likelihood`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .image_model import randn


LIKELIHOODS = ("bernoulli", "gaussian", "discretized_logistic", "logistic_mixture")
# A decoder output of 0 means this mean, mid-gray, and this log-scale of a logistic.
CENTER, LOG_SCALE = 0.5, -2.0
# Where a decoder starts: the least share of white or black pixels, and of a component's values, so that logits are
# finite; and the least standard deviation, the step between 8-bit levels, for a channel that is the same everywhere.
MIN_SHARE, MIN_STD = 1e-3, 1 / 255
MAX_LOG_SCALE = 7.0  # of a logistic: beyond exp(±7), all mass is in one bin, or in the two outermost ones


class Likelihood:
    """What all of them offer.

    Attributes:
        parameters_per_pixel: channels of the decoder's output.
    """

    parameters_per_pixel: int

    def __init__(self, num_channels: int):
        self.num_channels = self.parameters_per_pixel = num_channels

    def log_prob(self, parameters: Tensor, pixel_values: Tensor) -> Tensor:
        """log p(x|z) in nats, (batch,).

        Args:
            parameters: (batch, parameters_per_pixel, height, width), float32 or float64.
            pixel_values: (batch, channels, height, width) in [0, 1], of the same type.
        """
        raise NotImplementedError

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x|z], (batch, channels, height, width) in [0, 1]."""
        raise NotImplementedError

    def draw(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample of x, (batch, channels, height, width): multiples of 1/255 in [0, 1]."""
        raise NotImplementedError

    def average(self, pixel_values: Tensor) -> Tensor:
        """Parameters (parameters_per_pixel,) of one pixel that describe all pixels of these images together, where a
        decoder should start: it would otherwise first learn, through all of its layers, how dark images are.

        Args:
            pixel_values: (batch, channels, height, width) in [0, 1].
        """
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Pixels are 0 or 1; the decoder gives logits. Gray values are read as probabilities of 1."""

    def log_prob(self, parameters: Tensor, pixel_values: Tensor) -> Tensor:
        log_prob = -F.binary_cross_entropy_with_logits(parameters, pixel_values, reduction="none")
        return log_prob.flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.sigmoid()

    def draw(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (_uniform_like(parameters, generator) < parameters.sigmoid()).to(parameters.dtype)

    def average(self, pixel_values: Tensor) -> Tensor:
        return _mean_and_std(pixel_values)[0].clamp(MIN_SHARE, 1 - MIN_SHARE).logit()


class Gaussian(Likelihood):
    """The decoder gives the mean; the standard deviation of each channel is learned (Rybkin et al. 2020,
    https://arxiv.org/abs/2006.13202).

    Args:
        log_scale: logarithm of the standard deviations, (channels, 1, 1).
    """

    def __init__(self, num_channels: int, log_scale: Tensor | None):
        super().__init__(num_channels)
        self._log_scale = log_scale

    def log_scale(self, parameters: Tensor) -> Tensor:
        """The learned log-scale in the type of the parameters."""
        if self._log_scale is None:
            raise ValueError("log_scale must be a tensor (channels, 1, 1), got None. Pass it to build_likelihood.")
        return self._log_scale.to(parameters.dtype)

    def log_prob(self, parameters: Tensor, pixel_values: Tensor) -> Tensor:
        log_scale = self.log_scale(parameters)
        squares = ((pixel_values - parameters) * torch.exp(-log_scale)).square()
        return (-0.5 * squares - log_scale - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.clamp(0, 1)

    def draw(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = randn(parameters.shape, generator, parameters.device)
        return _to_8_bits(parameters + self.log_scale(parameters).exp() * noise)

    def average(self, pixel_values: Tensor) -> Tensor:
        return _mean_and_std(pixel_values)[0]

    def average_log_scale(self, pixel_values: Tensor) -> Tensor:
        """The log-scale (channels,) to begin with. A decoder would spend its first thousand steps on it, as no step
        changes it by more than the learning rate."""
        return _mean_and_std(pixel_values)[1].log()


class DiscretizedLogistic(Likelihood):
    """256 levels; the decoder gives a mean and a scale for each pixel (Kingma et al. 2016,
    https://arxiv.org/abs/1606.04934)."""

    def __init__(self, num_channels: int):
        super().__init__(num_channels)
        self.parameters_per_pixel = 2 * num_channels

    def log_prob(self, parameters: Tensor, pixel_values: Tensor) -> Tensor:
        return discretized_logistic_log_prob(pixel_values, *self.split(parameters)).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        return self.split(parameters)[0].clamp(0, 1)

    def draw(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return _draw_logistic(*self.split(parameters), generator)

    def average(self, pixel_values: Tensor) -> Tensor:
        """The logistic with the mean and the standard deviation of the pixels, which is pi / sqrt(3) times its
        scale."""
        mean, std = _mean_and_std(pixel_values)
        return torch.cat([mean - CENTER, (std * math.sqrt(3) / math.pi).log() - LOG_SCALE])

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of every pixel. A decoder output of 0 means mid-gray and a scale of exp(-2) = 0.14."""
        mean, log_scale = parameters.chunk(2, dim=1)
        return mean + CENTER, log_scale + LOG_SCALE


class LogisticMixture(Likelihood):
    """256 levels, with a mixture of discretized logistics for each pixel, as in PixelCNN++ (Salimans et al. 2017,
    https://arxiv.org/abs/1701.05517).

    All channels of a pixel have the same component. Within it, the mean of a channel moves linearly with the channels
    before it: that of green with red, and that of blue with red and green.

    Args:
        num_channels: of the image; gray is a plain mixture.
        num_mixtures: number of components.
    """

    def __init__(self, num_channels: int, num_mixtures: int):
        super().__init__(num_channels)
        self.num_mixtures = num_mixtures
        num_coefficients = num_channels * (num_channels - 1) // 2
        self.parameters_per_pixel = num_mixtures * (1 + 2 * num_channels + num_coefficients)

    def log_prob(self, parameters: Tensor, pixel_values: Tensor) -> Tensor:
        logits, components = self.split(parameters)
        channels = pixel_values.split(1, dim=1)
        log_prob = logits.log_softmax(1)
        for channel, pixels in enumerate(channels):
            mean, log_scale = self._conditional(components, channels[:channel])
            log_prob = log_prob + discretized_logistic_log_prob(pixels, mean, log_scale)
        return log_prob.logsumexp(1).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The mean over the components; in each, the mean of a channel given the means of the channels before it."""
        logits, components = self.split(parameters)
        channels: list[Tensor] = []
        for _ in range(self.num_channels):
            channels.append(_mean_of_clipped_logistic(*self._conditional(components, channels)))
        weights = logits.softmax(1)
        return torch.stack([(weights * channel).sum(1) for channel in channels], dim=1)

    def draw(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits, components = self.split(parameters)
        # The largest of the logits with Gumbel noise is a draw from their softmax.
        chosen = (logits - (-_uniform_like(logits, generator).log()).log()).argmax(1, keepdim=True)
        components = [component.gather(1, chosen) for component in components]
        channels: list[Tensor] = []
        for _ in range(self.num_channels):
            channels.append(_draw_logistic(*self._conditional(components, channels), generator))
        return torch.cat(channels, dim=1)

    def average(self, pixel_values: Tensor) -> Tensor:
        """Each component weighs as much as the share of the values that lie nearest to its center."""
        nearest = (pixel_values * self.num_mixtures).long().clamp(0, self.num_mixtures - 1)
        shares = nearest.flatten().bincount(minlength=self.num_mixtures) / nearest.numel()
        parameters = pixel_values.new_zeros(self.parameters_per_pixel)
        parameters[: self.num_mixtures] = shares.clamp(min=MIN_SHARE).log()
        return parameters

    def split(self, parameters: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits of the components; and the means of each channel, its log-scales, and the coefficients that move
        its mean. All are (batch, mixtures, height, width). A decoder output of 0 spreads the means over the range."""
        logits, *blocks = parameters.unflatten(1, (-1, self.num_mixtures)).unbind(1)
        means, others = blocks[: self.num_channels], blocks[self.num_channels :]
        log_scales, coefficients = others[: self.num_channels], others[self.num_channels :]
        centers = (torch.arange(self.num_mixtures, device=logits.device, dtype=logits.dtype) + 0.5) / self.num_mixtures
        return logits, [
            *(mean + centers.view(-1, 1, 1) for mean in means),
            *(log_scale + LOG_SCALE for log_scale in log_scales),
            *(coefficient.tanh() for coefficient in coefficients),
        ]

    def _conditional(self, components: list[Tensor], earlier: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of the channel after the earlier ones, given their pixels."""
        channel = len(earlier)
        mean, log_scale = components[channel], components[self.num_channels + channel]
        coefficients = components[2 * self.num_channels + channel * (channel - 1) // 2 :]
        for coefficient, pixels in zip(coefficients, earlier):
            mean = mean + coefficient * (pixels - 0.5)
        return mean, log_scale


def build_likelihood(config: Any, log_scale: Tensor | None = None) -> Likelihood:
    """The likelihood of a model.

    Args:
        config: with `likelihood`, one of LIKELIHOODS, and `num_channels`; for a mixture, with `num_mixtures`.
        log_scale: the model's learned log-scales (channels, 1, 1), which only the Gaussian's pixels depend on.

    Raises:
        ValueError: there is no such likelihood.
    """
    if config.likelihood == "bernoulli":
        return Bernoulli(config.num_channels)
    if config.likelihood == "gaussian":
        return Gaussian(config.num_channels, log_scale)
    if config.likelihood == "discretized_logistic":
        return DiscretizedLogistic(config.num_channels)
    if config.likelihood == "logistic_mixture":
        return LogisticMixture(config.num_channels, config.num_mixtures)
    raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {config.likelihood!r}. Choose one.")


def discretized_logistic_log_prob(pixel_values: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of 8-bit pixels under a logistic distribution cut into 256 bins.

    P(x) = sigmoid((x + 1/510 - mean) / scale) - sigmoid((x - 1/510 - mean) / scale), with the two outermost bins open
    to infinity, so that the 256 values sum to 1 (Salimans et al. 2017, https://arxiv.org/abs/1701.05517, eq. 2).

    Args:
        pixel_values: (batch, channels, height, width), multiples of 1/255 in [0, 1].
        mean: same shape, or one that pixel_values broadcast to, in units of the pixel range.
        log_scale: same shape as mean, logarithm of the scale in those units; clamped to [-7, 7], beyond which all
            mass is in one bin, or in the two outermost ones.

    Returns:
        Same shape as mean, nats per pixel.
    """
    inverse_scale = torch.exp(-log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE))
    centered = pixel_values - mean
    at_most = F.logsigmoid(inverse_scale * (centered + 1 / 510))
    at_least = F.logsigmoid(-inverse_scale * (centered - 1 / 510))
    # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), and u - l is known without
    # a subtraction: exact no matter how far in a tail the bin lies.
    inside = at_most + at_least + torch.log(-torch.expm1(-inverse_scale / 255))
    is_black, is_white = pixel_values < 0.5 / 255, pixel_values > 254.5 / 255
    return torch.where(is_black, at_most, torch.where(is_white, at_least, inside))


def _mean_and_std(pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel, (channels,), summed in float64 so that the order in which a machine adds does not matter."""
    channels = pixel_values.double().transpose(0, 1).flatten(1)
    std, mean = torch.std_mean(channels, dim=1, correction=0)
    return mean.to(pixel_values.dtype), std.clamp(min=MIN_STD).to(pixel_values.dtype)


def _mean_of_clipped_logistic(mean: Tensor, log_scale: Tensor) -> Tensor:
    """E[min(max(x, 0), 1)] of a logistic x: the integral of P(x > t) = sigmoid((mean - t) / scale) over [0, 1]."""
    scale = log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
    mean = mean.clamp(-1e3, 1e3)  # keeps the difference accurate
    return (scale * (F.softplus(mean / scale) - F.softplus((mean - 1) / scale))).clamp(0, 1)


def _draw_logistic(mean: Tensor, log_scale: Tensor, generator: torch.Generator | None) -> Tensor:
    """A draw from the discretized logistic: rounding a logistic number picks each level with its bin's probability."""
    noise = _uniform_like(mean, generator).logit()
    return _to_8_bits(mean + log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() * noise)


def _to_8_bits(pixel_values: Tensor) -> Tensor:
    return (255 * pixel_values.clamp(0, 1)).round() / 255


def _uniform_like(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform random numbers in [0, 1), drawn on the generator's device and moved to that of the tensor."""
    source = generator.device if generator is not None else tensor.device
    return torch.rand(tensor.shape, generator=generator, device=source, dtype=tensor.dtype).to(tensor.device)
