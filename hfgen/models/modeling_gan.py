"""The Generative Adversarial Network (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661) in the shape of DCGAN
(Radford et al. 2015, https://arxiv.org/abs/1511.06434).

Two networks play a game: the generator turns random latents into images, and the discriminator distinguishes them from
real ones. Each learns from the other; once the discriminator is right only half of the time, the game has converged.

A saved [`GANModel`] holds the moving average of the generator's weights, which draws better images than the last
step's, and the discriminator, so that training can continue. What this model shares with other models of images is in
image_model.py, which travels to the Hub beside this file.
"""

import math

import torch
import torch.nn.functional as F

# First, because it says what to do where transformers is too old for the imports below.
from .image_model import (
    Channels,
    ImageModel,
    ImageSize,
    LabeledConfig,
    Labels,
    append_labels,
    at_least_float32,
    choice_problems,
    dtype_of,
    randn,
    takes_plain_values,
)


# isort: split
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init


LOSS_TYPES = ("non_saturating", "hinge", "wasserstein")
DISCRIMINATOR_NORMS = ("spectral", "batch", "none")


@takes_plain_values
@strict
class GANConfig(LabeledConfig):
    """Shape and objective of a [`GANModel`].

    Args:
        image_size: height and width in pixels; one number means a square.
        num_channels: 1 for gray, 3 for RGB.
        latent_dim: numbers in a latent vector.
        generator_channels: channels of each of the generator's stages, from the smallest feature map to the largest;
            every stage doubles height and width.
        discriminator_channels: channels of each of the discriminator's stages, from the largest feature map to the
            smallest; every stage halves height and width.
        loss_type: "non_saturating" (Goodfellow et al. 2014), "hinge" (Lim & Ye 2017), or "wasserstein" with gradient
            penalty (Gulrajani et al. 2017).
        gradient_penalty_weight: weight of the Wasserstein loss's gradient penalty.
        discriminator_norm: "spectral" (Miyato et al. 2018), "batch" (as in DCGAN), or "none".
        num_labels: number of classes of a conditional model, 0 for an unconditional one. Not a field, but derived from
            `id2label`, as everywhere in transformers.

    Raises:
        StrictDataclassError: a value has the wrong type or is out of range, or the stages do not divide image_size.
    """

    model_type = "hfgen_gan"

    image_size: ImageSize = 28
    num_channels: int = 1
    latent_dim: int = 64
    generator_channels: Channels = None
    discriminator_channels: Channels = None
    loss_type: str = "hinge"
    gradient_penalty_weight: float | int = 10.0
    discriminator_norm: str = "spectral"

    def __post_init__(self, **kwargs):
        if self.generator_channels is None:
            self.generator_channels = [128, 64]
        if self.discriminator_channels is None:
            self.discriminator_channels = self.generator_channels[::-1]
        super().__post_init__(**kwargs)

    def feature_size(self, stages: int) -> tuple[int, int]:
        """Height and width of the smallest feature map of a network with this many stages."""
        height, width = self.image_size
        return height // 2**stages, width // 2**stages

    def validate_architecture(self):
        """Raises a ValueError that lists all problems at once."""
        problems = []
        for name in ("generator_channels", "discriminator_channels"):
            channels = getattr(self, name)
            if not channels or min(channels) < 1:
                problems.append(f"{name} must be a non-empty list of positive numbers, got {channels}")
            elif len(self.image_size) == 2 and any(side % 2 ** len(channels) for side in self.image_size):
                problems.append(
                    f"image_size {self.image_size} must be divisible by {2 ** len(channels)}, as each of the "
                    f"{len(channels)} stages in {name} changes it by a factor of 2; "
                    "resize the images or use fewer stages"
                )
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            problems.append(f"image_size must be one or two positive numbers (height, width), got {self.image_size}")
        for name in ("num_channels", "latent_dim"):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.gradient_penalty_weight) and self.gradient_penalty_weight >= 0):
            problems.append(
                f"gradient_penalty_weight must be a finite number of at least 0, got {self.gradient_penalty_weight}"
            )
        problems += choice_problems(self, loss_type=LOSS_TYPES, discriminator_norm=DISCRIMINATOR_NORMS)
        if self.loss_type == "wasserstein" and self.discriminator_norm == "batch":
            problems.append(
                'loss_type "wasserstein" penalizes the gradient of each image by itself, and discriminator_norm '
                '"batch" makes images depend on each other: use "none" or "spectral"'
            )
        if problems:
            raise ValueError("GANConfig: " + "; ".join(problems) + ".")


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value, which bounds how far the layer can stretch its input (Miyato et
    al. 2018, https://arxiv.org/abs/1802.05957). A convolution's weight is read as a matrix (out, in * height * width).

    One step of power iteration per training call tracks the singular value. Being a module of its own next to the
    layer, it leaves the layer's weight an ordinary parameter, which loads and saves under its ordinary name. The layer
    holds it in a tuple, unregistered, and applies it itself, so that an adapter can be wrapped around the layer.
    """

    left: Tensor

    def __init__(self, rows: int):
        super().__init__()
        self.register_buffer("left", torch.full((rows,), rows**-0.5))

    def forward(self, weight: Tensor) -> Tensor:
        # In float32, even under autocast and in a 16-bit model: an error in sigma scales the whole layer.
        with torch.autocast("cpu" if weight.is_meta else weight.device.type, enabled=False):
            matrix = at_least_float32(weight).flatten(1)
            with torch.no_grad():
                right = F.normalize(matrix.T @ self.left.to(matrix.dtype), dim=0)
                left = F.normalize(matrix @ right, dim=0)
                if self.training:
                    self.left.copy_(left)
            # The gradient flows only here: d sigma / d weight = left right^T.
            sigma = torch.dot(left, matrix @ right)
        return weight / sigma.clamp(min=1e-12)


class SpectralConv2d(nn.Conv2d):
    """A convolution that normalizes its weight. Without a norm, as PEFT makes some for adapters, it is ordinary."""

    norm: tuple[SpectralNorm, ...] = ()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self._conv_forward(hidden_states, _normalized_weight(self), self.bias)


class SpectralLinear(nn.Linear):
    """A fully connected layer that normalizes its weight."""

    norm: tuple[SpectralNorm, ...] = ()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.linear(hidden_states, _normalized_weight(self), self.bias)


class SpectralEmbedding(nn.Embedding):
    """An embedding that normalizes its weight."""

    norm: tuple[SpectralNorm, ...] = ()

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels, _normalized_weight(self))


class DiscriminatorBlock(nn.Module):
    """A strided convolution, the configured normalization, and a leaky rectifier."""

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__()
        conv_class = SpectralConv2d if norm == "spectral" else nn.Conv2d
        self.conv = conv_class(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.weight_norm = _norm_of(self.conv)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels) if norm == "batch" else nn.Identity()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(hidden_states)), 0.2)


class GANDiscriminator(nn.Module):
    """Images in [0, 1] -> logits (batch,), larger for images that look real.

    A conditional discriminator adds the projection of the features on the label's embedding (Miyato & Koyama 2018).
    """

    def __init__(self, config: GANConfig):
        super().__init__()
        channels = [config.num_channels, *config.discriminator_channels]
        norm = config.discriminator_norm
        self.blocks = nn.ModuleList(
            # DCGAN: no batch normalization at the discriminator's input, which would hide the images' own statistics.
            DiscriminatorBlock(narrow, wide, norm if i > 0 or norm == "spectral" else "none")
            for i, (narrow, wide) in enumerate(zip(channels, channels[1:]))
        )
        height, width = config.feature_size(len(config.discriminator_channels))
        features = channels[-1] * height * width
        is_spectral = norm == "spectral"
        self.head = (SpectralLinear if is_spectral else nn.Linear)(features, 1)
        self.head_norm = _norm_of(self.head)
        if config.num_labels:
            self.label_embedding = (SpectralEmbedding if is_spectral else nn.Embedding)(config.num_labels, features)
            self.label_norm = _norm_of(self.label_embedding)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Tensor:
        hidden_states = (2 * pixel_values - 1).to(dtype_of(self))
        for block in self.blocks:
            hidden_states = block(hidden_states)
        hidden_states = hidden_states.flatten(1)
        logits = self.head(hidden_states).squeeze(1)
        if labels is not None:
            embeddings = self.label_embedding(labels.to(logits.device, torch.long))
            logits = logits + (embeddings * hidden_states).sum(1)
        return at_least_float32(logits)


class GANGenerator(nn.Module):
    """Latents (batch, latent_dim) -> images in [0, 1]: transposed convolutions, batch normalization and rectifiers."""

    def __init__(self, config: GANConfig):
        super().__init__()
        channels = config.generator_channels
        self.num_labels = config.num_labels or 0
        self.feature_shape = (channels[0], *config.feature_size(len(channels)))
        self.from_latents = nn.Linear(config.latent_dim + self.num_labels, math.prod(self.feature_shape), bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in channels)
        # No bias where batch normalization follows, which would subtract it.
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, kernel_size=4, stride=2, padding=1, bias=False)
            for wide, narrow in zip(channels, channels[1:])
        )
        self.to_pixels = nn.ConvTranspose2d(channels[-1], config.num_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        latents = append_labels(latents.to(dtype_of(self)), labels, self.num_labels)
        hidden_states = self.from_latents(latents).unflatten(1, self.feature_shape)
        for norm, conv in zip(self.norms, [*self.convs, self.to_pixels]):
            hidden_states = conv(F.relu(norm(hidden_states)))
        return (at_least_float32(hidden_states).tanh() + 1) / 2


class GANModel(ImageModel):
    """Generative Adversarial Network for images in [0, 1].

    >>> model = GANModel(GANConfig(image_size=28, num_labels=10))
    >>> model.sample(20, labels=torch.arange(20) % 10).shape
    torch.Size([20, 1, 28, 28])
    """

    config_class = GANConfig
    base_model_prefix = "gan"
    main_input_name = "latents"

    def __init__(self, config: GANConfig):
        super().__init__(config)
        self.generator = GANGenerator(config)
        self.discriminator = GANDiscriminator(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        # DCGAN section 4: every weight from a normal distribution with standard deviation 0.02, batch scales around 1.
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)):
            init.normal_(module.weight, std=0.02)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.normal_(module.weight, mean=1.0, std=0.02)
            init.zeros_(module.bias)
            for name, start in (("running_mean", 0.0), ("running_var", 1.0), ("num_batches_tracked", 0)):
                init.constant_(module.get_buffer(name), start)
        elif isinstance(module, SpectralNorm):
            # Any start works for power iteration, as long as it is not orthogonal to the answer.
            init.copy_(module.left, F.normalize(torch.randn_like(module.left), dim=0))

    def forward(self, latents: Tensor, labels: Labels = None) -> Tensor:
        """Images (batch, channels, height, width) in [0, 1] from latents.

        Args:
            latents: (batch, latent_dim), standard normal.
            labels: classes as in `sample`; required by a conditional model, and only by one.

        Raises:
            ValueError: latents or labels do not fit the configuration.
        """
        if latents.ndim != 2 or latents.shape[1] != self.config.latent_dim:
            raise ValueError(
                f"latents must have the shape (batch, {self.config.latent_dim}), got {tuple(latents.shape)}. Draw "
                "them from the standard normal distribution."
            )
        return self.generator(latents, self.class_indices(labels, latents.shape[0]))

    def discriminate(self, pixel_values: Tensor, labels: Labels = None) -> Tensor:
        """Logits (batch,) of images (batch, channels, height, width) in [0, 1]; above 0, an image looks real.

        With the Wasserstein loss they are scores, and only differences between scores are meaningful.
        """
        pixel_values = self.check_images(pixel_values)
        return self.discriminator(pixel_values, self.class_indices(labels, pixel_values.shape[0]))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        labels: Labels = None,
        truncation: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws n images.

        Args:
            n: number of images.
            labels: classes of a conditional model, numbers or names: one for all images, or (n,) in a tensor, array or
                list. Spread evenly over the classes if None.
            truncation: factor on the latents' standard deviation; below 1, images are more typical and less varied.
            generator: source of the random numbers; a CPU generator gives the same latents on every device.

        Returns:
            (n, channels, height, width) in [0, 1].
        """
        latents = truncation * randn((n, self.config.latent_dim), generator, self.device)
        if labels is None and self.config.num_labels:
            labels = torch.arange(n) % self.config.num_labels
        return self(latents, labels)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, loss_type: str) -> Tensor:
    """The discriminator's loss, averaged over the batch, without the gradient penalty.

    Args:
        real_logits, fake_logits: (batch,) logits of real and of generated images.
        loss_type: "non_saturating": -log D(x) - log(1 - D(G(z))); "hinge": max(0, 1 - real) + max(0, 1 + fake);
            "wasserstein": fake - real.

    Raises:
        ValueError: there is no such loss.
    """
    if loss_type == "non_saturating":
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
    if loss_type == "hinge":
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
    if loss_type == "wasserstein":
        return fake_logits.mean() - real_logits.mean()
    raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}. See GANConfig.")


