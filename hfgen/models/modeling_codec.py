"""A learned codec for images of any size (Ballé et al. 2017, https://arxiv.org/abs/1611.01704).

An encoder computes latents, which are scaled and rounded to integers, the symbols; a decoder computes an image from
them. Both are trained for the sum of what a file costs and of what the image loses,

    bits per pixel + weight * mean squared error

where a prior, a distribution over the values of each channel, says how many bits a symbol costs. One model serves a
range of qualities: each weight of the error has its own scale of every channel (gain), interpolated between a few
learned ones (Cui et al. 2021, https://arxiv.org/abs/2003.02012). Rounding has no gradient, so the rate is that of
latents with uniform noise, and the error that of rounded ones, whose gradient passes as if they had not been rounded.

For files, the prior is replaced by tables of integers that are counted on images after training and stored with the
weights. What a symbol's table is depends on symbols around it that are decoded already, by integer arithmetic only. So
symbols are decoded exactly on every machine; pixels are computed from them, and may differ by 1 of 255.

What this model shares with other models of images is in image_model.py, which travels to the Hub beside this file.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

# First, because it says what to do where transformers is too old for the imports below.
from .image_model import (
    Channels,
    ImageConfig,
    ImageModel,
    ImageSize,
    TransposedConv2d,
    at_least_float32,
    choice_problems,
    evaluates_without_labels,
    takes_plain_values,
    with_init_gain,
)
from .symbol_prior import LevelParameters, MixturePrior
from .symbol_tables import NUM_CONTEXTS, PRECISION, count_entries, flat_entries, to_frequencies


# isort: split
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, can_return_tuple


if TYPE_CHECKING:  # not needed here, but by pipelines: transformers copies what this file imports from along with it
    from .image_inputs import to_pil_image  # noqa: F401
    from .image_pipelines import ImagePipeline  # noqa: F401


LARGEST_SYMBOL = 2**15 - 1


@takes_plain_values
@strict
class CodecConfig(ImageConfig):
    """Shape and objective of a [`CodecModel`].

    Args:
        image_size: height and width of the training images in pixels; one number means a square. The model takes
            images of any size.
        num_channels: 1 for gray, 3 for RGB.
        hidden_channels: channels of each stage; every stage halves height and width.
        num_residual_blocks: residual blocks behind the last stage of the encoder, and before that of the decoder.
        latent_dim: channels of the latents.
        num_levels: qualities that have tables, evenly spaced from 0 to 1.
        min_distortion_weight: bits per pixel that a mean squared error of 1 (pixels in [0, 1]) weighs at quality 0.
        max_distortion_weight: the same at quality 1; in between, the logarithm changes linearly.
        max_symbol: the largest magnitude that a table has an entry for. Larger symbols are possible, and cost more.
        hidden_act: activation, by its name in transformers.

    Raises:
        StrictDataclassError: a value has the wrong type or is out of range.
    """

    model_type = "hfgen_codec"
    tasks = ("image-to-image",)

    image_size: ImageSize = 32
    num_channels: int = 3
    hidden_channels: Channels = None
    num_residual_blocks: int = 2
    latent_dim: int = 32
    num_levels: int = 11
    min_distortion_weight: float | int = 20.0
    max_distortion_weight: float | int = 2000.0
    max_symbol: int = 31
    hidden_act: str = "silu"

    def __post_init__(self, **kwargs):
        if self.hidden_channels is None:
            self.hidden_channels = [32, 96]
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Raises a ValueError that lists all problems at once."""
        problems = choice_problems(self)
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            problems.append(f"image_size must be one or two positive numbers (height, width), got {self.image_size}")
        if not self.hidden_channels or min(self.hidden_channels) < 1:
            problems.append(
                f"hidden_channels must be a non-empty list of positive numbers, got {self.hidden_channels}"
            )
        for name, least in {"num_channels": 1, "num_residual_blocks": 0, "latent_dim": 1, "num_levels": 2}.items():
            if getattr(self, name) < least:
                problems.append(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 1 <= self.max_symbol <= 1023:
            problems.append(f"max_symbol must be from 1 to 1023, got {self.max_symbol}")
        low, high = self.min_distortion_weight, self.max_distortion_weight
        if not 0 < low < high < math.inf:
            problems.append(
                f"min_distortion_weight must be above 0 and below max_distortion_weight, got {low}, {high}"
            )
        if problems:
            raise ValueError("CodecConfig: " + "; ".join(problems) + ".")

    @property
    def downsampling(self) -> int:
        """Pixels per cell of the latents, along one side."""
        return 2 ** len(self.hidden_channels)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latents of one training image, without the batch."""
        return (self.latent_dim, *(-(-side // self.downsampling) for side in self.image_size))


@dataclass
class CodecOutput(ModelOutput):
    """What [`CodecModel`] returns.

    Attributes:
        latents: (batch, latent_dim, h, w), rounded and scaled back. They come first, because what comes first is what
            transformers' image-feature-extraction pipeline returns.
        loss: bits per pixel plus the weighted error, averaged over the batch.
        rate: bits per pixel of each image, (batch,), as the prior estimates them.
        mse: mean squared error of each image, (batch,).
        reconstruction: images (batch, channels, height, width); in [0, 1] in evaluation mode.
    """

    latents: Tensor | None = None
    loss: Tensor | None = None
    rate: Tensor | None = None
    mse: Tensor | None = None
    reconstruction: Tensor | None = None


class LevelAffine(nn.Module):
    """Scales and shifts channels as the quality asks for."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale, self.shift = LevelParameters(channels), LevelParameters(channels)

    def forward(self, hidden_states: Tensor, quality: Tensor) -> Tensor:
        scale, shift = (table(quality)[:, :, None, None].to(hidden_states.dtype) for table in (self.scale, self.shift))
        return hidden_states * (1 + scale) + shift


class ResidualBlock(nn.Module):
    """Adds what two convolutions make of the features."""

    def __init__(self, channels: int, hidden_act: str):
        super().__init__()
        self.act = ACT2FN[hidden_act]
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.output = with_init_gain(nn.Conv2d(channels, channels, kernel_size=3, padding=1), 0.3)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.output(self.act(self.conv(self.act(hidden_states))))


class CodecEncoder(nn.Module):
    """Pixels in [-1, 1] -> latents: convolutions of stride 2, then residual blocks."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        channels = [config.num_channels, *config.hidden_channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(narrow, wide, kernel_size=4, stride=2, padding=1) for narrow, wide in zip(channels, channels[1:])
        )
        self.blocks = nn.ModuleList(
            ResidualBlock(channels[-1], config.hidden_act) for _ in range(config.num_residual_blocks)
        )
        self.affine = LevelAffine(channels[-1])
        self.to_latents = with_init_gain(nn.Conv2d(channels[-1], config.latent_dim, kernel_size=3, padding=1), 1.0)

    def forward(self, hidden_states: Tensor, quality: Tensor) -> Tensor:
        for index, conv in enumerate(self.convs):
            hidden_states = conv(self.act(hidden_states) if index else hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.to_latents(self.act(self.affine(hidden_states, quality)))


class CodecDecoder(nn.Module):
    """Latents -> pixels in [-1, 1]: the encoder mirrored, with transposed convolutions."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        channels = [config.num_channels, *config.hidden_channels][::-1]
        self.from_latents = nn.Conv2d(config.latent_dim, channels[0], kernel_size=3, padding=1)
        self.affine = LevelAffine(channels[0])
        self.blocks = nn.ModuleList(
            ResidualBlock(channels[0], config.hidden_act) for _ in range(config.num_residual_blocks)
        )
        self.convs = nn.ModuleList(
            TransposedConv2d(wide, narrow, kernel_size=4, stride=2, padding=1)
            for wide, narrow in zip(channels, channels[1:])
        )
        with_init_gain(self.convs[-1], 0.3)

    def forward(self, latents: Tensor, quality: Tensor) -> Tensor:
        hidden_states = self.affine(self.from_latents(latents), quality)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        for conv in self.convs:
            hidden_states = conv(self.act(hidden_states))
        return hidden_states


class CodecModel(ImageModel):
    """A codec for images in [0, 1] of any size.

    >>> model = CodecModel(CodecConfig(num_channels=1))
    >>> symbols = model.encode_symbols(torch.rand(1, 1, 50, 70), quality=0.5)
    >>> symbols.shape
    torch.Size([1, 32, 13, 18])
    >>> model.decode_symbols(symbols, quality=0.5, size=(50, 70)).shape
    torch.Size([1, 1, 50, 70])
    """

    config_class = CodecConfig
    base_model_prefix = "codec"
    main_input_name = "pixel_values"
    input_modalities = "image"
    takes_any_size = True
    tables: Tensor

    def __init__(self, config: CodecConfig):
        super().__init__(config)
        self.encoder = CodecEncoder(config)
        self.decoder = CodecDecoder(config)
        self.prior = MixturePrior(config.latent_dim)
        # The step between two values of a latent is best in proportion to the root of the weight.
        half_range = math.log(config.max_distortion_weight / config.min_distortion_weight) / 4
        self.log_gains = LevelParameters(config.latent_dim, first=-half_range, last=half_range)
        self.log_steps = LevelParameters(config.latent_dim, first=half_range, last=-half_range)
        shape = (config.num_levels, config.latent_dim, NUM_CONTEXTS, 2 * config.max_symbol + 2)
        self.register_buffer("tables", torch.zeros(shape, dtype=torch.int32))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, LevelParameters):
            init.copy_(module.weight, module.initial_weight())
        elif module is self:
            init.zeros_(self.tables)

    @evaluates_without_labels
    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Any = None,
        quality: Tensor | float | None = None,
        noise: Tensor | None = None,
        return_loss: bool = True,
    ) -> CodecOutput:
        """Encodes and decodes images, and measures rate and error.

        Args:
            pixel_values: (batch, channels, height, width) in [0, 1], of any size.
            labels: ignored, so that a labeled batch can be passed as it is.
            quality: in [0, 1], for all images or for each, (batch,). None: random ones in training, otherwise 0.5.
            noise: uniform numbers in [0, 1) in the shape of the latents, for training; drawn here if None.
            return_loss: False leaves the loss out.

        Raises:
            ValueError: the images do not fit the configuration, or the first ones are far from [0, 1].
        """
        pixel_values = self.check_images(pixel_values)
        self.check_range(pixel_values)
        quality = self._qualities(quality, pixel_values)
        log_gains = self.log_gains(quality)
        scaled = self._scaled_latents(pixel_values, quality)
        symbols = scaled + (scaled.round() - scaled).detach()
        noisy = symbols
        if self.training:
            noisy = scaled - 0.5 + (torch.rand_like(scaled) if noise is None else noise)
        height, width = pixel_values.shape[2:]
        rate = self.prior.bits(noisy, log_gains, quality).flatten(1).sum(1) / (height * width)
        latents = self._latents(symbols, quality)
        reconstruction = self._images(latents, quality, (height, width))
        mse = (reconstruction - pixel_values).square().flatten(1).mean(1)
        loss = (rate + self.distortion_weight(quality) * mse).mean() if return_loss else None
        return CodecOutput(latents=latents, loss=loss, rate=rate, mse=mse, reconstruction=reconstruction)

    def distortion_weight(self, quality: Tensor) -> Tensor:
        """Weight of the mean squared error in the loss, for qualities in [0, 1]."""
        low, high = self.config.min_distortion_weight, self.config.max_distortion_weight
        return low * (high / low) ** quality

    @torch.no_grad()
    def encode_symbols(self, pixel_values: Tensor, quality: float = 0.5) -> Tensor:
        """The integers that stand for images.

        Args:
            pixel_values: (batch, channels, height, width) in [0, 1], of any size; a gray model takes color too.
            quality: in [0, 1]; rounded to the nearest of `config.num_levels` that have tables.

        Returns:
            int32 (batch, latent_dim, ceil(height / config.downsampling), ceil(width / config.downsampling)).
        """
        pixel_values = self.check_images(pixel_values)
        self.check_range(pixel_values)
        scaled = self._scaled_latents(pixel_values, self._level_quality(quality, pixel_values))
        return scaled.round().clamp(-LARGEST_SYMBOL, LARGEST_SYMBOL).to(torch.int32)

    @torch.no_grad()
    def decode_symbols(self, symbols: Tensor, quality: float = 0.5, size: tuple[int, ...] | None = None) -> Tensor:
        """The images that symbols stand for, (batch, channels, height, width) in [0, 1].

        Args:
            symbols: integers (batch, latent_dim, h, w), from `encode_symbols` with the same quality.
            quality: in [0, 1].
            size: height and width of the images; None: a multiple of `config.downsampling`.

        Raises:
            ValueError: symbols or size do not fit.
        """
        if symbols.ndim != 4 or symbols.shape[1] != self.config.latent_dim or symbols.is_floating_point():
            raise ValueError(
                f"symbols must be integers of shape (batch, {self.config.latent_dim}, h, w), got {symbols.dtype} of "
                f"shape {tuple(symbols.shape)}. Use symbols of this model."
            )
        cells = [side * self.config.downsampling for side in symbols.shape[2:]]
        size = (cells[0], cells[1]) if size is None else size
        if any(not side - self.config.downsampling < wanted <= side for side, wanted in zip(cells, size)):
            raise ValueError(f"size must be at most {tuple(cells)}, and less than a cell smaller, got {size}.")
        levels = self._level_quality(quality, symbols)
        return self._images(self._latents(symbols.to(torch.float32), levels), levels, size).clamp(0, 1)

    def analysis(self, pixel_values: Tensor, quality: Tensor) -> Tensor:
        """What the encoder says of images, before it is rounded to symbols.

        Args:
            pixel_values: (batch, channels, height, width) in [0, 1], of any size; a gray model takes color too.
            quality: of each image, (batch,) in [0, 1], and not rounded to one that has tables.

        Returns:
            (batch, latent_dim, ceil(height / config.downsampling), ceil(width / config.downsampling)).
        """
        return self._scaled_latents(self.check_images(pixel_values), quality)

    def synthesis(self, symbols: Tensor, quality: Tensor) -> Tensor:
        """Images (batch, channels, height, width) in [0, 1] of whole cells, which `decode_symbols` cuts to their size.

        Args:
            symbols: what `analysis` returns, rounded, as floats.
            quality: as in `analysis`.
        """
        size = tuple(side * self.config.downsampling for side in symbols.shape[2:])
        return self._images(self._latents(symbols, quality), quality, size).clamp(0, 1)

    def quality_level(self, quality: float) -> int:
        """The nearest of `config.num_levels` qualities, from 0 to num_levels - 1.

        Raises:
            ValueError: the quality is not in [0, 1].
        """
        if not 0 <= quality <= 1:
            raise ValueError(f"quality must be from 0 to 1, got {quality}.")
        return round(quality * (self.config.num_levels - 1))

    @torch.no_grad()
    def freeze_tables(self, batches: Iterable[Tensor]) -> None:
        """Counts the symbols of images at each level of quality, and stores their frequencies for entropy coding.

        To be called when training is over: tables belong to the weights that they were counted with.

        Args:
            batches: images (batch, channels, height, width), unlike those that the codec is measured on.
        """
        counts = torch.zeros(self.tables.shape, dtype=torch.int64, device=self.tables.device)
        for pixel_values in batches:
            for level, of_level in enumerate(counts):
                symbols = self.encode_symbols(pixel_values, level / (self.config.num_levels - 1))
                of_level += count_entries(symbols, self.config.max_symbol)
        self.tables.copy_(to_frequencies(counts))

    @property
    def has_tables(self) -> bool:
        """Whether `freeze_tables` was called since the weights were new."""
        return bool(self.tables.any())

    def code_lengths(self, symbols: Tensor, quality: float = 0.5) -> Tensor:
        """Bits that each image takes with the stored tables, (batch,), float64.

        Raises:
            ValueError: there are no tables.
        """
        if not self.has_tables:
            raise ValueError("tables must have been counted, got a model without. Finish its training.")
        bits = PRECISION - self.tables[self.quality_level(quality)].double().log2()
        beyond = (symbols.abs() - self.config.max_symbol).clamp(min=0)
        # A symbol without an entry: its sign, and Exp-Golomb bits of how far it is beyond.
        escape = torch.where(beyond > 0, 2 + 2 * beyond.clamp(min=1).double().log2().floor(), 0)
        return (bits.flatten()[flat_entries(symbols, self.config.max_symbol)] + escape).flatten(1).sum(1)

    def _qualities(self, quality: Tensor | float | None, like: Tensor) -> Tensor:
        """Qualities (batch,)."""
        if quality is None:
            return torch.rand(like.shape[0], device=like.device) if self.training else self._full(0.5, like)
        if not isinstance(quality, Tensor):
            self.quality_level(quality)
            return self._full(quality, like)
        return quality.to(like.device).expand(like.shape[0])

    def _level_quality(self, quality: float, like: Tensor) -> Tensor:
        """The nearest quality with tables, for each image."""
        return self._full(self.quality_level(quality) / (self.config.num_levels - 1), like)

    @staticmethod
    def _full(quality: float, like: Tensor) -> Tensor:
        return torch.full((like.shape[0],), quality, device=like.device)

    def _scaled_latents(self, pixel_values: Tensor, quality: Tensor) -> Tensor:
        """Latents that only need to be rounded. Images are continued at the right and below to whole cells."""
        height, width = (-side % self.config.downsampling for side in pixel_values.shape[2:])
        padded = F.pad(pixel_values, (0, width, 0, height), mode="replicate") if height or width else pixel_values
        latents = at_least_float32(self.encoder((2 * padded - 1).to(self.dtype), quality))
        return latents * self.log_gains(quality).exp()[:, :, None, None]

    def _latents(self, symbols: Tensor, quality: Tensor) -> Tensor:
        return symbols * self.log_steps(quality).exp()[:, :, None, None]

    def _images(self, latents: Tensor, quality: Tensor, size: tuple[int, ...]) -> Tensor:
        decoded = at_least_float32(self.decoder(latents.to(self.dtype), quality))
        images = (decoded[:, :, : size[0], : size[1]] + 1) / 2
        # The loss needs the unclamped output, as a clamped pixel has no gradient; callers get [0, 1].
        return images if self.training else images.clamp(0, 1)


# With these, save_pretrained and push_to_hub copy this file, and those that it imports from, next to the weights, even
# if it was itself loaded from the Hub.
CodecConfig.register_for_auto_class("AutoConfig")
CodecModel.register_for_auto_class("AutoModel")

__all__ = ["CodecConfig", "CodecModel", "CodecOutput"]
