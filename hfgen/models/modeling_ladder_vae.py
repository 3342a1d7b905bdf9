"""The Ladder VAE: a Variational Auto-Encoder with latents at several resolutions.

The encoder goes up once, from pixels to features of every resolution. The decoder goes down: a vector z_0 says what
the image shows, and each level below adds a grid of latents that say more about where and how,

    p(z) = p(z_0) p(z_1 | z_0) p(z_2 | z_0, z_1) ...,      q(z|x) in the same order

(Sønderby et al. 2016, https://arxiv.org/abs/1602.02282). What came from above travels on beside the latents, so every
level only adds to it, and the posterior of a level is written as a correction of its prior (Vahdat & Kautz 2020,
https://arxiv.org/abs/2007.03898): with the prior N(m, s^2), a level's latents are m + s * e, and the network predicts
q(e|x, above). A level that has nothing to add costs nothing.

The numbers e, with those of z_0 before a learned prior has transformed them, are this model's latents: independent and
standard normal under the prior, in one vector for all levels. The resolution of pixels has no layers: the finest ones
work on blocks of 2 x 2 pixels.

The parts that other models use, too, are in files beside this one, as for modeling_vae.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

# First, because they say what to do where transformers is too old for the imports below.
from .flow_prior import PRIORS, NormalPrior, RealNVPPrior, build_prior
from .image_model import (
    Channels,
    ImageSize,
    LabeledConfig,
    Labels,
    ResidualBlock,
    StagedConfig,
    append_labels,
    at_least_float32,
    evaluates_without_labels,
    randn,
    staged_problems,
    takes_plain_values,
    with_init_gain,
)
from .latents import DiagonalGaussianDistribution, VAEDecoderOutput, VariationalModel
from .likelihoods import LIKELIHOODS


# isort: split
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, can_return_tuple, logging


if TYPE_CHECKING:  # not needed here, but by pipelines: transformers copies what this file imports from along with it
    from .image_inputs import to_pil_image  # noqa: F401
    from .image_pipelines import ImagePipeline  # noqa: F401


logger = logging.get_logger(__name__)


@takes_plain_values
@strict
class LadderVAEConfig(StagedConfig, LabeledConfig):
    """Shape and objective of a [`LadderVAEModel`].

    Args:
        image_size: height and width in pixels; one number means a square.
        num_channels: 1 for gray, 3 for RGB.
        hidden_channels: channels of each stage, from the finest to the coarsest; every stage halves height and width,
            the first one by taking blocks of 2 x 2 pixels as its channels.
        num_residual_blocks: residual blocks of each stage, in the encoder as well as in the decoder.
        hidden_size: width of the fully connected layers on either side of z_0.
        latent_dim: numbers in z_0.
        level_channels: latent channels of each level of a stage, in the order of hidden_channels.
        num_levels: number of levels in each stage, in the same order; 0 for a stage without latents.
        prior: of z_0, "realnvp", learned, or "normal", N(0, I). The priors of the levels below are always learned.
        num_prior_couplings: affine couplings of the learned prior.
        prior_hidden_size: width of the hidden layer in each of them.
        likelihood: p(x|z): "bernoulli", "gaussian", "discretized_logistic" or "logistic_mixture"; see likelihoods.py.
        num_mixtures: components of the mixture.
        beta: weight of the KL terms; 1 is the evidence lower bound.
        dropout: share of features that residual blocks drop while training; for runs of many epochs.
        num_labels: number of classes of a conditional model, 0 for an unconditional one. Not a field, but derived from
            `id2label`, as everywhere in transformers.
        hidden_act: activation, by its name in transformers.

    Raises:
        StrictDataclassError: a value has the wrong type or is out of range, or the stages do not divide image_size.
    """

    model_type = "hfgen_ladder_vae"
    tasks = ("unconditional-image-generation", "image-to-image")

    image_size: ImageSize = 28
    num_channels: int = 1
    hidden_channels: Channels = None
    num_residual_blocks: int = 1
    hidden_size: int = 256
    latent_dim: int = 32
    level_channels: Channels = None
    num_levels: Channels = None
    prior: str = "realnvp"
    num_prior_couplings: int = 8
    prior_hidden_size: int = 128
    likelihood: str = "bernoulli"
    num_mixtures: int = 10
    beta: float | int = 1.0
    dropout: float | int = 0.0
    hidden_act: str = "silu"

    def __post_init__(self, **kwargs):
        if self.hidden_channels is None:
            self.hidden_channels = [32, 64]
        if self.level_channels is None:
            # Coarse levels say more per cell than fine ones, which are many.
            self.level_channels = [min(2 ** (2 * stage + 1), 16) for stage in range(len(self.hidden_channels))]
        if self.num_levels is None:
            self.num_levels = [1] * len(self.hidden_channels)
        super().__post_init__(**kwargs)

    def stage_size(self, stage: int) -> tuple[int, int]:
        """Height and width of a stage's features; stage 0 is the finest."""
        height, width = self.image_size
        return height // 2 ** (stage + 1), width // 2 ** (stage + 1)

    @property
    def level_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each level's latents, from z_0 down."""
        shapes: list[tuple[int, ...]] = [(self.latent_dim,)]
        for stage in reversed(range(len(self.hidden_channels))):
            shapes += [(self.level_channels[stage], *self.stage_size(stage))] * self.num_levels[stage]
        return shapes

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's latents, without the batch: the numbers of all levels in one vector."""
        return (sum(map(math.prod, self.level_shapes)),)

    def validate_architecture(self):
        """Raises a ValueError that lists all problems at once."""
        positive = ("num_mixtures", "num_prior_couplings", "prior_hidden_size")
        problems = staged_problems(self, *positive, prior=PRIORS, likelihood=LIKELIHOODS)
        if self.prior == "realnvp" and self.latent_dim < 2:
            problems.append(f'latent_dim must be at least 2 with the prior "realnvp", got {self.latent_dim}')
        for name, least in (("level_channels", 1), ("num_levels", 0)):
            values = getattr(self, name)
            if len(values) != len(self.hidden_channels) or min(values, default=least) < least:
                problems.append(
                    f"{name} must be {len(self.hidden_channels)} numbers of at least {least}, one for each stage in "
                    f"hidden_channels, got {values}"
                )
        if self.num_residual_blocks < 0:
            problems.append(f"num_residual_blocks must be at least 0, got {self.num_residual_blocks}")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            problems.append(f"beta must be a finite number of at least 0, got {self.beta}")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout must be at least 0 and less than 1, got {self.dropout}")
        if problems:
            raise ValueError("LadderVAEConfig: " + "; ".join(problems) + ".")


