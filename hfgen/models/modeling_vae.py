"""The Variational Auto-Encoder (Kingma & Welling 2013, https://arxiv.org/abs/1312.6114).

An encoder maps an image x to a distribution over latents, q(z|x) = N(mean(x), diag(std(x)^2)); a decoder maps latents
to a distribution over images, p(x|z). Both are trained to maximize the evidence lower bound

    log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)),      p(z) = N(0, I) or learned

so the loss is `reconstruction_loss + beta * kl_loss`, both in nats per image.

The parts that other models use, too, are in files beside this one, and travel to the Hub with it: p(x|z) is in
likelihoods.py, p(z) in flow_prior.py, q(z|x) in latents.py, along with what any VAE does with it (`interpolate` and
`log_likelihood`), and what any model of images needs in image_model.py.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

# First, because they say what to do where transformers is too old for the imports below.
from .flow_prior import PRIORS, build_prior
from .image_model import (
    Channels,
    ImageSize,
    LabeledConfig,
    Labels,
    ResidualBlock,
    StagedConfig,
    TransposedConv2d,
    append_labels,
    at_least_float32,
    default_channels,
    evaluates_without_labels,
    randn,
    staged_problems,
    takes_plain_values,
    with_init_gain,
)
from .latents import DiagonalGaussianDistribution, VAEDecoderOutput, VAEEncoderOutput, VariationalModel
from .likelihoods import LIKELIHOODS, build_likelihood, discretized_logistic_log_prob


# isort: split
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, can_return_tuple, logging


if TYPE_CHECKING:  # not needed here, but by pipelines: transformers copies what this file imports from along with it
    from .image_inputs import to_pil_image  # noqa: F401
    from .image_pipelines import ImagePipeline  # noqa: F401


logger = logging.get_logger(__name__)

LATENT_TYPES = ("vector", "spatial")
# What a config.json means that was written before it had these fields.
OLDEST_NETWORK = {"prior": "normal", "hidden_act": "relu"}


@takes_plain_values
@strict
class VAEConfig(StagedConfig, LabeledConfig):
    """Shape and objective of a [`VAEModel`].

    Args:
        image_size: height and width in pixels; one number means a square.
        num_channels: 1 for gray, 3 for RGB.
        hidden_channels: channels of each stage; every stage halves height and width. Default: [32, 64], and for vector
            latents of images of more than 32 pixels further stages of 128, down to 8 x 8 cells.
        num_residual_blocks: residual blocks after each stage's downsampling, and before its mirror image's upsampling.
        hidden_size: width of the fully connected layer on either side of vector latents.
        latent_dim: numbers in a vector latent, or channels of a spatial one.
        latent_type: "vector", latents (batch, latent_dim), or "spatial", latents (batch, latent_dim, h, w), where h
            and w are the image's height and width divided by 2 to the power of the number of stages.
        likelihood: p(x|z). "bernoulli" on logits, for binary images, or gray values read as probabilities; "gaussian"
            with one learned standard deviation per channel (Rybkin et al. 2020, https://arxiv.org/abs/2006.13202);
            "discretized_logistic" over 256 levels with a learned scale per pixel (Kingma et al. 2016,
            https://arxiv.org/abs/1606.04934), or a "logistic_mixture" of several, with each color conditioned on those
            before it (Salimans et al. 2017, https://arxiv.org/abs/1701.05517); the values of the latter two are true
            log-probabilities of 8-bit images.
        num_mixtures: components of the logistic mixture.
        prior: p(z). "normal", or for vector latents "realnvp", which is learned (Dinh et al. 2016,
            https://arxiv.org/abs/1605.08803), and depends on the class in a conditional model. Default: "realnvp" for
            vector latents of at least 2 numbers, else "normal".
        num_prior_couplings: layers of the learned prior.
        prior_hidden_size: width of the hidden layer in each of them.
        beta: weight of the KL term (Higgins et al. 2017); 1 is the evidence lower bound.
        num_labels: number of classes of a conditional model, 0 for an unconditional one. Not a field, but derived from
            `id2label`, as everywhere in transformers.
        hidden_act: activation, by its name in transformers.
        scaling_factor: 1 / standard deviation of the latents of the training images. A model of latents, such as a
            diffusion model, sees (latents - shift_factor) * scaling_factor (Rombach et al. 2021,
            https://arxiv.org/abs/2112.10752, section G). Training measures it at the end.
        shift_factor: mean of those latents, likewise.

    Raises:
        StrictDataclassError: a value has the wrong type or is out of range, or the stages do not divide image_size.
    """

    model_type = "hfgen_vae"
    tasks = ("unconditional-image-generation", "image-to-image")

    image_size: ImageSize = 28
    num_channels: int = 1
    hidden_channels: Channels = None
    num_residual_blocks: int = 0
    hidden_size: int = 256
    latent_dim: int = 32
    latent_type: str = "vector"
    likelihood: str = "bernoulli"
    num_mixtures: int = 10
    prior: str | None = None
    num_prior_couplings: int = 8
    prior_hidden_size: int = 128
    beta: float | int = 1.0
    hidden_act: str = "silu"
    scaling_factor: float | int = 1.0
    shift_factor: float | int = 0.0

    def __post_init__(self, **kwargs):
        if self.hidden_channels is None:
            self.hidden_channels = default_channels(self.image_size) if self.latent_type == "vector" else [32, 64]
        if self.prior is None:
            self.prior = "realnvp" if self._can_learn_prior() else "normal"
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config that a config.json describes. Fields that it is too old to have keep the network of then."""
        return super().from_dict({**OLDEST_NETWORK, **config_dict}, **kwargs)

    def validate_architecture(self):
        """Raises a ValueError that lists all problems at once."""
        positive = ("num_mixtures", "num_prior_couplings", "prior_hidden_size")
        choices = {"latent_type": LATENT_TYPES, "likelihood": LIKELIHOODS, "prior": PRIORS}
        problems = staged_problems(self, *positive, **choices)
        if self.prior == "realnvp" and not self._can_learn_prior():
            problems.append(
                'prior "realnvp" needs latent_type "vector" and latent_dim of at least 2, got '
                f'{self.latent_type!r} and {self.latent_dim}; change them or use "normal"'
            )
        if self.num_residual_blocks < 0:
            problems.append(f"num_residual_blocks must be at least 0, got {self.num_residual_blocks}")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            problems.append(f"beta must be a finite number of at least 0, got {self.beta}")
        if not (math.isfinite(self.scaling_factor) and self.scaling_factor > 0):
            problems.append(f"scaling_factor must be a finite number above 0, got {self.scaling_factor}")
        if not math.isfinite(self.shift_factor):
            problems.append(f"shift_factor must be a finite number, got {self.shift_factor}")
        if problems:
            raise ValueError("VAEConfig: " + "; ".join(problems) + ".")

    def _can_learn_prior(self) -> bool:
        return self.latent_type == "vector" and self.latent_dim >= 2


@dataclass
class VAEOutput(ModelOutput):
    """What [`VAEModel`] returns.

    Attributes:
        latent_mean: the mean of q(z|x), which embeds an image. It comes first, because what comes first is what
            transformers' image-feature-extraction pipeline returns.
        loss: reconstruction_loss + beta * kl_loss, nats per image, averaged over the batch.
        reconstruction: images (batch, channels, height, width) in [0, 1].
        reconstruction_loss: -E_q[log p(x|z)], nats per image.
        kl_loss: KL(q(z|x) || p(z)), nats per image, without beta; at the sampled latents if the prior is learned.
        latents: the sampled latents.
    """

    latent_mean: Tensor | None = None
    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    kl_loss: Tensor | None = None
    latents: Tensor | None = None


class VAEEncoder(nn.Module):
    """Pixels in [-1, 1] -> mean and log-variance of the latents, stacked along dimension 1."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.stages = nn.ModuleList()
        channels = config.num_channels
        for out_channels in config.hidden_channels:
            stage: list[nn.Module] = [nn.Conv2d(channels, out_channels, kernel_size=4, stride=2, padding=1)]
            stage += [ResidualBlock(out_channels, config.hidden_act) for _ in range(config.num_residual_blocks)]
            self.stages.append(nn.Sequential(*stage))
            channels = out_channels
        self.latent_type = config.latent_type
        self.num_labels = config.num_labels or 0
        self.hidden: nn.Module
        self.to_latents: nn.Module
        # Small means and log-variances: q starts close to the prior, so the first steps learn to reconstruct.
        if self.latent_type == "vector":
            features = channels * math.prod(config.feature_size)
            self.hidden = nn.Linear(features + self.num_labels, config.hidden_size)
            self.to_latents = with_init_gain(nn.Linear(config.hidden_size, 2 * config.latent_dim), 0.1)
        else:
            self.hidden = nn.Conv2d(channels + self.num_labels, channels, kernel_size=3, padding=1)
            self.to_latents = with_init_gain(nn.Conv2d(channels, 2 * config.latent_dim, kernel_size=1), 0.1)

    def forward(self, hidden_states: Tensor, labels: Tensor | None) -> Tensor:
        for stage in self.stages:
            hidden_states = self.act(stage(hidden_states))
        if self.latent_type == "vector":
            hidden_states = hidden_states.flatten(1)
        hidden_states = append_labels(hidden_states, labels, self.num_labels)
        return self.to_latents(self.act(self.hidden(hidden_states)))


class VAEDecoder(nn.Module):
    """Latents -> parameters of p(x|z), (batch, parameters per pixel, height, width): the encoder mirrored."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.latent_type = config.latent_type
        self.num_labels = config.num_labels or 0
        channels = config.hidden_channels[-1]
        self.feature_shape = (channels, *config.feature_size)
        self.from_latents: nn.Module
        self.hidden: nn.Module
        if self.latent_type == "vector":
            self.from_latents = nn.Linear(config.latent_dim + self.num_labels, config.hidden_size)
            self.hidden = nn.Linear(config.hidden_size, math.prod(self.feature_shape))
        else:
            self.from_latents = nn.Conv2d(config.latent_dim + self.num_labels, channels, kernel_size=3, padding=1)
            self.hidden = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.stages = nn.ModuleList()
        for out_channels in [*config.hidden_channels[-2::-1], build_likelihood(config).parameters_per_pixel]:
            stage: list[nn.Module] = [
                ResidualBlock(channels, config.hidden_act) for _ in range(config.num_residual_blocks)
            ]
            stage.append(TransposedConv2d(channels, out_channels, kernel_size=4, stride=2, padding=1))
            self.stages.append(nn.Sequential(*stage))
            channels = out_channels
        # Parameters near 0: otherwise the logistic's scales start so far apart that the first losses explode.
        with_init_gain(stage[-1], 0.1)

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        hidden_states = self.act(self.from_latents(append_labels(latents, labels, self.num_labels)))
        hidden_states = self.hidden(hidden_states)
        if self.latent_type == "vector":
            hidden_states = hidden_states.unflatten(1, self.feature_shape)
        for stage in self.stages:
            hidden_states = stage(self.act(hidden_states))
        return hidden_states


class VAEModel(VariationalModel):
    """Variational Auto-Encoder for images in [0, 1].

    In a pipeline of diffusers, whose own models have pixels in [-1, 1], use
    `pipeline.image_processor = VaeImageProcessor(do_normalize=False)`: that is diffusers' own switch for [0, 1].

    >>> model = VAEModel(VAEConfig(image_size=28, latent_dim=32))
    >>> model.sample(16).shape
    torch.Size([16, 1, 28, 28])
    """

    config_class = VAEConfig
    base_model_prefix = "vae"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: VAEConfig):
        super().__init__(config)
        self.encoder = VAEEncoder(config)
        self.decoder = VAEDecoder(config)
        self.prior = build_prior(config)
        self.post_init()

    @evaluates_without_labels
    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Labels = None, noise: Tensor | None = None, return_loss: bool = True
    ) -> VAEOutput:
        """Encodes, samples latents once, decodes, and measures both terms of the evidence lower bound.

        Args:
            pixel_values: (batch, channels, height, width) in [0, 1].
            labels: classes as in `sample`; required by a conditional model, and ignored by others.
            noise: standard normal numbers in the shape of the latents; drawn here if None.
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
        posterior, latents, parameters = self._autoencode(pixel_values, labels, noise)
        reconstruction_loss = -self._log_prob(parameters, pixel_values).mean()
        kl_loss = self.prior.kl(posterior, latents, labels).mean()
        return VAEOutput(
            latent_mean=posterior.mean,
            loss=reconstruction_loss + self.config.beta * kl_loss if return_loss else None,
            reconstruction=self.likelihood.mean(parameters),
            reconstruction_loss=reconstruction_loss,
            kl_loss=kl_loss,
            latents=latents,
        )

    @can_return_tuple
    def encode(self, pixel_values: Tensor, labels: Labels = None) -> VAEEncoderOutput:
        """q(z|x) of images (batch, channels, height, width) in [0, 1]; a gray model takes color too."""
        pixel_values = self.check_images(pixel_values)
        labels = self.class_indices(labels, pixel_values.shape[0])
        parameters = self.encoder((2 * pixel_values - 1).to(self.dtype), labels)
        return VAEEncoderOutput(latent_dist=DiagonalGaussianDistribution(parameters))

    @can_return_tuple
    def decode(self, z: Tensor, labels: Labels = None, generator: torch.Generator | None = None) -> VAEDecoderOutput:
        """Mean images of p(x|z) for latents (batch, *config.latent_shape). As nothing is drawn, the generator that
        diffusers' pipelines pass is not used."""
        expected = self.config.latent_shape
        if z.shape[1:] != expected:
            raise ValueError(
                f"z must have the shape (batch, {', '.join(map(str, expected))}), got "
                f"{tuple(z.shape)}. Use latents of this model."
            )
        parameters = self._decode_parameters(z, self.class_indices(labels, z.shape[0]))
        return VAEDecoderOutput(sample=self.likelihood.mean(parameters))

    @torch.no_grad()
    def sample(
        self, n: int, labels: Labels = None, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws n images from the prior.

        Args:
            n: number of images.
            labels: classes of a conditional model, numbers or names: one for all images, or (n,) in a tensor, array or
                list. Spread evenly over the classes if None.
            temperature: factor on the prior's standard deviation, or on that of the noise which a learned prior turns
                into latents; below 1, images are likelier and less varied.
            generator: source of the random numbers; a CPU generator gives the same latents on every device.

        Returns:
            (n, channels, height, width) in [0, 1], the means of p(x|z).
        """
        noise = temperature * randn((n, *self.config.latent_shape), generator, self.device)
        if labels is None and self.config.num_labels:
            labels = torch.arange(n) % self.config.num_labels
        labels = self.class_indices(labels, n)
        return self.decode(self.prior.sample(noise, labels), labels, return_dict=True).sample

    def evidence_terms(
        self, pixel_values: Tensor, labels: Labels = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reconstruction loss (batch,) and KL (batch, 1) of every image, in nats: minus their sum is its ELBO.

        The KL has a second dimension, of levels, as in models with several levels of latents; this one has one level.

        Args:
            pixel_values, labels, noise: as in `forward`.
        """
        pixel_values = self.check_images(pixel_values)
        labels = self.class_indices(labels, pixel_values.shape[0])
        posterior, latents, parameters = self._autoencode(pixel_values, labels, noise)
        kl = self.prior.kl(posterior, latents, labels)
        return -self._log_prob(parameters, pixel_values), kl[:, None]

    def _last_bias(self) -> Tensor:
        last: Any = self.decoder.stages[-1]
        return last[-1].bias

    def _encoded(self, pixel_values: Tensor, labels: Tensor | None) -> DiagonalGaussianDistribution:
        return self.encode(pixel_values, labels, return_dict=True).latent_dist

    def _log_weights(
        self, encoded: DiagonalGaussianDistribution, pixel_values: Tensor, labels: Tensor | None, noise: Tensor
    ) -> Tensor:
        latents = encoded.sample(noise=noise)
        log_pixels = self._log_prob(self._decode_parameters(latents.flatten(0, 1), labels), pixel_values)
        log_prior = self.prior.log_prob(latents.flatten(0, 1), labels)
        return (log_pixels + log_prior).view(noise.shape[:2]) - encoded.log_prob(latents)

    def _autoencode(
        self, pixel_values: Tensor, labels: Tensor | None, noise: Tensor | None
    ) -> tuple[DiagonalGaussianDistribution, Tensor, Tensor]:
        """q(z|x), latents drawn from it, and the parameters of p(x|z) that they are decoded to."""
        posterior = self._encoded(pixel_values, labels)
        latents = posterior.sample(noise=noise)
        return posterior, latents, self._decode_parameters(latents, labels)

    def _decode_parameters(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Parameters of p(x|z), in float32 even where the network runs in 16 bits: log-probabilities are sums."""
        return at_least_float32(self.decoder(latents.to(self.dtype), labels))

    def _to_noise(self, latents: Tensor, labels: Tensor | None) -> list[Tensor]:
        return [self.prior.to_noise(latents, labels)[0]]

    def _from_noise(self, levels: list[Tensor], labels: Tensor | None) -> Tensor:
        return self.prior.sample(levels[0], labels)


# With these, save_pretrained and push_to_hub copy this file, and those that it imports from, next to the weights, even
# if it was itself loaded from the Hub.
VAEConfig.register_for_auto_class("AutoConfig")
VAEModel.register_for_auto_class("AutoModel")

__all__ = [
    "DiagonalGaussianDistribution",
    "VAEConfig",
    "VAEDecoderOutput",
    "VAEEncoderOutput",
    "VAEModel",
    "VAEOutput",
    "discretized_logistic_log_prob",
]