def generator_loss(fake_logits: Tensor, loss_type: str) -> Tensor:
    """The generator's loss, averaged over the batch.

    Args:
        fake_logits: (batch,) logits of generated images.
        loss_type: "non_saturating": -log D(G(z)); "hinge" and "wasserstein": -fake.

    Raises:
        ValueError: there is no such loss.
    """
    if loss_type == "non_saturating":
        return F.softplus(-fake_logits).mean()
    if loss_type in ("hinge", "wasserstein"):
        return -fake_logits.mean()
    raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}. See GANConfig.")


def gradient_penalty(
    discriminator: nn.Module, real: Tensor, fake: Tensor, labels: Tensor | None, mix: Tensor
) -> Tensor:
    """E[(|grad D(x_mix)| - 1)^2] between real and generated images (Gulrajani et al. 2017,
    https://arxiv.org/abs/1704.00028); for the discriminator, so no gradient reaches the generator.

    Args:
        discriminator: maps images and labels to logits (batch,).
        real, fake: (batch, channels, height, width) in [0, 1].
        labels: (batch,) class indices, or None.
        mix: (batch,) uniform random numbers: 0 takes the real image, 1 the generated one.
    """
    real, fake = at_least_float32(real.detach()), at_least_float32(fake.detach())
    images = torch.lerp(real, fake, mix.to(real.dtype).view(-1, 1, 1, 1)).requires_grad_()
    # Second derivatives in 16 bits are mostly noise.
    with torch.autocast(images.device.type, enabled=False):
        logits = discriminator(images, labels)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    # The networks see pixels in [-1, 1]; the gradient in that scale is half of that in [0, 1].
    return ((gradient / 2).flatten(1).norm(dim=1) - 1).square().mean()


def _normalized_weight(layer: SpectralConv2d | SpectralLinear | SpectralEmbedding) -> Tensor:
    weight: Tensor = layer.weight
    for norm in layer.norm:
        weight = norm(weight)
    return weight


def _norm_of(layer: nn.Module) -> nn.Module:
    """The spectral norm of a layer that applies one, to be registered by the module that the layer is in."""
    if not isinstance(layer, (SpectralConv2d, SpectralLinear, SpectralEmbedding)):
        return nn.Identity()
    norm = SpectralNorm(len(layer.weight))
    layer.norm = (norm,)
    return norm


# With these, save_pretrained and push_to_hub copy this file, and those that it imports from, next to the weights, even
# if it was itself loaded from the Hub.
GANConfig.register_for_auto_class("AutoConfig")
GANModel.register_for_auto_class("AutoModel")

__all__ = [
    "GANConfig",
    "GANDiscriminator",
    "GANGenerator",
    "GANModel",
    "discriminator_loss",
    "generator_loss",
    "gradient_penalty",
]