@dataclass
class LadderVAEEncoderOutput(ModelOutput):
    """What [`LadderVAEModel.encode`] returns.

    Attributes:
        latent_dist: q(z|x), a [`LadderPosterior`] with `sample()`, `mode()` and `mean`.
    """

    latent_dist: "LadderPosterior"


@dataclass
class LadderVAEOutput(ModelOutput):
    """What [`LadderVAEModel`] returns.

    Attributes:
        latent_mean: the mean of q(z_0|x), which embeds an image, (batch, latent_dim). It comes first, because what
            comes first is what transformers' image-feature-extraction pipeline returns.
        loss: reconstruction_loss + beta * kl_loss, nats per image, averaged over the batch.
        reconstruction: images (batch, channels, height, width) in [0, 1].
        reconstruction_loss: -E_q[log p(x|z)], nats per image.
        kl_loss: KL(q(z|x) || p(z)), nats per image, without beta.
        kl_per_level: the part of each level, from z_0 down, (levels,).
        latents: the sampled latents, (batch, *config.latent_shape).
    """

    latent_mean: Tensor | None = None
    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    kl_loss: Tensor | None = None
    kl_per_level: Tensor | None = None
    latents: Tensor | None = None


def _residual_blocks(count: int, channels: int, config: LadderVAEConfig) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(channels, config.hidden_act, config.dropout) for _ in range(count)])


@dataclass
class ImageFeatures:
    """What the encoder says of images.

    Attributes:
        top: q(z_0|x), of (batch, latent_dim).
        levels: for each level below z_0, from the coarsest down, features (batch, channels, h, w).
    """

    top: DiagonalGaussianDistribution
    levels: list[Tensor]

    def repeat(self, times: int) -> "ImageFeatures":
        """The features of a batch that holds every image `times` times, (times * batch, ...)."""
        top = DiagonalGaussianDistribution(self.top.parameters.repeat(times, 1))
        return ImageFeatures(top, [features.repeat(times, 1, 1, 1) for features in self.levels])


