"""p(z), the prior over latents: the standard normal distribution, or for vector latents a learned one, real NVP (Dinh
et al. 2016, https://arxiv.org/abs/1605.08803).

Real NVP is a stack of invertible layers that map latents z to noise f(z), which is standard normal if z comes from the
prior. So the prior's density is log p(z) = log N(f(z); 0, I) + log |det df/dz|, and a sample is the inverse of f at
noise.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .image_model import append_labels, at_least_float32, dtype_of, with_init_gain
from .latents import DiagonalGaussianDistribution


PRIORS = ("normal", "realnvp")


class NormalPrior(nn.Module):
    """p(z) = N(0, I) for latents of any shape, with the methods of [`RealNVPPrior`]."""

    def kl(self, posterior: DiagonalGaussianDistribution, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """KL(q(z|x) || p(z)) in nats, (batch,), which does not depend on the latents."""
        return posterior.kl()

    def log_prob(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(z) in nats, (batch,), of latents (batch, ...)."""
        return -0.5 * (latents.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def to_noise(self, latents: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The latents as they are, and log |det| = 0, (batch,)."""
        return latents, latents.new_zeros(latents.shape[0])

    def sample(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The noise as it is."""
        return noise


class AffineCoupling(nn.Module):
    """Computes from one half of the numbers, which stays as it is, how to shift and scale the other half."""

    def __init__(self, kept: int, changed: int, hidden_size: int, num_labels: int):
        super().__init__()
        self.num_labels = num_labels
        self.hidden = nn.Linear(kept + num_labels, hidden_size)
        # Starts as the identity, so the prior starts as N(0, I).
        self.to_shift_and_scale = with_init_gain(nn.Linear(hidden_size, 2 * changed), 0.0)

    def forward(self, kept: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Shift and log-scale, both (batch, changed), of at least float32."""
        hidden_states = append_labels(kept.to(dtype_of(self)), labels, self.num_labels)
        output = at_least_float32(self.to_shift_and_scale(F.silu(self.hidden(hidden_states))))
        shift, log_scale = output.chunk(2, dim=1)
        # A factor between 1/e and e: one that grew with its input would explode over the layers, and lose precision.
        return shift, log_scale.tanh()


class RealNVPPrior(nn.Module):
    """p(z) or p(z|label) of latents (batch, latent_dim).

    Sums and exponentials are computed in at least float32, and in the model's own type the layers that lead to them.

    Args:
        latent_dim: at least 2.
        num_couplings: layers; each changes the half of z that the one before has left as it is.
        hidden_size: width of the one hidden layer in each.
        num_labels: number of classes, 0 for none.
    """

    def __init__(self, latent_dim: int, num_couplings: int = 8, hidden_size: int = 128, num_labels: int = 0):
        super().__init__()
        self.sizes = [latent_dim // 2, latent_dim - latent_dim // 2]
        self.couplings = nn.ModuleList(
            AffineCoupling(self.sizes[i % 2], self.sizes[1 - i % 2], hidden_size, num_labels)
            for i in range(num_couplings)
        )

    def kl(self, posterior: DiagonalGaussianDistribution, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """log q(z|x) - log p(z) in nats, (batch,), at latents drawn from q: KL(q(z|x) || p(z)) is the expectation."""
        return posterior.log_prob(latents) - self.log_prob(latents, labels)

    def to_noise(self, latents: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """f(z), (batch, latent_dim), and log |det df/dz|, (batch,).

        Args:
            latents: (batch, latent_dim).
            labels: class indices (batch,) if there are classes.
        """
        latents = at_least_float32(latents)
        halves = list(latents.split(self.sizes, dim=1))
        log_det = latents.new_zeros(latents.shape[0])
        for i, coupling in enumerate(self.couplings):
            shift, log_scale = coupling(halves[i % 2], labels)
            halves[1 - i % 2] = halves[1 - i % 2] * log_scale.exp() + shift
            log_det = log_det + log_scale.sum(1)
        return torch.cat(halves, dim=1), log_det

    def log_prob(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(z) in nats, (batch,), of latents (batch, latent_dim)."""
        noise, log_det = self.to_noise(latents, labels)
        return log_det - 0.5 * (noise.square() + math.log(2 * math.pi)).sum(1)

    def sample(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents (batch, latent_dim) from standard normal noise of this shape: the inverse of `to_noise`."""
        halves = list(at_least_float32(noise).split(self.sizes, dim=1))
        for i, coupling in reversed(list(enumerate(self.couplings))):
            shift, log_scale = coupling(halves[i % 2], labels)
            halves[1 - i % 2] = (halves[1 - i % 2] - shift) * (-log_scale).exp()
        return torch.cat(halves, dim=1)


def build_prior(config: Any) -> NormalPrior | RealNVPPrior:
    """The prior that `config.prior` names, one of PRIORS."""
    if config.prior == "normal":
        return NormalPrior()
    num_labels = config.num_labels or 0
    return RealNVPPrior(config.latent_dim, config.num_prior_couplings, config.prior_hidden_size, num_labels)
