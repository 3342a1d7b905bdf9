"""The Generative Adversarial Network (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661) in the shape of DCGAN
(Radford et al. 2015, https://arxiv.org/abs/1511.06434).

Two networks play a game: the generator turns random latents into images, and the discriminator distinguishes them from
real ones. Each learns from the other; once the discriminator is right only half of the time, the game has converged.

A saved [`GANModel`] holds the moving average of the generator's weights, which draws better images than the last
step's, and the discriminator, so that training can continue. The files that this one imports from travel to the Hub
beside it: the losses (gan_losses.py), the networks of residual blocks (residual_gan.py), spectral normalization
(spectral_norm.py), and what models of images share (image_model.py).
"""

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .gan_losses import LOSS_TYPES

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
from .residual_gan import ResidualDiscriminator, ResidualGenerator
from .spectral_norm import SpectralConv2d, SpectralEmbedding, SpectralLinear, SpectralNorm, norm_of


# isort: split
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init


if TYPE_CHECKING:  # not needed here, but by pipelines: transformers copies what this file imports from along with it
    from .image_inputs import to_pil_image  # noqa: F401
    from .image_pipelines import ImagePipeline  # noqa: F401


ARCHITECTURES = ("residual", "dcgan")
GENERATOR_NORMS = ("batch", "none")
DISCRIMINATOR_NORMS = ("spectral", "batch", "none")
# What a config.json means that was written before it had these fields.
OLDEST_NETWORK = {"architecture": "dcgan", "loss_type": "hinge", "discriminator_norm": "spectral"}
# The smallest feature map of a residual network: its shorter side is at least this and below twice this, unless the
# image's size cannot be halved as often.
SMALLEST_SIDE = 4


