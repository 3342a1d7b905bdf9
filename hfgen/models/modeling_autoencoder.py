"""The convolutional Auto-Encoder.

An encoder compresses an image to a few numbers, the latents Z, with convolutions that halve height and width; a
mirror-image decoder reconstructs it with transposed convolutions. What does not fit through the bottleneck is lost, so
the network learns what the images have in common (Hinton & Salakhutdinov 2006; with convolutions, Masci et al. 2011).

A convolution with stride s maps n inputs to floor((n + 2 padding - kernel) / s) + 1 outputs; a transposed convolution
does the opposite:

    n_out = (n_in - 1) stride - 2 padding + kernel + output_padding

Inside the network, a pixel is its difference from the mean image of the data, in units of the standard deviation of
these differences. An untrained decoder is close to 0 there, so training starts at the mean image and not at noise.

What this model shares with other models of images is in image_model.py, which travels to the Hub beside this file.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

# First, because it says what to do where transformers is too old for the imports below.
from .image_model import (
    Channels,
    ImageModel,
    ImageSize,
    ResidualBlock,
    StagedConfig,
    TransposedConv2d,
    at_least_float32,
    default_channels,
    evaluates_without_labels,
    pixel_moments,
    staged_problems,
    takes_plain_values,
    with_init_gain,
)


# isort: split
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, can_return_tuple

from .anomaly import AnomalyDetector, AnomalyOutput


if TYPE_CHECKING:  # not needed here, but by pipelines: transformers copies what this file imports from along with it
    from .image_inputs import to_pil_image  # noqa: F401
    from .image_pipelines import ImagePipeline  # noqa: F401


LATENT_TYPES = ("vector", "spatial")
DOWNSAMPLING_TYPES = ("strided", "max_pool")
RECONSTRUCTION_LOSSES = ("mse", "l1")
# What a config.json means that was written before it had these fields.
OLDEST_NETWORK = {"downsampling_type": "max_pool", "num_residual_blocks": 0}
# Of pixels in [0, 1]: the step between 8-bit levels. Images that are all alike have no spread to divide by.
MIN_PIXEL_STD = 1 / 255


@takes_plain_values
@strict
class AutoencoderConfig(StagedConfig):
    """Shape and objective of an [`AutoencoderModel`].

    Args:
        image_size: height and width in pixels; one number means a square.
        num_channels: 1 for gray, 3 for RGB.
        hidden_channels: channels of each stage; every stage halves height and width. Default: [32, 64], and for vector
            latents of images of more than 32 pixels further stages of 128, down to 8 x 8 cells.
        downsampling_type: how they do: "strided", by convolutions with stride 2, or "max_pool", by 2 x 2 max pooling
            after convolutions with stride 1.
        num_residual_blocks: residual blocks of each stage, after its convolution and before its mirror image's.
        hidden_size: width of the fully connected layer on either side of vector latents.
        latent_dim: numbers in a vector latent, or channels of a spatial one.
        latent_type: "vector", latents (batch, latent_dim), or "spatial", latents (batch, latent_dim, h, w), where h
            and w are the image's height and width divided by 2 to the power of the number of stages.
        reconstruction_loss: "mse" or "l1", averaged over pixels.
        noise_std: standard deviation of the normal noise added to the input during training, in units of the pixel
            range; above 0, the model is a denoising auto-encoder (Vincent et al. 2010).
        erase_prob: probability that a rectangle of the input, a quarter to half as high and wide as the image, is
            black during training; above 0, the model learns to complete images from their other parts.
        affine_std: standard deviation of a random affine map that moves, turns, scales and slants the input during
            training; a shift is in units of half the image's side. Above 0, the model learns to draw the image as it
            was, so its latents say what is shown more than where: better neighbors, and less exact reconstructions.
        sparsity_weight: weight of the mean absolute latent in the loss; above 0, the model is a sparse auto-encoder.
        hidden_act: activation, by its name in transformers.
        anomaly_dim: directions in which the anomaly detector tells normal images apart, at most 8 for each cell of its
            maps; 0 for no detector: images are as strange as their reconstruction is wrong.
        anomaly_threshold: score above which an image is an anomaly; None if that was not measured.
        anomaly_map_threshold: value that the anomaly maps of normal images rarely exceed anywhere; None if that was
            not measured.

    Raises:
        StrictDataclassError: a value has the wrong type or is out of range, or the stages do not divide image_size.
    """

    model_type = "hfgen_autoencoder"
    tasks = ("image-to-image", "image-anomaly-detection")

    image_size: ImageSize = 28
    num_channels: int = 1
    hidden_channels: Channels = None
    downsampling_type: str = "strided"
    num_residual_blocks: int = 1
    hidden_size: int = 256
    latent_dim: int = 32
    latent_type: str = "vector"
    reconstruction_loss: str = "mse"
    noise_std: float | int = 0.0
    erase_prob: float | int = 0.0
    affine_std: float | int = 0.0
    sparsity_weight: float | int = 0.0
    hidden_act: str = "silu"
    anomaly_dim: int = 0
    anomaly_threshold: float | int | None = None
    anomaly_map_threshold: float | int | None = None

    def __post_init__(self, **kwargs):
        if self.hidden_channels is None:
            self.hidden_channels = default_channels(self.image_size) if self.latent_type == "vector" else [32, 64]
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config that a config.json describes. Fields that it is too old to have keep the network of then."""
        return super().from_dict({**OLDEST_NETWORK, **config_dict}, **kwargs)

    def validate_architecture(self):
        """Raises a ValueError that lists all problems at once."""
        choices = {
            "latent_type": LATENT_TYPES,
            "downsampling_type": DOWNSAMPLING_TYPES,
            "reconstruction_loss": RECONSTRUCTION_LOSSES,
        }
        problems = staged_problems(self, **choices)
        if self.num_residual_blocks < 0:
            problems.append(f"num_residual_blocks must be at least 0, got {self.num_residual_blocks}")
        for name in ("noise_std", "affine_std", "sparsity_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                problems.append(f"{name} must be a finite number of at least 0, got {getattr(self, name)}")
        if not 0 <= self.erase_prob <= 1:
            problems.append(f"erase_prob must be from 0 to 1, got {self.erase_prob}")
        if self.anomaly_dim < 0:
            problems.append(f"anomaly_dim must be at least 0, got {self.anomaly_dim}")
        for name in ("anomaly_threshold", "anomaly_map_threshold"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                problems.append(f"{name} must be a finite number or None, got {value}")
        if problems:
            raise ValueError("AutoencoderConfig: " + "; ".join(problems) + ".")


@dataclass
class AutoencoderOutput(ModelOutput):
    """What [`AutoencoderModel`] returns.

    Attributes:
        latents: (batch, *config.latent_shape). They come first, because what comes first is what transformers'
            image-feature-extraction pipeline returns.
        loss: reconstruction error, averaged over pixels and batch, plus the sparsity term.
        reconstruction: images (batch, channels, height, width); in [0, 1] in evaluation mode.
    """

    latents: Tensor | None = None
    loss: Tensor | None = None
    reconstruction: Tensor | None = None


def erase_rectangles(images: Tensor, erasing: Tensor, erase_prob: float) -> Tensor:
    """Makes a rectangle black in some images (random erasing, Zhong et al. 2017).

    Args:
        images: (batch, channels, height, width).
        erasing: uniform numbers in [0, 1), (batch, 5): whether an image has a rectangle, its height and width from a
            quarter to half of the image's, and how far down and to the right it is.
        erase_prob: share of images that have one, on average.
    """
    is_erased = (erasing[:, 0] < erase_prob).view(-1, 1, 1, 1)
    for size, place, dim in ((erasing[:, 1], erasing[:, 3], 2), (erasing[:, 2], erasing[:, 4], 3)):
        side = images.shape[dim]
        length = (1 + size) / 4 * side
        start = (place * (side - length))[:, None]
        pixels = torch.arange(side, device=images.device) + 0.5
        shape = [-1, 1, side, 1] if dim == 2 else [-1, 1, 1, side]
        is_erased = is_erased & ((pixels >= start) & (pixels < start + length[:, None])).view(shape)
    return images.masked_fill(is_erased, 0.0)


def distort(images: Tensor, moves: Tensor, affine_std: float) -> Tensor:
    """Moves, turns, scales and slants images, each by an affine map of its own around the image's center.

    Args:
        images: (batch, channels, height, width). Beyond its edges, an image repeats its border pixels.
        moves: standard normal numbers (batch, 2, 3), the differences from the identity in units of affine_std. The
            last column shifts, in units of half the width and height.
        affine_std: how far a map is from the identity.
    """
    maps = torch.eye(2, 3, device=images.device) + affine_std * moves.float()
    places = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), places, padding_mode="border", align_corners=False).to(images.dtype)


