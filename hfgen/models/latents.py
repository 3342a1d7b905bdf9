"""What an encoder and a decoder exchange: q(z|x), a normal distribution over the latents of an image; what they
return, in the shapes of diffusers; and paths between two latents.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .image_model import at_least_float32, randn


class DiagonalGaussianDistribution:
    """A normal distribution with independent dimensions, with the methods of diffusers' class of the same name.

    Args:
        parameters: (batch, 2 * latent_dim, ...): mean and logarithm of the variance, stacked along dimension 1.
    """

    def __init__(self, parameters: Tensor):
        self.parameters = at_least_float32(parameters)
        self.mean, logvar = self.parameters.chunk(2, dim=1)
        # Training never gets near exp(-30) or exp(20); the bound keeps a bad step from overflowing.
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        """Standard deviation, (batch, latent_dim, ...)."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """Variance, (batch, latent_dim, ...)."""
        return self.logvar.exp()

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Reparameterized sample, mean + std * noise, differentiable in both.

        Args:
            generator: source of the standard normal noise.
            noise: the noise itself, in the shape of the mean, if the caller draws it.
        """
        if noise is None:
            noise = randn(self.mean.shape, generator, self.mean.device)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The most likely latents, (batch, latent_dim, ...)."""
        return self.mean

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) in nats per image, (batch,) (Kingma & Welling 2013, appendix B)."""
        return 0.5 * (self.mean.square() + self.var - 1.0 - self.logvar).flatten(1).sum(1)

    def log_prob(self, latents: Tensor) -> Tensor:
        """log q(z|x) in nats, (..., batch), of latents (..., batch, latent_dim, ...)."""
        squares = (latents - self.mean).square() / self.var
        log_prob = -0.5 * (squares + self.logvar + math.log(2 * math.pi))
        return log_prob.flatten(1 - self.mean.ndim).sum(-1)


@dataclass
class VAEEncoderOutput(ModelOutput):
    """What `encode` returns: q(z|x), with `sample()`, `mode()`, `mean` and `std`."""

    latent_dist: DiagonalGaussianDistribution


@dataclass
class VAEDecoderOutput(ModelOutput):
    """What `decode` returns: the mean of p(x|z), images (batch, channels, height, width) in [0, 1]."""

    sample: Tensor


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """Spherical interpolation of each image's latents; lengths are interpolated linearly.

    A straight line would pass near the origin, where N(0, I) puts no mass in high dimensions (White 2016,
    https://arxiv.org/abs/1609.04468).

    Args:
        start, end: (batch, ...).
        t: 0 at the start, 1 at the end.
    """
    shape, a, b = start.shape, start.flatten(1), end.flatten(1)
    length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    unit_a, unit_b = a / length_a.clamp(min=1e-12), b / length_b.clamp(min=1e-12)
    angle = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1).acos()
    # Where the directions are nearly equal or opposite, there is no unique arc: use the straight line.
    straight = torch.lerp(a, b, t)
    arc = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / torch.sin(angle).clamp(min=1e-12)
    arc = arc * torch.lerp(length_a, length_b, t)
    return torch.where(torch.sin(angle) < 1e-4, straight, arc).view(shape)