@takes_plain_values
@strict
class GANConfig(LabeledConfig):
    """Shape and objective of a [`GANModel`].

    Args:
        image_size: height and width in pixels; one number means a square.
        num_channels: 1 for gray, 3 for RGB.
        architecture: "residual", residual blocks (after R3GAN, Huang et al. 2024), or "dcgan", strided convolutions
            (Radford et al. 2015).
        latent_dim: numbers in a latent vector.
        generator_channels: channels of the generator's feature maps, from the smallest map to the largest, each twice
            as high and wide as the one before; the image is twice as high and wide as the last. Default: as many maps
            as make the smallest one 4 to 7 pixels high or wide, or two for a DCGAN.
        discriminator_channels: channels of the discriminator's feature maps, from the largest to the smallest.
            Default: those of the generator in reverse.
        num_residual_blocks: residual blocks for each feature map of a residual network.
        loss_type: "relativistic" (Jolicoeur-Martineau 2018), "non_saturating" (Goodfellow et al. 2014), "hinge" (Lim
            & Ye 2017), or "wasserstein" (Arjovsky et al. 2017).
        gradient_penalty_weight: weight of the penalty on the discriminator's gradient: with the Wasserstein loss, on
            its norm's distance from 1 between real and generated images (Gulrajani et al. 2017); with the others, half
            the weight on its square at real and at generated images, R1 + R2 (Mescheder et al. 2018), which falls to
            a tenth over the run. Default: 10 for the Wasserstein loss, 1 for the relativistic one, and 0 for others.
        generator_norm: of a residual generator: "batch", with which it learns in minutes, or "none", as in R3GAN. A
            DCGAN has batch normalization.
        discriminator_norm: of a DCGAN: "spectral" (Miyato et al. 2018), "batch" (Radford et al. 2015), or "none".
            Default: "spectral" for a DCGAN. A residual network has none.
        num_labels: number of classes of a conditional model, 0 for an unconditional one. Not a field, but derived from
            `id2label`, as everywhere in transformers.

    Raises:
        StrictDataclassError: a value has the wrong type or is out of range, or the stages do not divide image_size.
    """

    model_type = "hfgen_gan"
    tasks = ("unconditional-image-generation",)

    image_size: ImageSize = 28
    num_channels: int = 1
    architecture: str = "residual"
    latent_dim: int = 64
    generator_channels: Channels = None
    discriminator_channels: Channels = None
    num_residual_blocks: int = 1
    loss_type: str = "relativistic"
    gradient_penalty_weight: float | int | None = None
    generator_norm: str = "batch"
    discriminator_norm: str | None = None

    def __post_init__(self, **kwargs):
        if self.generator_channels is None:
            self.generator_channels = [128, 64] if self.architecture == "dcgan" else self._default_channels()
        if self.discriminator_channels is None:
            self.discriminator_channels = self.generator_channels[::-1]
        if self.gradient_penalty_weight is None:
            self.gradient_penalty_weight = {"wasserstein": 10.0, "relativistic": 1.0}.get(self.loss_type, 0.0)
        if self.discriminator_norm is None:
            self.discriminator_norm = "spectral" if self.architecture == "dcgan" else "none"
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config that a config.json describes. One that is too old to have an architecture has a DCGAN's, and the
        penalty that it names belonged to the Wasserstein loss alone."""
        if "architecture" not in config_dict and "model_type" in config_dict:
            config_dict = {**OLDEST_NETWORK, **config_dict}
            if config_dict["loss_type"] != "wasserstein":
                config_dict["gradient_penalty_weight"] = 0.0
        return super().from_dict(config_dict, **kwargs)

    def _default_channels(self) -> list[int]:
        """64 channels for the largest map, and 128 for each further halving that the image's size allows."""
        if not isinstance(self.image_size, list) or len(self.image_size) != 2:
            return [64]  # whatever else it is, it is refused later
        maps, (height, width) = 1, (side // 2 for side in self.image_size)
        while not height % 2 and not width % 2 and min(height, width) // 2 >= SMALLEST_SIDE and maps < 5:
            maps, height, width = maps + 1, height // 2, width // 2
        return [*[128] * (maps - 1), 64]

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
        for name in ("num_channels", "latent_dim", "num_residual_blocks"):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be at least 1, got {getattr(self, name)}")
        penalty_weight = self.gradient_penalty_weight or 0.0
        if not (math.isfinite(penalty_weight) and penalty_weight >= 0):
            problems.append(f"gradient_penalty_weight must be a finite number of at least 0, got {penalty_weight}")
        problems += choice_problems(
            self,
            architecture=ARCHITECTURES,
            loss_type=LOSS_TYPES,
            generator_norm=GENERATOR_NORMS,
            discriminator_norm=DISCRIMINATOR_NORMS,
        )
        if self.architecture == "dcgan" and self.generator_norm == "none":
            problems.append(
                'generator_norm must be "batch" with architecture "dcgan", whose generator has no other, got "none". '
                'Leave it out, or use architecture "residual"'
            )
        if self.architecture == "residual" and self.discriminator_norm in ("spectral", "batch"):
            problems.append(
                f'discriminator_norm must be "none" with architecture "residual", got "{self.discriminator_norm}": '
                'residual networks need no normalization. Leave it out, or use architecture "dcgan"'
            )
        if penalty_weight and self.discriminator_norm == "batch":
            problems.append(
                "a gradient_penalty_weight penalizes the gradient of each image by itself, and discriminator_norm "
                '"batch" makes images depend on each other: use "none" or "spectral", or set the weight to 0'
            )
        if problems:
            raise ValueError("GANConfig: " + "; ".join(problems) + ".")


class DiscriminatorBlock(nn.Module):
    """A strided convolution, the configured normalization, and a leaky rectifier."""

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__()
        conv_class = SpectralConv2d if norm == "spectral" else nn.Conv2d
        self.conv = conv_class(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.weight_norm = norm_of(self.conv)
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
        norm = config.discriminator_norm or "none"
        self.blocks = nn.ModuleList(
            # DCGAN: no batch normalization at the discriminator's input, which would hide the images' own statistics.
            DiscriminatorBlock(narrow, wide, norm if i > 0 or norm == "spectral" else "none")
            for i, (narrow, wide) in enumerate(zip(channels, channels[1:]))
        )
        height, width = config.feature_size(len(config.discriminator_channels))
        features = channels[-1] * height * width
        is_spectral = norm == "spectral"
        self.head = (SpectralLinear if is_spectral else nn.Linear)(features, 1)
        self.head_norm = norm_of(self.head)
        if config.num_labels:
            self.label_embedding = (SpectralEmbedding if is_spectral else nn.Embedding)(config.num_labels, features)
            self.label_norm = norm_of(self.label_embedding)

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
        is_residual = config.architecture == "residual"
        self.generator = (ResidualGenerator if is_residual else GANGenerator)(config)
        self.discriminator = (ResidualDiscriminator if is_residual else GANDiscriminator)(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        # DCGAN section 4: every weight from a normal distribution with standard deviation 0.02, batch scales around 1.
        std = 0.02 if self.config.architecture == "dcgan" else 0.0
        if isinstance(module, nn.BatchNorm2d):
            init.normal_(module.weight, mean=1.0, std=std)
            init.zeros_(module.bias)
            for name, start in (("running_mean", 0.0), ("running_var", 1.0), ("num_batches_tracked", 0)):
                init.constant_(module.get_buffer(name), start)
        elif self.config.architecture == "residual":
            super()._init_weights(module)
        elif isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)):
            init.normal_(module.weight, std=std)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                init.zeros_(module.bias)
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


# With these, save_pretrained and push_to_hub copy this file, and those that it imports from, next to the weights, even
# if it was itself loaded from the Hub.
GANConfig.register_for_auto_class("AutoConfig")
GANModel.register_for_auto_class("AutoModel")

__all__ = [
    "GANConfig",
    "GANDiscriminator",
    "GANGenerator",
    "GANModel",
]