def residual_blocks(channels: int, config: AutoencoderConfig) -> nn.Sequential:
    """As many as a stage has; without any, the identity."""
    return nn.Sequential(*(ResidualBlock(channels, config.hidden_act) for _ in range(config.num_residual_blocks)))


class AutoencoderEncoder(nn.Module):
    """Standardized pixels -> latents: each stage is a convolution, residual blocks and an activation, and halves
    height and width."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        channels = [config.num_channels, *config.hidden_channels]
        is_strided = config.downsampling_type == "strided"
        kernel, stride = (4, 2) if is_strided else (3, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(narrow, wide, kernel, stride, padding=1) for narrow, wide in zip(channels, channels[1:])
        )
        self.pool = nn.Identity() if is_strided else nn.MaxPool2d(2)
        self.blocks = nn.ModuleList(residual_blocks(wide, config) for wide in config.hidden_channels)
        self.latent_type = config.latent_type
        self.hidden: nn.Module
        self.to_latents: nn.Module
        if self.latent_type == "vector":
            self.hidden = nn.Linear(channels[-1] * math.prod(config.feature_size), config.hidden_size)
            self.to_latents = nn.Linear(config.hidden_size, config.latent_dim)
        else:
            self.hidden = nn.Conv2d(channels[-1], channels[-1], kernel_size=3, padding=1)
            self.to_latents = nn.Conv2d(channels[-1], config.latent_dim, kernel_size=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        for conv, blocks in zip(self.convs, self.blocks):
            hidden_states = self.pool(self.act(blocks(conv(hidden_states))))
        if self.latent_type == "vector":
            hidden_states = hidden_states.flatten(1)
        return self.to_latents(self.act(self.hidden(hidden_states)))


class AutoencoderDecoder(nn.Module):
    """Latents -> standardized pixels: the encoder mirrored, with a transposed convolution of stride 2 per stage."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.latent_type = config.latent_type
        channels = [config.num_channels, *config.hidden_channels][::-1]
        self.feature_shape = (channels[0], *config.feature_size)
        self.from_latents: nn.Module
        self.hidden: nn.Module
        if self.latent_type == "vector":
            self.from_latents = nn.Linear(config.latent_dim, config.hidden_size)
            self.hidden = nn.Linear(config.hidden_size, math.prod(self.feature_shape))
        else:
            self.from_latents = nn.Conv2d(config.latent_dim, channels[0], kernel_size=3, padding=1)
            self.hidden = nn.Conv2d(channels[0], channels[0], kernel_size=3, padding=1)
        # Kernel 4, stride 2, padding 1: (n - 1) 2 - 2 + 4 = 2 n. An even kernel covers every output pixel equally
        # often; 3 x 3 would leave a checkerboard (Odena et al. 2016, https://distill.pub/2016/deconv-checkerboard).
        self.convs = nn.ModuleList(
            TransposedConv2d(wide, narrow, kernel_size=4, stride=2, padding=1)
            for wide, narrow in zip(channels, channels[1:])
        )
        with_init_gain(self.convs[-1], 0.1)  # near 0, which is the mean image
        self.blocks = nn.ModuleList(residual_blocks(wide, config) for wide in channels[:-1])

    def forward(self, latents: Tensor) -> Tensor:
        hidden_states = self.hidden(self.act(self.from_latents(latents)))
        if self.latent_type == "vector":
            hidden_states = hidden_states.unflatten(1, self.feature_shape)
        for blocks, conv in zip(self.blocks, self.convs):
            hidden_states = conv(self.act(blocks(hidden_states)))
        return hidden_states


