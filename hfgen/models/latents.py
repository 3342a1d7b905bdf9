"""What an encoder and a decoder exchange: q(z|x), a normal distribution over the latents of an image; what they
return, in the shapes of diffusers; paths between two latents; and what a VAE does with them, however it is built.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

# First, because it says what to do where transformers is too old for the imports below.
from .image_model import ImageModel, Labels, at_least_float32, randn
from .likelihoods import Gaussian, Likelihood, build_likelihood


# isort: split
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.utils import ModelOutput


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


class VariationalModel(ImageModel):
    """What a Variational Auto-Encoder does in the same way however its encoder and its decoder are built.

    A model adds `encode`, `decode`, the weights of latents, and how its latents relate to standard normal noise.
    """

    encode: Any
    decode: Any

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        if config.likelihood == "gaussian":
            self.log_scale = nn.Parameter(torch.zeros(config.num_channels, 1, 1))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, VariationalModel) and module.config.likelihood == "gaussian":
            init.zeros_(module.log_scale)

    @torch.no_grad()
    def start_at(self, batches: Iterable[Tensor]) -> None:
        """Lets a decoder that is yet to be trained start at how bright these images are, and a Gaussian p(x|z) also at
        how much they vary.

        Args:
            batches: images (batch, channels, height, width) in [0, 1], a few hundred in all.

        Raises:
            ValueError: there are no images, or they do not fit the configuration.
        """
        images = [self.check_images(pixel_values) for pixel_values in batches]
        if not sum(map(len, images)):
            raise ValueError("batches must have at least one image, got none. Give some of the training images.")
        pixel_values, likelihood, last_bias = torch.cat(images), self.likelihood, self._last_bias()
        if isinstance(likelihood, Gaussian):
            self.log_scale.copy_(likelihood.average_log_scale(pixel_values).view_as(self.log_scale))
        average = likelihood.average(pixel_values)
        # Where a layer draws several pixels at once, the outputs of a channel follow each other.
        last_bias.copy_(average.repeat_interleave(len(last_bias) // len(average)))

    def _last_bias(self) -> Tensor:
        """The bias of the decoder's last layer, channel by channel."""
        raise NotImplementedError

    def _encoded(self, pixel_values: Tensor, labels: Tensor | None) -> Any:
        """What the encoder says of images (batch, channels, height, width), for `_log_weights`."""
        raise NotImplementedError

    def _log_weights(self, encoded: Any, pixel_values: Tensor, labels: Tensor | None, noise: Tensor) -> Tensor:
        """The log-weights (k, batch) of the latents that noise gives; see `log_importance_weights`.

        Args:
            encoded: of the images.
            pixel_values, labels: of all k copies of the images, (k * batch, ...).
            noise: standard normal, (k, batch, *config.latent_shape).
        """
        raise NotImplementedError

    def _to_noise(self, latents: Tensor, labels: Tensor | None) -> list[Tensor]:
        """The numbers that the prior turns into these latents (batch, ...): (batch, ...) of each level, from the top
        down. Under the prior they are standard normal."""
        raise NotImplementedError

    def _from_noise(self, levels: list[Tensor], labels: Tensor | None) -> Tensor:
        """The inverse of `_to_noise`."""
        raise NotImplementedError

    @property
    def likelihood(self) -> Likelihood:
        """p(x|z), with the weights as they are now."""
        return build_likelihood(self.config, getattr(self, "log_scale", None))

    def _log_prob(self, parameters: Tensor, pixel_values: Tensor) -> Tensor:
        """log p(x|z) in nats, (batch,)."""
        return self.likelihood.log_prob(parameters, pixel_values.to(parameters.dtype))

    @torch.no_grad()
    def log_likelihood(
        self,
        pixel_values: Tensor,
        num_samples: int = 100,
        labels: Labels = None,
        generator: torch.Generator | None = None,
        chunk_size: int = 1024,
    ) -> Tensor:
        """Importance-weighted estimate of log p(x) in nats, (batch,): a lower bound that tightens with num_samples.

            log p(x) = log E[w] >= E[log 1/K (w_1 + ... + w_K)],   w_k = p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q(z|x)

        (Burda et al. 2015, https://arxiv.org/abs/1509.00519). With K = 1 it is the evidence lower bound, and the more
        weights are averaged before the logarithm, the less is lost by Jensen's inequality. The arguments are those of
        `log_importance_weights`.
        """
        log_weights = self.log_importance_weights(pixel_values, num_samples, labels, generator, chunk_size)
        return log_weights.logsumexp(0) - math.log(num_samples)

    def log_importance_weights(
        self,
        pixel_values: Tensor,
        num_samples: int,
        labels: Labels = None,
        generator: torch.Generator | None = None,
        chunk_size: int = 1024,
        noise: Tensor | None = None,
    ) -> Tensor:
        """log p(x|z_k) p(z_k) / q(z_k|x) with z_k ~ q(z|x); the mean of exp of it is an unbiased estimate of p(x).

        Images are encoded once. Differentiable, except where gradients are off.

        Args:
            pixel_values: (batch, channels, height, width) in [0, 1].
            num_samples: K.
            labels: classes of a conditional model, as in `sample`.
            generator: source of the random numbers.
            chunk_size: images decoded at once, rounded up to a whole number of batches; bounds the memory.
            noise: standard normal numbers (num_samples, batch, *config.latent_shape); drawn here if None.

        Returns:
            (num_samples, batch) nats.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}. More samples tighten the bound.")
        pixel_values = self.check_images(pixel_values)
        batch = pixel_values.shape[0]
        labels = self.class_indices(labels, batch)
        encoded = self._encoded(pixel_values, labels)
        at_once = math.ceil(chunk_size / max(1, batch))
        log_weights = []
        for start in range(0, num_samples, at_once):
            k = min(at_once, num_samples - start)
            if noise is None:
                drawn = randn((k, batch, *self.config.latent_shape), generator, self.device)
            else:
                drawn = noise[start : start + k]
            repeated = None if labels is None else labels.repeat(k)
            log_weights.append(self._log_weights(encoded, pixel_values.repeat(k, 1, 1, 1), repeated, drawn))
        return torch.cat(log_weights)

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int, labels: Labels = None) -> Tensor:
        """Images along the great circle between the latents of two images, or, if the prior is learned, between the
        noise that it turns into those latents. Each level of latents has a circle of its own.

        Args:
            a, b: (channels, height, width), or a batch of them.
            steps: images on the path, both ends included; at least 2.
            labels: class of the images on the path, in a conditional model: one per pair, or one for all.

        Returns:
            (steps, channels, height, width), with the batch in front if a and b have one. The ends are the
            reconstructions of a and b.

        Raises:
            ValueError: fewer than two steps, or the shapes of a and b differ or do not fit the configuration.
        """
        if steps < 2:
            raise ValueError(f"steps must be at least 2, got {steps}. The path includes both ends.")
        if a.shape != b.shape:
            raise ValueError(
                f"a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}. Resize one of them."
            )
        single = a.ndim == 3
        if single:
            a, b = a[None], b[None]
        labels = self.class_indices(labels, a.shape[0])
        modes = [self.encode(images, labels, return_dict=True).latent_dist.mode() for images in (a, b)]
        starts, ends = (self._to_noise(latents, labels) for latents in modes)
        times = torch.linspace(0, 1, steps).tolist()
        path = [
            torch.stack([slerp(start, end, t) for t in times], dim=1).flatten(0, 1) for start, end in zip(starts, ends)
        ]
        repeated = None if labels is None else labels.repeat_interleave(steps)
        latents = self._from_noise(path, repeated)
        images = self.decode(latents, repeated, return_dict=True).sample.unflatten(0, (len(a), steps))
        return images[0] if single else images
