"""The Variational Auto-Encoder (Kingma & Welling 2013, https://arxiv.org/abs/1312.6114).

An encoder maps an image x to a distribution over latents, q(z|x) = N(mean(x), diag(std(x)^2)); a decoder maps latents
to a distribution over images, p(x|z). Both are trained to maximize the evidence lower bound

    log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)),      p(z) = N(0, I)

so the loss is `reconstruction_loss + beta * kl_loss`, both in nats per image. This file needs only torch and
transformers: it is what travels to the Hub.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
import transformers


# Without this, an older transformers would complain about some name that is imported below.
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18):
    raise ImportError(
        f"This model needs transformers 5.18 or newer, found {transformers.__version__}. "
        'Run: pip install --upgrade "transformers>=5.18,<6"'
    )

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, can_return_tuple, is_tracing, logging


logger = logging.get_logger(__name__)

LIKELIHOODS = ("bernoulli", "gaussian", "discretized_logistic")
LATENT_TYPES = ("vector", "spatial")

if TYPE_CHECKING:
    ImageSize = Any  # may be one number or None on input, and is always a list afterwards
    Channels = Any
else:
    ImageSize = int | list[int]
    Channels = list[int] | None

Labels = Any  # of classes: numbers or names, one for each image in a tensor, array or list, or one for all images
ConfigClass = TypeVar("ConfigClass", bound=type)


def _takes_plain_values(config_class: ConfigClass) -> ConfigClass:
    """Lets fields be set to tuples and to numbers of numpy and torch, and image_size to one number; what is kept are
    Python's numbers and lists, as in JSON. Above `strict`, which looks at a value before the class's own methods do,
    and not in __post_init__, because from_pretrained(..., image_size=32) sets the field later."""
    owner: Any = config_class
    fields, set_checked = owner.__annotations__, owner.__setattr__

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name in fields:
            value = _plain(value)
        if name == "image_size" and isinstance(value, int):
            value = [value, value]
        set_checked(self, name, value)

    owner.__setattr__ = __setattr__
    return config_class


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


@_takes_plain_values
@strict
class VAEConfig(PreTrainedConfig):
    """Shape and objective of a [`VAEModel`].

    Args:
        image_size: height and width in pixels; one number means a square.
        num_channels: 1 for gray, 3 for RGB.
        hidden_channels: channels of each stage; every stage halves height and width.
        num_residual_blocks: residual blocks after each stage's downsampling, and before its mirror image's upsampling.
        hidden_size: width of the fully connected layer on either side of vector latents.
        latent_dim: numbers in a vector latent, or channels of a spatial one.
        latent_type: "vector", latents (batch, latent_dim), or "spatial", latents (batch, latent_dim, h, w), where h
            and w are the image's height and width divided by 2 to the power of the number of stages.
        likelihood: p(x|z). "bernoulli" on logits, for binary images, or gray values read as probabilities; "gaussian"
            with one learned standard deviation per channel (Rybkin et al. 2020, https://arxiv.org/abs/2006.13202);
            "discretized_logistic" over 256 levels with a learned scale per pixel (Kingma et al. 2016,
            https://arxiv.org/abs/1606.04934), whose values are true log-probabilities of 8-bit images.
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

    image_size: ImageSize = 28
    num_channels: int = 1
    hidden_channels: Channels = None
    num_residual_blocks: int = 0
    hidden_size: int = 512
    latent_dim: int = 32
    latent_type: str = "vector"
    likelihood: str = "bernoulli"
    beta: float | int = 1.0
    hidden_act: str = "relu"
    scaling_factor: float | int = 1.0
    shift_factor: float | int = 0.0

    def __post_init__(self, **kwargs):
        if self.hidden_channels is None:
            self.hidden_channels = [32, 64]
        if self.id2label is None:
            kwargs.setdefault("num_labels", 0)
        super().__post_init__(**kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """Writes the labels even if there are two, which transformers takes as the default and omits."""
        return {**super().to_diff_dict(), "id2label": self.id2label, "label2id": self.label2id}

    @property
    def downsampling(self) -> int:
        """Pixels per cell of the last stage's feature map, along one side."""
        return 2 ** len(self.hidden_channels)

    @property
    def feature_size(self) -> tuple[int, int]:
        """Height and width of the last stage's feature map."""
        height, width = self.image_size
        return height // self.downsampling, width // self.downsampling

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's latents, without the batch."""
        return (self.latent_dim,) if self.latent_type == "vector" else (self.latent_dim, *self.feature_size)

    @property
    def latent_channels(self) -> int:
        """`latent_dim`, by the name that diffusers reads. A vector counts as channels without height and width."""
        return self.latent_dim

    @property
    def block_out_channels(self) -> list[int]:
        """Channels of the feature maps, from the image's own size down. diffusers derives vae_scale_factor from their
        number: 2 ** (len - 1) is `downsampling`. Vector latents are computed from the last of these maps."""
        return [self.num_channels, *self.hidden_channels]

    def validate_architecture(self):
        """Raises a ValueError that lists all problems at once."""
        problems = []
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            problems.append(f"image_size must be one or two positive numbers (height, width), got {self.image_size}")
        elif any(side % self.downsampling for side in self.image_size):
            problems.append(
                f"image_size {self.image_size} must be divisible by {self.downsampling}, as each of the "
                f"{len(self.hidden_channels)} stages in hidden_channels halves it; "
                "resize the images or use fewer stages"
            )
        if not self.hidden_channels or min(self.hidden_channels) < 1:
            problems.append(
                f"hidden_channels must be a non-empty list of positive numbers, got {self.hidden_channels}"
            )
        for name in ("num_channels", "hidden_size", "latent_dim"):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_residual_blocks < 0:
            problems.append(f"num_residual_blocks must be at least 0, got {self.num_residual_blocks}")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            problems.append(f"beta must be a finite number of at least 0, got {self.beta}")
        if not (math.isfinite(self.scaling_factor) and self.scaling_factor > 0):
            problems.append(f"scaling_factor must be a finite number above 0, got {self.scaling_factor}")
        if not math.isfinite(self.shift_factor):
            problems.append(f"shift_factor must be a finite number, got {self.shift_factor}")
        if self.latent_type not in LATENT_TYPES:
            problems.append(f"latent_type must be one of {', '.join(LATENT_TYPES)}, got {self.latent_type!r}")
        if self.likelihood not in LIKELIHOODS:
            problems.append(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {self.likelihood!r}")
        if self.hidden_act not in ACT2FN:
            problems.append(f"hidden_act must be the name of an activation in transformers, got {self.hidden_act!r}")
        if problems:
            raise ValueError("VAEConfig: " + "; ".join(problems) + ".")


class DiagonalGaussianDistribution:
    """A normal distribution with independent dimensions, with the methods of diffusers' class of the same name.

    Args:
        parameters: (batch, 2 * latent_dim, ...): mean and logarithm of the variance, stacked along dimension 1.
    """

    def __init__(self, parameters: Tensor):
        self.parameters = _at_least_float32(parameters)
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
            noise = _randn(self.mean.shape, generator, self.mean.device)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The most likely latents, (batch, latent_dim, ...)."""
        return self.mean

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) in nats per image, (batch,) (Kingma & Welling 2013, appendix B)."""
        return 0.5 * (self.mean.square() + self.var - 1.0 - self.logvar).flatten(1).sum(1)

    def log_prob(self, latents: Tensor) -> Tensor:
        """log q(z|x) in nats, (batch,), of latents (batch, latent_dim, ...)."""
        squares = (latents - self.mean).square() / self.var
        return -0.5 * (squares + self.logvar + math.log(2 * math.pi)).flatten(1).sum(1)


@dataclass
class VAEEncoderOutput(ModelOutput):
    """What [`VAEModel.encode`] returns.

    Attributes:
        latent_dist: q(z|x), a [`DiagonalGaussianDistribution`] with `sample()`, `mode()`, `mean` and `std`.
    """

    latent_dist: DiagonalGaussianDistribution


@dataclass
class VAEDecoderOutput(ModelOutput):
    """What [`VAEModel.decode`] returns.

    Attributes:
        sample: images, the mean of p(x|z), (batch, channels, height, width) in [0, 1].
    """

    sample: Tensor


@dataclass
class VAEOutput(ModelOutput):
    """What [`VAEModel`] returns.

    Attributes:
        latent_mean: the mean of q(z|x), which embeds an image. It comes first, because what comes first is what
            transformers' image-feature-extraction pipeline returns.
        loss: reconstruction_loss + beta * kl_loss, nats per image, averaged over the batch.
        reconstruction: images (batch, channels, height, width) in [0, 1].
        reconstruction_loss: -E_q[log p(x|z)], nats per image.
        kl_loss: KL(q(z|x) || N(0, I)), nats per image, without beta.
        latents: the sampled latents.
    """

    latent_mean: Tensor | None = None
    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    kl_loss: Tensor | None = None
    latents: Tensor | None = None


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))); starts as the identity, so depth costs nothing at first."""

    def __init__(self, channels: int, hidden_act: str):
        super().__init__()
        self.act = ACT2FN[hidden_act]
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = _with_init_gain(nn.Conv2d(channels, channels, kernel_size=3, padding=1), 0.0)

    def forward(self, hidden_states: Tensor) -> Tensor:
        update = self.conv2(self.act(self.conv1(self.act(hidden_states))))
        return hidden_states + update


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
            self.to_latents = _with_init_gain(nn.Linear(config.hidden_size, 2 * config.latent_dim), 0.1)
        else:
            self.hidden = nn.Conv2d(channels + self.num_labels, channels, kernel_size=3, padding=1)
            self.to_latents = _with_init_gain(nn.Conv2d(channels, 2 * config.latent_dim, kernel_size=1), 0.1)

    def forward(self, hidden_states: Tensor, labels: Tensor | None) -> Tensor:
        for stage in self.stages:
            hidden_states = self.act(stage(hidden_states))
        if self.latent_type == "vector":
            hidden_states = hidden_states.flatten(1)
        hidden_states = _append_labels(hidden_states, labels, self.num_labels)
        return self.to_latents(self.act(self.hidden(hidden_states)))


class VAEDecoder(nn.Module):
    """Latents -> parameters of p(x|z), (batch, parameters per pixel * channels, height, width). Encoder mirrored."""

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
        # The discretized logistic has a mean and a scale per pixel; the other two have a single parameter.
        per_pixel = 2 if config.likelihood == "discretized_logistic" else 1
        self.stages = nn.ModuleList()
        for out_channels in [*config.hidden_channels[-2::-1], config.num_channels * per_pixel]:
            stage: list[nn.Module] = [
                ResidualBlock(channels, config.hidden_act) for _ in range(config.num_residual_blocks)
            ]
            stage.append(nn.ConvTranspose2d(channels, out_channels, kernel_size=4, stride=2, padding=1))
            self.stages.append(nn.Sequential(*stage))
            channels = out_channels
        # Parameters near 0: otherwise the logistic's scales start so far apart that the first losses explode.
        _with_init_gain(stage[-1], 0.1)

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        hidden_states = self.act(self.from_latents(_append_labels(latents, labels, self.num_labels)))
        hidden_states = self.hidden(hidden_states)
        if self.latent_type == "vector":
            hidden_states = hidden_states.unflatten(1, self.feature_shape)
        for stage in self.stages:
            hidden_states = stage(self.act(hidden_states))
        return hidden_states


def _evaluates_without_labels(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes transformers' Trainer evaluate the loss of batches without labels, too.

    It skips that loss if the signature of the class's `forward` names labels, and drops the data's column of labels if
    that of the model's does not. So the function's signature leaves them out, and has them where Python makes the
    method's signature of it, by `replace`.
    """
    whole = inspect.signature(forward)
    parameters = list(whole.parameters.values())

    class FunctionSignature(inspect.Signature):
        def replace(self, **changes: Any) -> inspect.Signature:  # type: ignore[override]
            return whole.replace(parameters=parameters[1:])

    named = [parameter for parameter in parameters if parameter.name != "labels"]
    forward.__signature__ = FunctionSignature(named)  # type: ignore[attr-defined]
    return forward


class VAEModel(PreTrainedModel):
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
    _range_is_checked = False

    def __init__(self, config: VAEConfig):
        config.validate()  # again: fields may have been changed since it was created
        super().__init__(config)
        self.encoder = VAEEncoder(config)
        self.decoder = VAEDecoder(config)
        if config.likelihood == "gaussian":
            self.log_scale = nn.Parameter(torch.zeros(config.num_channels, 1, 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            _init_with_gain(module)
        elif isinstance(module, VAEModel) and self.config.likelihood == "gaussian":
            init.zeros_(module.log_scale)

    @_evaluates_without_labels
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
        posterior = self.encode(pixel_values, labels, return_dict=True).latent_dist
        self._check_range(pixel_values)
        latents = posterior.sample(noise=noise)
        parameters = self._decode_parameters(latents, labels)
        reconstruction_loss = -self._log_likelihood_of_pixels(parameters, pixel_values).mean()
        kl_loss = posterior.kl().mean()
        return VAEOutput(
            latent_mean=posterior.mean,
            loss=reconstruction_loss + self.config.beta * kl_loss if return_loss else None,
            reconstruction=self._mean_image(parameters),
            reconstruction_loss=reconstruction_loss,
            kl_loss=kl_loss,
            latents=latents,
        )

    @can_return_tuple
    def encode(self, pixel_values: Tensor, labels: Labels = None) -> VAEEncoderOutput:
        """q(z|x) of images (batch, channels, height, width) in [0, 1]; a gray model takes color too."""
        pixel_values = self._check_images(pixel_values)
        labels = self._class_indices(labels, pixel_values.shape[0])
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
        return VAEDecoderOutput(sample=self._mean_image(self._decode_parameters(z, labels)))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        labels: Labels = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws n images from the prior.

        Args:
            n: number of images.
            labels: classes of a conditional model, numbers or names: one for all images, or (n,) in a tensor, array or
                list. Spread evenly over the classes if None.
            temperature: factor on the prior's standard deviation; below 1, images are likelier and less varied.
            generator: source of the random numbers; a CPU generator gives the same latents on every device.

        Returns:
            (n, channels, height, width) in [0, 1], the means of p(x|z).
        """
        latents = temperature * _randn((n, *self.config.latent_shape), generator, self.device)
        if labels is None and self.config.num_labels:
            labels = torch.arange(n) % self.config.num_labels
        return self.decode(latents, labels, return_dict=True).sample

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int, labels: Labels = None) -> Tensor:
        """Images along the great circle between the latents of two images.

        A straight line would pass near the origin, where the prior puts no mass in high dimensions (White 2016,
        https://arxiv.org/abs/1609.04468).

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
        labels = self._class_indices(labels, a.shape[0])
        start, end = (self.encode(images, labels, return_dict=True).latent_dist.mode() for images in (a, b))
        path = torch.stack([_slerp(start, end, t) for t in torch.linspace(0, 1, steps).tolist()], dim=1)
        repeated = None if labels is None else labels.repeat_interleave(steps)
        images = self.decode(path.flatten(0, 1), repeated, return_dict=True).sample.unflatten(0, (len(a), steps))
        return images[0] if single else images

    def evidence_terms(
        self, pixel_values: Tensor, labels: Labels = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reconstruction loss and KL of every image, both (batch,) in nats: minus their sum is its ELBO.

        Args:
            pixel_values, labels, noise: as in `forward`.
        """
        posterior = self.encode(pixel_values, labels, return_dict=True).latent_dist
        parameters = self._decode_parameters(posterior.sample(noise=noise), labels)
        return -self._log_likelihood_of_pixels(parameters, pixel_values), posterior.kl()

    @torch.no_grad()
    def log_likelihood(
        self,
        pixel_values: Tensor,
        num_samples: int = 100,
        labels: Labels = None,
        generator: torch.Generator | None = None,
        chunk_size: int = 1024,
    ) -> Tensor:
        """Importance-weighted estimate of log p(x), a lower bound that tightens with num_samples.

        log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x) with z_k ~ q(z|x) (Burda et al. 2015,
        https://arxiv.org/abs/1509.00519).

        Args:
            pixel_values: (batch, channels, height, width) in [0, 1].
            num_samples: K.
            labels: classes of a conditional model, as in `sample`.
            generator: source of the random numbers.
            chunk_size: images decoded at once (at least one per input image); bounds the memory.

        Returns:
            (batch,) nats per image.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}. More samples tighten the bound.")
        labels = self._class_indices(labels, pixel_values.shape[0])
        posterior = self.encode(pixel_values, labels, return_dict=True).latent_dist
        at_once = max(1, chunk_size // max(1, len(pixel_values)))
        log_weights = []
        for start in range(0, num_samples, at_once):
            k = min(at_once, num_samples - start)
            log_weights.append(self._log_importance_weights(posterior, pixel_values, labels, k, generator))
        return torch.cat(log_weights).logsumexp(0) - math.log(num_samples)

    def _log_importance_weights(
        self,
        posterior: DiagonalGaussianDistribution,
        pixel_values: Tensor,
        labels: Tensor | None,
        k: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x) for k samples per image, (k, batch)."""
        noise = _randn((k, *posterior.mean.shape), generator, posterior.mean.device)
        latents = posterior.mean + posterior.std * noise
        # The squared deviations of z from q's mean are the noise's own squares, and the two constants cancel.
        log_prior_over_posterior = 0.5 * (noise.square() + posterior.logvar - latents.square()).flatten(2).sum(2)
        parameters = self._decode_parameters(latents.flatten(0, 1), None if labels is None else labels.repeat(k))
        log_pixels = self._log_likelihood_of_pixels(parameters, pixel_values.repeat(k, 1, 1, 1))
        return log_pixels.view_as(log_prior_over_posterior) + log_prior_over_posterior

    def _decode_parameters(self, latents: Tensor, labels: Labels) -> Tensor:
        """Parameters of p(x|z), in float32 even where the network runs in 16 bits: log-probabilities are sums."""
        labels = self._class_indices(labels, latents.shape[0])
        return _at_least_float32(self.decoder(latents.to(self.dtype), labels))

    def _log_likelihood_of_pixels(self, parameters: Tensor, pixel_values: Tensor) -> Tensor:
        """log p(x|z) in nats, (batch,), from the decoder's output."""
        pixel_values = self._check_images(pixel_values).to(parameters.dtype)
        if self.config.likelihood == "bernoulli":
            log_prob = -F.binary_cross_entropy_with_logits(parameters, pixel_values, reduction="none")
        elif self.config.likelihood == "gaussian":
            log_scale = self.log_scale.to(parameters.dtype)
            squares = ((pixel_values - parameters) * torch.exp(-log_scale)).square()
            log_prob = -0.5 * squares - log_scale - 0.5 * math.log(2 * math.pi)
        else:
            mean, log_scale = self._logistic_parameters(parameters)
            log_prob = discretized_logistic_log_prob(pixel_values, mean, log_scale)
        return log_prob.flatten(1).sum(1)

    def _mean_image(self, parameters: Tensor) -> Tensor:
        if self.config.likelihood == "bernoulli":
            return parameters.sigmoid()
        if self.config.likelihood == "gaussian":
            return parameters.clamp(0, 1)
        return self._logistic_parameters(parameters)[0].clamp(0, 1)

    def _logistic_parameters(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of every pixel. A decoder output of 0 means mid-gray and a scale of exp(-2) = 0.14."""
        mean, log_scale = parameters.chunk(2, dim=1)
        return mean + 0.5, log_scale - 2.0

    def _class_indices(self, labels: Labels, batch: int) -> Tensor | None:
        if (labels is not None) != bool(self.config.num_labels):
            raise ValueError(
                f"labels must be {'given' if self.config.num_labels else 'None'}, got {type(labels).__name__}. It is "
                + (f"conditional on {self.config.num_labels} classes." if self.config.num_labels else "unconditional.")
            )
        if labels is None:
            return None
        indices = _to_class_indices(labels, self.config.id2label)
        indices = indices.expand(batch) if indices.ndim == 0 else indices
        if tuple(indices.shape) != (batch,):
            raise ValueError(
                f"labels must have the shape ({batch},), got {tuple(indices.shape)}. Give one class per image."
            )
        return indices

    def _check_images(self, pixel_values: Tensor) -> Tensor:
        """The images, which must fit the configuration. For a gray model, color becomes gray: transformers' pipelines
        read every file as RGB."""
        is_float, is_color = pixel_values.is_floating_point(), pixel_values.ndim == 4 and pixel_values.shape[1] == 3
        if self.config.num_channels == 1 and is_float and is_color:
            red, green, blue = pixel_values.split(1, dim=1)
            # The luma of ITU-R BT.601, as in Pillow; in differences, which leave gray what it is to the bit.
            pixel_values = green + 0.299 * (red - green) + 0.114 * (blue - green)
        expected = (self.config.num_channels, *self.config.image_size)
        if pixel_values.shape[1:] != expected or not is_float:
            raise ValueError(
                f"pixel_values must be floats in [0, 1] of shape (batch, {', '.join(map(str, expected))}), got "
                f"{pixel_values.dtype} of shape {tuple(pixel_values.shape)}. Use this "
                "model's image processor, which resizes and converts images."
            )
        return pixel_values

    def _check_range(self, pixel_values: Tensor) -> None:
        """Looks at the first batch alone, as reading a number waits for the device, and never while tracing."""
        if torch.compiler.is_compiling() or self._range_is_checked or is_tracing(pixel_values):
            return
        pixels = pixel_values.detach()
        try:
            # The mean leaves room for noise and for the overshoot of resampling; other ranges are beyond it.
            is_far = bool((pixels - pixels.clamp(0, 1)).abs().mean() > 0.1)
        except RuntimeError:  # on the meta device and in torch.func.vmap, where a tensor has no values
            return
        if is_far:
            raise ValueError(
                f"pixel_values must be in [0, 1], got values from {pixels.min():.4g} to {pixels.max():.4g}. Use this "
                "model's image processor, which does not normalize, or rescale the images."
            )
        self._range_is_checked = True


def discretized_logistic_log_prob(pixel_values: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of 8-bit pixels under a logistic distribution cut into 256 bins.

    P(x) = sigmoid((x + 1/510 - mean) / scale) - sigmoid((x - 1/510 - mean) / scale), with the two outermost bins open
    to infinity, so that the 256 values sum to 1 (Salimans et al. 2017, https://arxiv.org/abs/1701.05517, eq. 2).

    Args:
        pixel_values: (batch, channels, height, width), multiples of 1/255 in [0, 1].
        mean: same shape, in units of the pixel range.
        log_scale: same shape, logarithm of the scale in those units; clamped to [-7, 7], beyond which all
            mass is in one bin, or in the two outermost ones.

    Returns:
        Same shape, nats per pixel.
    """
    inverse_scale = torch.exp(-log_scale.clamp(-7.0, 7.0))
    centered = pixel_values - mean
    upper, lower = inverse_scale * (centered + 1 / 510), inverse_scale * (centered - 1 / 510)
    # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), and u - l is known without
    # a subtraction: exact no matter how far in a tail the bin lies.
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-inverse_scale / 255))
    is_black, is_white = pixel_values < 0.5 / 255, pixel_values > 254.5 / 255
    return torch.where(is_black, F.logsigmoid(upper), torch.where(is_white, F.logsigmoid(-lower), inside))


def _append_labels(hidden_states: Tensor, labels: Tensor | None, num_labels: int) -> Tensor:
    """Concatenates one-hot labels along dimension 1, at every position of a feature map."""
    if labels is None:
        return hidden_states
    one_hot = F.one_hot(labels.to(hidden_states.device, torch.long), num_labels).to(hidden_states.dtype)
    one_hot = one_hot.view(*one_hot.shape, *[1] * (hidden_states.ndim - 2)).expand(-1, -1, *hidden_states.shape[2:])
    return torch.cat([hidden_states, one_hot], dim=1)


def _to_class_indices(labels: Labels, names: Any) -> Tensor:
    if isinstance(labels, Tensor) and (labels.device.type != "cpu" or labels.ndim > 1 or is_tracing(labels)):
        return labels  # to read its numbers would wait for the device
    values = _plain(labels)
    is_one = isinstance(values, str) or not hasattr(values, "__iter__")
    values = [values] if is_one else list(values)
    known = {name: index for index, name in names.items()} | {index: index for index in names}
    wrong = dict.fromkeys(repr(value) for value in values if isinstance(value, list) or value not in known)
    if wrong:
        classes = [f"{index} ({name})" for index, name in names.items()]
        raise ValueError(
            f"labels must be classes of the model, by number or name, got {', '.join(list(wrong)[:5])}. The "
            f"classes are {', '.join(classes[:20])}{f' and {len(classes) - 20} more' if len(classes) > 20 else ''}."
        )
    indices = torch.tensor([known[value] for value in values], dtype=torch.long)
    return indices[0] if is_one else indices


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Sums, exponentials and images are too coarse in the 16-bit types that networks may run in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _with_init_gain(layer: nn.Module, gain: float) -> nn.Module:
    """Sets the scale of a layer's initial weights. Marks the layer, not the block around it, because transformers
    calls `_init_weights` only for modules that have weights of their own."""
    layer.init_gain = gain  # type: ignore[assignment]
    return layer


def _init_with_gain(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
    """He et al. 2015: keeps the variance of activations through layers with rectifiers; biases 0."""
    gain: float = getattr(layer, "init_gain", math.sqrt(2.0))
    weight = layer.weight
    fan_in: float = weight[0].numel()
    if isinstance(layer, nn.ConvTranspose2d):
        # Each output pixel of a transposed convolution is reached by kernel / stride cells along each side.
        fan_in = weight.shape[0] * weight[0, 0].numel() / math.prod(layer.stride)
    init.normal_(weight, std=gain / math.sqrt(fan_in))
    if layer.bias is not None:
        init.zeros_(layer.bias)


def _randn(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Standard normal numbers, drawn on the generator's device and moved to `device`."""
    source = generator.device if generator is not None else device
    # Not torch.randn, which takes no batch of unknown size, as in exported graphs, along with a generator.
    return torch.empty(shape, device=source).normal_(generator=generator).to(device)


def _slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """Spherical interpolation of each image's latents; lengths are interpolated linearly."""
    shape, a, b = start.shape, start.flatten(1), end.flatten(1)
    length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    unit_a, unit_b = a / length_a.clamp(min=1e-12), b / length_b.clamp(min=1e-12)
    angle = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1).acos()
    # Where the directions are nearly equal or opposite, there is no unique arc: use the straight line.
    straight = torch.lerp(a, b, t)
    arc = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / torch.sin(angle).clamp(min=1e-12)
    arc = arc * torch.lerp(length_a, length_b, t)
    return torch.where(torch.sin(angle) < 1e-4, straight, arc).view(shape)


# With these, save_pretrained and push_to_hub copy this file next to the weights, even if it was itself loaded from the
# Hub.
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
