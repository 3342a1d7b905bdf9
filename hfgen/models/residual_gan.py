"""Generator and discriminator made of residual blocks, after R3GAN (Huang et al. 2024,
https://arxiv.org/abs/2501.05441). The file travels with the GAN's, which imports it.

The discriminator has no normalization, as penalties on the gradient at each image need. The generator may have batch
normalization, without which it learns much more slowly.

Every block starts as the identity, and feature maps are resized by filters that leave no trace of the grid: bilinear
interpolation up, the mean of 2 x 2 cells down. No block works at the image's own resolution, where it would cost as
much as all others together.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .image_model import TransposedConv2d, append_labels, at_least_float32, dtype_of, with_init_gain


# Keeps the variance of activations through a leaky rectifier with this slope (He et al. 2015).
SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2 / (1 + SLOPE**2))


class BottleneckBlock(nn.Module):
    """x + conv1x1(act(conv3x3(act(conv1x1(x))))), the convolutions in half as many channels. With batch normalization,
    the first two convolutions come after a normalization and a rectifier."""

    def __init__(self, channels: int, has_norm: bool = False):
        super().__init__()
        narrow = max(channels // 2, 16)
        # No bias where batch normalization follows, which would subtract it: its gradient would be rounding errors, of
        # which Adam makes steps as large as any others.
        self.narrow = with_init_gain(nn.Conv2d(channels, narrow, kernel_size=1, bias=not has_norm), LEAKY_GAIN)
        self.conv = with_init_gain(nn.Conv2d(narrow, narrow, kernel_size=3, padding=1), LEAKY_GAIN)
        self.widen = with_init_gain(nn.Conv2d(narrow, channels, kernel_size=1, bias=False), 0.0)
        self.norm1: nn.Module = NormAndAct(channels) if has_norm else nn.Identity()
        self.norm2: nn.Module = NormAndAct(narrow) if has_norm else nn.LeakyReLU(SLOPE)

    def forward(self, hidden_states: Tensor) -> Tensor:
        update = self.conv(self.norm2(self.narrow(self.norm1(hidden_states))))
        return hidden_states + self.widen(F.leaky_relu(update, SLOPE))


class NormAndAct(nn.Sequential):
    """Batch normalization and a leaky rectifier."""

    def __init__(self, channels: int):
        super().__init__(nn.BatchNorm2d(channels), nn.LeakyReLU(SLOPE))


class ResidualDiscriminator(nn.Module):
    """Images in [0, 1] -> logits (batch,), larger for images that look real.

    A conditional discriminator adds the projection of the features on the label's embedding (Miyato & Koyama 2018).
    """

    def __init__(self, config: Any):
        super().__init__()
        channels = config.discriminator_channels
        self.from_pixels = with_init_gain(nn.Conv2d(config.num_channels, channels[0], 4, stride=2, padding=1), 1.0)
        self.stages = nn.ModuleList(_stage(width, config.num_residual_blocks) for width in channels)
        self.transitions = _transitions(channels)
        height, width = config.feature_size(len(channels))
        features = channels[-1] * height * width
        self.scale = features**-0.5
        self.head = with_init_gain(nn.Linear(features, 1), 1 / self.scale)
        if config.num_labels:
            self.label_embedding = with_init_gain(nn.Embedding(config.num_labels, features), 1.0)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Tensor:
        hidden_states = self.from_pixels((2 * pixel_values - 1).to(dtype_of(self)))
        hidden_states = self.stages[0](hidden_states)
        for transition, stage in zip(self.transitions, self.stages[1:]):
            hidden_states = stage(transition(F.avg_pool2d(hidden_states, 2)))
        # The weights of the sum over thousands of features start at 1, and the features are scaled in their place:
        # Adam changes all weights alike, and the logits of unscaled features would move by tens in a step.
        hidden_states = self.scale * hidden_states.flatten(1)
        logits = self.head(hidden_states).squeeze(1)
        if labels is not None:
            embeddings = self.label_embedding(labels.to(logits.device, torch.long))
            logits = logits + (embeddings * hidden_states).sum(1)
        return at_least_float32(logits)


class ResidualGenerator(nn.Module):
    """Latents (batch, latent_dim) -> images in [0, 1]."""

    def __init__(self, config: Any):
        super().__init__()
        channels = config.generator_channels
        self.num_labels = config.num_labels or 0
        self.feature_shape = (channels[0], *config.feature_size(len(channels)))
        self.from_latents = with_init_gain(
            nn.Linear(config.latent_dim + self.num_labels, math.prod(self.feature_shape)), 1.0
        )
        has_norm = config.generator_norm == "batch"
        self.stages = nn.ModuleList(_stage(width, config.num_residual_blocks, has_norm) for width in channels)
        self.transitions = _transitions(channels)
        self.norm: nn.Module = NormAndAct(channels[-1]) if has_norm else nn.Identity()
        self.scale = (4 * channels[-1]) ** -0.5
        to_pixels = TransposedConv2d(channels[-1], config.num_channels, kernel_size=4, stride=2, padding=1)
        self.to_pixels = with_init_gain(to_pixels, 1 / self.scale)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        latents = append_labels(latents.to(dtype_of(self)), labels, self.num_labels)
        hidden_states = self.stages[0](self.from_latents(latents).unflatten(1, self.feature_shape))
        for transition, stage in zip(self.transitions, self.stages[1:]):
            # The convolution first: it is the same in either order, and costs a quarter before the interpolation.
            hidden_states = F.interpolate(transition(hidden_states), scale_factor=2, mode="bilinear")
            hidden_states = stage(hidden_states)
        pixels = self.to_pixels(self.scale * self.norm(hidden_states))  # scaled as in the discriminator
        return (at_least_float32(pixels).tanh() + 1) / 2


def _stage(channels: int, num_blocks: int, has_norm: bool = False) -> nn.Sequential:
    """The blocks of one resolution."""
    return nn.Sequential(*(BottleneckBlock(channels, has_norm) for _ in range(num_blocks)))


def _transitions(channels: list[int]) -> nn.ModuleList:
    """From the channels of each resolution to those of the next one."""
    pairs = zip(channels, channels[1:])
    return nn.ModuleList(with_init_gain(nn.Conv2d(*pair, kernel_size=1, bias=False), 1.0) for pair in pairs)