class AutoencoderModel(ImageModel):
    """Convolutional Auto-Encoder for images in [0, 1]: a compressor, an embedding and an anomaly detector.

    >>> model = AutoencoderModel(AutoencoderConfig(image_size=28, latent_dim=32))
    >>> model.encode(torch.rand(16, 1, 28, 28)).shape
    torch.Size([16, 32])
    """

    config_class = AutoencoderConfig
    base_model_prefix = "autoencoder"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        self.encoder = AutoencoderEncoder(config)
        self.decoder = AutoencoderDecoder(config)
        # Spatial latents take images of any size, so their mean is a color and not an image.
        size = config.image_size if config.latent_type == "vector" else (1, 1)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.full((config.num_channels, *size), 0.5))
        self.register_buffer("pixel_std", torch.tensor(0.5))
        if all(getattr(config, name) == value for name, value in OLDEST_NETWORK.items()):
            # Such a model may have been saved before it had these, and was trained with the values above.
            self._keys_to_ignore_on_load_missing = ["^pixel_mean$", "^pixel_std$"]
        self.anomaly_detector: AnomalyDetector | None = None
        if config.anomaly_dim > 0:
            self.anomaly_detector = AnomalyDetector(config.image_size, config.num_channels, config.anomaly_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, AnomalyDetector):
            module.reset()
        elif isinstance(module, AutoencoderModel):
            init.constant_(module.pixel_mean, 0.5)
            init.constant_(module.pixel_std, 0.5)

    @torch.no_grad()
    def start_at(self, batches: Iterable[Tensor]) -> None:
        """Lets a model that is yet to be trained start at these images: what it draws is close to their mean, and what
        its networks see and give has the spread of the differences from it.

        With vector latents it is the mean image; with spatial ones, which know no positions, the mean color. Without
        this, the mean is mid-gray, and the standard deviation half of the range.

        Args:
            batches: images (batch, channels, height, width) in [0, 1], a few hundred in all.

        Raises:
            ValueError: there are no images, or they do not fit the configuration.
        """
        mean, mean_square = pixel_moments(self.check_images(pixel_values) for pixel_values in batches)
        if self.config.latent_type == "spatial":
            mean = mean.mean((1, 2), keepdim=True)
        self.pixel_mean.copy_(mean)
        self.pixel_std.copy_((mean_square - mean.square()).mean().clamp(min=MIN_PIXEL_STD**2).sqrt())

    @evaluates_without_labels
    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Any = None,
        noise: Tensor | None = None,
        erasing: Tensor | None = None,
        moves: Tensor | None = None,
        return_loss: bool = True,
    ) -> AutoencoderOutput:
        """Encodes and decodes images, and measures the reconstruction error.

        Args:
            pixel_values: (batch, channels, height, width) in [0, 1].
            labels: ignored, so that a labeled batch can be passed as it is.
            noise: standard normal numbers in the shape of pixel_values. A denoising model adds `noise_std` times them
                during training; drawn here if None.
            erasing: uniform numbers in [0, 1), (batch, 5), which say what `erase_rectangles` hides from a model with
                `erase_prob` during training; drawn here if None.
            moves: standard normal numbers (batch, 2, 3), by which `distort` moves the input of a model with
                `affine_std` during training; drawn here if None.
            return_loss: False leaves the loss out.

        Raises:
            ValueError: the images do not fit the configuration, or the first ones are far from [0, 1].
        """
        pixel_values = self.check_images(pixel_values)
        self.check_range(pixel_values)
        given = {"noise": noise, "erasing": erasing, "moves": moves}
        inputs = self._change(pixel_values, **given) if self.training else pixel_values
        latents = self.encode(inputs)
        reconstruction = self._images(self.decoder(latents))
        loss = self._loss(pixel_values, latents, reconstruction) if return_loss else None
        return AutoencoderOutput(latents=latents, loss=loss, reconstruction=reconstruction)

    def draw_changes(
        self, image_shape: tuple[int, ...], normal: Callable[..., Tensor], uniform: Callable[..., Tensor]
    ) -> dict[str, Tensor]:
        """Draws the numbers by which `forward` changes the inputs of this model during training: its arguments of the
        same names, as far as the configuration asks for them.

        Args:
            image_shape: (channels, height, width).
            normal, uniform: draw standard normal numbers, and uniform ones in [0, 1); given the shape of an image's
                numbers, they return (batch, *shape).
        """
        changes = {}
        if self.config.noise_std > 0:
            changes["noise"] = normal(*image_shape)
        if self.config.erase_prob > 0:
            changes["erasing"] = uniform(5)
        if self.config.affine_std > 0:
            changes["moves"] = normal(2, 3)
        return changes

    def _change(self, images: Tensor, **given: Tensor | None) -> Tensor:
        """What the encoder sees of images during training; numbers that are not given are drawn."""
        config, batch, device = self.config, len(images), images.device
        drawn = self.draw_changes(
            tuple(images.shape[1:]),
            normal=lambda *shape: torch.randn(batch, *shape, device=device),
            uniform=lambda *shape: torch.rand(batch, *shape, device=device),
        )
        numbers = drawn | {name: value for name, value in given.items() if value is not None and name in drawn}
        if "moves" in numbers:
            images = distort(images, numbers["moves"], config.affine_std)
        if "erasing" in numbers:
            images = erase_rectangles(images, numbers["erasing"], config.erase_prob)
        if "noise" in numbers:
            images = images + config.noise_std * numbers["noise"]
        return images

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Latents (batch, *config.latent_shape) of images (batch, channels, height, width) in [0, 1]; a gray model
        takes color too."""
        standardized = (self.check_images(pixel_values) - self.pixel_mean) / self.pixel_std
        return self.encoder(standardized.to(self.dtype))

    def decode(self, latents: Tensor) -> Tensor:
        """Images (batch, channels, height, width) in [0, 1] of latents (batch, *config.latent_shape)."""
        expected = self.config.latent_shape
        if latents.shape[1:] != expected:
            raise ValueError(
                f"latents must have the shape (batch, {', '.join(map(str, expected))}), got "
                f"{tuple(latents.shape)}. Use latents of this model."
            )
        return self._images(self.decoder(latents.to(self.dtype))).clamp(0, 1)

    @torch.no_grad()
    def fit_anomaly(self, batches: Iterable[Tensor]) -> None:
        """Fits the anomaly detector to normal images, after training and before saving. Without a detector, that is if
        `config.anomaly_dim` is 0, there is nothing to fit.

        Args:
            batches: of images (batch, channels, height, width) in [0, 1]: those of the training, for example. They are
                read once, in order, and the same images give the same detector.

        Raises:
            ValueError: there are fewer than two images, they do not fit the configuration, or all are the same.
        """
        if self.anomaly_detector is not None:
            images = (self.check_images(pixel_values) for pixel_values in batches)
            self.anomaly_detector.fit((batch, self.decode(self.encode(batch))) for batch in images)

    @torch.no_grad()
    def predict_anomaly(self, pixel_values: Tensor) -> AnomalyOutput:
        """How strange images are beside those of the training, and where.

        A fitted detector compares them with normal images, see [`AnomalyDetector`]. Without one, scores and maps are
        the squared reconstruction error.

        Args:
            pixel_values: (batch, channels, height, width) in [0, 1].

        Returns:
            `scores` (batch,), larger is stranger; `is_anomaly` (batch,), whether they are above
            `config.anomaly_threshold`, or None if that is None; `maps` (batch, height, width) of what adds to the
            scores.

        Raises:
            ValueError: the images do not fit the configuration.
        """
        pixel_values = self.check_images(pixel_values)
        reconstructions = self.decode(self.encode(pixel_values))
        if self.anomaly_detector is not None and self.anomaly_detector.is_fitted:
            scores, maps = self.anomaly_detector(pixel_values, reconstructions)
        else:
            maps = (reconstructions - pixel_values).square().mean(dim=1)
            scores = maps.flatten(1).mean(dim=1)
        threshold = self.config.anomaly_threshold
        return AnomalyOutput(scores=scores, is_anomaly=None if threshold is None else scores > threshold, maps=maps)

    def anomaly_score(self, pixel_values: Tensor) -> Tensor:
        """The scores of `predict_anomaly`, (batch,): images unlike the training data score higher."""
        return self.predict_anomaly(pixel_values)["scores"]

    def _loss(self, pixel_values: Tensor, latents: Tensor, reconstruction: Tensor) -> Tensor:
        measure = F.mse_loss if self.config.reconstruction_loss == "mse" else F.l1_loss
        loss = measure(reconstruction, pixel_values.to(reconstruction.dtype))
        if self.config.sparsity_weight > 0:
            loss = loss + self.config.sparsity_weight * at_least_float32(latents).abs().mean()
        return loss

    def _images(self, decoded: Tensor) -> Tensor:
        images = self.pixel_mean + self.pixel_std * at_least_float32(decoded)
        # The loss needs the unclamped output, as a clamped pixel has no gradient; callers get [0, 1].
        return images if self.training else images.clamp(0, 1)


# With these, save_pretrained and push_to_hub copy this file, and those that it imports from, next to the weights, even
# if it was itself loaded from the Hub.
AutoencoderConfig.register_for_auto_class("AutoConfig")
AutoencoderModel.register_for_auto_class("AutoModel")

__all__ = ["AnomalyOutput", "AutoencoderConfig", "AutoencoderModel", "AutoencoderOutput"]