class EncoderStage(nn.Module):
    """Halves height and width, and says something to each level of latents of this size."""

    def __init__(self, in_channels: int, stage: int, config: LadderVAEConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.is_first = stage == 0
        channels = config.hidden_channels[stage]
        # The first stage gets blocks of 2 x 2 pixels as channels; the others halve what comes from before.
        size, stride, padding = (3, 1, 1) if self.is_first else (2, 2, 0)
        self.downsample = nn.Conv2d(in_channels, channels, size, stride, padding)
        self.blocks = _residual_blocks(config.num_residual_blocks, channels, config)
        self.to_levels = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(config.num_levels[stage])
        )

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (batch, channels, h, w), and those for each level, in the same shape."""
        hidden_states = hidden_states if self.is_first else self.act(hidden_states)
        hidden_states = self.blocks(self.downsample(hidden_states))
        active = self.act(hidden_states)
        return hidden_states, [conv(active) for conv in self.to_levels]


class LadderEncoder(nn.Module):
    """Pixels in [-1, 1] -> [`ImageFeatures`]: one pass, whatever is drawn later."""

    def __init__(self, config: LadderVAEConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.num_labels = config.num_labels or 0
        channels = [4 * config.num_channels, *config.hidden_channels]
        self.stages = nn.ModuleList(EncoderStage(width, stage, config) for stage, width in enumerate(channels[:-1]))
        features = channels[-1] * math.prod(config.feature_size)
        self.hidden = nn.Linear(features + self.num_labels, config.hidden_size)
        # Small means and log-variances: q starts close to the prior, so the first steps learn to reconstruct.
        self.to_top = with_init_gain(nn.Linear(config.hidden_size, 2 * config.latent_dim), 0.1)

    def forward(self, hidden_states: Tensor, labels: Tensor | None) -> ImageFeatures:
        hidden_states = F.pixel_unshuffle(hidden_states, 2)
        levels: list[Tensor] = []
        for stage in self.stages:
            hidden_states, of_stage = stage(hidden_states)
            levels = of_stage + levels
        hidden_states = append_labels(self.act(hidden_states).flatten(1), labels, self.num_labels)
        top = self.to_top(self.act(self.hidden(hidden_states)))
        return ImageFeatures(DiagonalGaussianDistribution(top), levels)


class LadderLevel(nn.Module):
    """One level of latents, and the layers that take them in.

    Its latents e are standard normal under the prior; m + s * e, with m and s from what lies above, enters the
    features.
    """

    def __init__(self, channels: int, latent_channels: int, config: LadderVAEConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        # The prior starts as N(0, 1).
        self.prior = with_init_gain(nn.Conv2d(channels, 2 * latent_channels, kernel_size=1), 0.0)
        self.from_above = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.posterior = with_init_gain(nn.Conv2d(channels, 2 * latent_channels, kernel_size=1), 0.1)
        self.project = nn.Conv2d(latent_channels, channels, kernel_size=1)
        self.blocks = _residual_blocks(max(1, config.num_residual_blocks), channels, config)

    def forward(self, hidden_states: Tensor, latents: Tensor) -> Tensor:
        prior = DiagonalGaussianDistribution(self.prior(self.act(hidden_states)))
        latents = prior.sample(noise=latents).to(hidden_states.dtype)
        return self.blocks(hidden_states + self.project(latents))

    def infer(self, hidden_states: Tensor, image_features: Tensor) -> DiagonalGaussianDistribution:
        """q(e|x, above), of (batch, latent_channels, h, w)."""
        joint = self.from_above(self.act(hidden_states)) + image_features
        return DiagonalGaussianDistribution(self.posterior(self.act(joint)))


class DecoderStage(nn.Module):
    """Doubles height and width, except in the coarsest stage, and takes in the levels of latents of this size."""

    def __init__(self, stage: int, config: LadderVAEConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        channels = config.hidden_channels[stage]
        self.upsample: nn.Conv2d | None = None
        if stage < len(config.hidden_channels) - 1:
            self.upsample = nn.Conv2d(config.hidden_channels[stage + 1], 4 * channels, kernel_size=1)
        self.blocks = _residual_blocks(config.num_residual_blocks, channels, config)
        self.levels: Any = nn.ModuleList(
            LadderLevel(channels, config.level_channels[stage], config) for _ in range(config.num_levels[stage])
        )

    def forward(self, hidden_states: Tensor, latents_of: Callable[[LadderLevel, Tensor], Tensor]) -> Tensor:
        if self.upsample is not None:
            hidden_states = F.pixel_shuffle(self.upsample(self.act(hidden_states)), 2)
        hidden_states = self.blocks(hidden_states)
        for level in self.levels:
            hidden_states = level(hidden_states, latents_of(level, hidden_states))
        return hidden_states


class LadderDecoder(nn.Module):
    """z_0 and the latents of each level -> parameters of p(x|z), (batch, parameters per pixel, height, width)."""

    def __init__(self, config: LadderVAEConfig, parameters_per_pixel: int):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.num_labels = config.num_labels or 0
        self.feature_shape = (config.hidden_channels[-1], *config.feature_size)
        self.from_top = nn.Linear(config.latent_dim + self.num_labels, config.hidden_size)
        self.hidden = nn.Linear(config.hidden_size, math.prod(self.feature_shape))
        stages = reversed(range(len(config.hidden_channels)))
        self.stages = nn.ModuleList(DecoderStage(stage, config) for stage in stages)
        # Parameters near 0: otherwise a logistic's scales start so far apart that the first losses explode.
        channels = config.hidden_channels[0]
        self.to_pixels = with_init_gain(nn.Conv2d(channels, 4 * parameters_per_pixel, 3, padding=1), 0.1)

    def forward(
        self, top: Tensor, latents_of: Callable[[LadderLevel, Tensor], Tensor], labels: Tensor | None
    ) -> Tensor:
        """
        Args:
            top: z_0, (batch, latent_dim).
            latents_of: called with each level, from the coarsest down, and the features above it; returns its latents.
            labels: class indices (batch,) of a conditional model.
        """
        hidden_states = self.act(self.from_top(append_labels(top, labels, self.num_labels)))
        hidden_states = self.hidden(hidden_states).unflatten(1, self.feature_shape)
        for stage in self.stages:
            hidden_states = stage(hidden_states, latents_of)
        return F.pixel_shuffle(self.to_pixels(self.act(hidden_states)), 2)


class LadderPosterior:
    """q(z|x), with the methods of a distribution. What a level adds depends on what was drawn above it, so a sample
    takes a pass through the decoder.

    Args:
        draw: maps standard normal noise (batch, *config.latent_shape) to latents of the same shape.
        shape: of the latents, with the batch.
        device: of the model.
    """

    def __init__(self, draw: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device):
        self._draw, self._shape, self._device = draw, shape, device

    @property
    def mean(self) -> Tensor:
        """The same as `mode()`."""
        return self.mode()

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Latents (batch, *config.latent_shape), differentiable in what the encoder says.

        Args:
            generator: source of the standard normal noise.
            noise: the noise itself, in the shape of the latents, if the caller draws it.
        """
        return self._draw(randn(self._shape, generator, self._device) if noise is None else noise)

    def mode(self) -> Tensor:
        """Latents (batch, *config.latent_shape), at each level the most likely ones given those above."""
        return self._draw(torch.zeros(self._shape, device=self._device))


class LadderVAEModel(VariationalModel):
    """Variational Auto-Encoder with a ladder of latents for images in [0, 1].

    >>> model = LadderVAEModel(LadderVAEConfig(image_size=28))
    >>> model.sample(16).shape
    torch.Size([16, 1, 28, 28])
    """

    config_class = LadderVAEConfig
    base_model_prefix = "ladder_vae"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: LadderVAEConfig):
        super().__init__(config)
        self.prior = build_prior(config)
        self.level_prior = NormalPrior()  # of e, in every level
        self.encoder = LadderEncoder(config)
        self.decoder = LadderDecoder(config, self.likelihood.parameters_per_pixel)
        self.post_init()

    @evaluates_without_labels
    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Labels = None, noise: Tensor | None = None, return_loss: bool = True
    ) -> LadderVAEOutput:
        """Encodes, samples the latents of all levels once, and measures both terms of the evidence lower bound.

        Args:
            pixel_values: (batch, channels, height, width) in [0, 1].
            labels: classes as in `sample`; required by a conditional model, and ignored by others.
            noise: standard normal numbers (batch, *config.latent_shape); drawn here if None.
            return_loss: False leaves the sum of both terms out.

        Raises:
            ValueError: images or labels do not fit the configuration, or the first images are far from [0, 1].
        """
        if labels is not None and not self.config.num_labels:
            logger.warning_once("This VAE is not conditional on classes: its forward pass ignores the labels.")
            labels = None
        pixel_values = self.check_images(pixel_values)
        self.check_range(pixel_values)
        labels = self.class_indices(labels, pixel_values.shape[0])
        features = self._encoded(pixel_values, labels)
        latents, parameters, kl = self._infer(features, labels, noise)
        reconstruction_loss = -self._log_prob(parameters, pixel_values).mean()
        kl_per_level = kl.mean(0)
        return LadderVAEOutput(
            latent_mean=features.top.mean,
            loss=reconstruction_loss + self.config.beta * kl_per_level.sum() if return_loss else None,
            reconstruction=self.likelihood.mean(parameters),
            reconstruction_loss=reconstruction_loss,
            kl_loss=kl_per_level.sum(),
            kl_per_level=kl_per_level,
            latents=latents,
        )

    @can_return_tuple
    def encode(self, pixel_values: Tensor, labels: Labels = None) -> LadderVAEEncoderOutput:
        """q(z|x) of images (batch, channels, height, width) in [0, 1]; a gray model takes color too."""
        pixel_values = self.check_images(pixel_values)
        labels = self.class_indices(labels, pixel_values.shape[0])
        features = self._encoded(pixel_values, labels)

        def draw(noise: Tensor) -> Tensor:
            return self._infer(features, labels, noise)[0]

        shape = (pixel_values.shape[0], *self.config.latent_shape)
        return LadderVAEEncoderOutput(latent_dist=LadderPosterior(draw, shape, pixel_values.device))

    @can_return_tuple
    def decode(self, z: Tensor, labels: Labels = None, generator: torch.Generator | None = None) -> VAEDecoderOutput:
        """Mean images of p(x|z).

        Args:
            z: latents (batch, *config.latent_shape), or of z_0 alone (batch, latent_dim); the levels below are then at
                the mean of their priors.
            labels: classes as in `sample`.
            generator: not used, as nothing is drawn; diffusers' pipelines pass it.
        """
        whole, top = self.config.latent_shape[0], self.config.latent_dim
        if z.ndim != 2 or z.shape[1] not in (whole, top):
            raise ValueError(
                f"z must have the shape (batch, {whole}), or (batch, {top}) for the top level alone, got "
                f"{tuple(z.shape)}. Use latents of this model."
            )
        z = F.pad(z, (0, whole - z.shape[1]))
        parameters = self._decode_parameters(z, self.class_indices(labels, z.shape[0]))
        return VAEDecoderOutput(sample=self.likelihood.mean(parameters))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        labels: Labels = None,
        temperature: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws n images from the prior.

        Args:
            n: number of images.
            labels: classes of a conditional model, numbers or names: one for all images, or (n,) in a tensor, array or
                list. Spread evenly over the classes if None.
            temperature: factor on the prior's standard deviation, one for all levels or one for each from z_0 down;
                below 1, images are likelier and less varied.
            generator: source of the random numbers; a CPU generator gives the same latents on every device.

        Returns:
            (n, channels, height, width) in [0, 1], the means of p(x|z).
        """
        shapes = self.config.level_shapes
        factors = temperature if isinstance(temperature, Sequence) else [temperature] * len(shapes)
        if len(factors) != len(shapes):
            raise ValueError(
                f"temperature must be one number or {len(shapes)}, one for each level from the top down, got "
                f"{temperature}."
            )
        latents = randn((n, *self.config.latent_shape), generator, self.device)
        levels = [factor * level for level, factor in zip(self._levels(latents), factors)]
        if labels is None and self.config.num_labels:
            labels = torch.arange(n) % self.config.num_labels
        return self.decode(self._from_noise(levels, None), labels, return_dict=True).sample

    def evidence_terms(
        self, pixel_values: Tensor, labels: Labels = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reconstruction loss (batch,) and KL of each level (batch, levels) in nats: minus their sum is the ELBO.

        Args:
            pixel_values, labels, noise: as in `forward`.
        """
        pixel_values = self.check_images(pixel_values)
        labels = self.class_indices(labels, pixel_values.shape[0])
        features = self._encoded(pixel_values, labels)
        _, parameters, kl = self._infer(features, labels, noise)
        return -self._log_prob(parameters, pixel_values), kl

    def _last_bias(self) -> Tensor:
        last: Any = self.decoder.to_pixels
        return last.bias

    def _encoded(self, pixel_values: Tensor, labels: Tensor | None) -> ImageFeatures:
        return self.encoder((2 * pixel_values - 1).to(self.dtype), labels)

    def _log_weights(
        self, encoded: ImageFeatures, pixel_values: Tensor, labels: Tensor | None, noise: Tensor
    ) -> Tensor:
        features = encoded.repeat(noise.shape[0])
        _, parameters, kl = self._infer(features, labels, noise.flatten(0, 1), sampled_kl=True)
        return (self._log_prob(parameters, pixel_values) - kl.sum(1)).view(noise.shape[:2])

    def _levels(self, latents: Tensor) -> list[Tensor]:
        """The latents of each level, (batch, *shape), from z_0 down."""
        shapes = self.config.level_shapes
        parts = latents.split([math.prod(shape) for shape in shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes)]

    def _to_noise(self, latents: Tensor, labels: Tensor | None) -> list[Tensor]:
        return self._levels(latents)

    def _from_noise(self, levels: list[Tensor], labels: Tensor | None) -> Tensor:
        return torch.cat([level.flatten(1) for level in levels], dim=1)

    def _infer(
        self, features: ImageFeatures, labels: Tensor | None, noise: Tensor | None, sampled_kl: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draws latents from q(z|x), from the top down.

        Args:
            features, labels: of the images.
            noise: standard normal, (batch, *config.latent_shape); drawn here if None.
            sampled_kl: whether the KL of each level is log q - log p at the latents that were drawn, and not its
                expectation. That of a learned prior of z_0 always is.

        Returns:
            latents (batch, *config.latent_shape), parameters of p(x|z), and KL (batch, levels) in nats.
        """
        mean = features.top.mean
        if noise is None:
            noise = randn((mean.shape[0], *self.config.latent_shape), None, mean.device)
        noises, image_features = iter(self._levels(noise)), iter(features.levels)
        latents: list[Tensor] = []
        kl: list[Tensor] = []

        def draw(
            posterior: DiagonalGaussianDistribution, prior: NormalPrior | RealNVPPrior, level_noise: Tensor
        ) -> Tensor:
            drawn = posterior.sample(noise=level_noise)
            standardized, log_det = prior.to_noise(drawn, labels)
            latents.append(standardized.flatten(1))
            if isinstance(prior, NormalPrior) and not sampled_kl:
                kl.append(posterior.kl())
            else:
                kl.append(posterior.log_prob(drawn) - self.level_prior.log_prob(standardized) - log_det)
            return drawn

        def infer(level: LadderLevel, hidden_states: Tensor) -> Tensor:
            posterior = level.infer(hidden_states, next(image_features))
            return draw(posterior, self.level_prior, next(noises))

        top = draw(features.top, self.prior, next(noises))
        parameters = at_least_float32(self.decoder(top.to(self.dtype), infer, labels))
        return torch.cat(latents, dim=1), parameters, torch.stack(kl, dim=1)

    def _decode_parameters(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Parameters of p(x|z), in float32 even where the network runs in 16 bits: log-probabilities are sums."""
        levels = iter(self._levels(at_least_float32(latents)))
        top = self.prior.sample(next(levels), labels)
        return at_least_float32(self.decoder(top.to(self.dtype), lambda level, above: next(levels), labels))


# With these, save_pretrained and push_to_hub copy this file, and those that it imports from, next to the weights, even
# if it was itself loaded from the Hub.
LadderVAEConfig.register_for_auto_class("AutoConfig")
LadderVAEModel.register_for_auto_class("AutoModel")

__all__ = [
    "LadderPosterior",
    "LadderVAEConfig",
    "LadderVAEEncoderOutput",
    "LadderVAEModel",
    "LadderVAEOutput",
]
