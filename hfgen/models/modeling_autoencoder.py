"""The convolutional Auto-Encoder.

An encoder compresses an image to a few numbers, the latents Z, with convolutions and max pooling; a mirror-image
decoder reconstructs it with transposed convolutions. What does not fit through the bottleneck is lost, so the network
learns what the images have in common (Hinton & Salakhutdinov 2006; with convolutions, Masci et al. 2011).

A convolution with stride s maps n inputs to floor((n + 2 padding - kernel) / s) + 1 outputs; a transposed convolution
does the opposite:

    n_out = (n_in - 1) stride - 2 padding + kernel + output_padding

This file needs only torch and transformers: it is what travels to the Hub.
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
from transformers.utils import ModelOutput, can_return_tuple, is_tracing


LATENT_TYPES = ("vector", "spatial")
RECONSTRUCTION_LOSSES = ("mse", "l1")

if TYPE_CHECKING:
    ImageSize = Any  # may be one number or None on input, and is always a list afterwards
    Channels = Any
else:
    ImageSize = int | list[int]
    Channels = list[int] | None

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
class AutoencoderConfig(PreTrainedConfig):
    """Shape and objective of an [`AutoencoderModel`].

    Args:
        image_size: height and width in pixels; one number means a square.
        num_channels: 1 for gray, 3 for RGB.
        hidden_channels: channels of each stage; every stage halves height and width by max pooling.
        hidden_size: width of the fully connected layer on either side of vector latents.
        latent_dim: numbers in a vector latent, or channels of a spatial one.
        latent_type: "vector", latents (batch, latent_dim), or "spatial", latents (batch, latent_dim, h, w), where h
            and w are the image's height and width divided by 2 to the power of the number of stages.
        reconstruction_loss: "mse" or "l1", averaged over pixels.
        noise_std: standard deviation of the normal noise added to the input during training, in units of the pixel
            range; above 0, the model is a denoising auto-encoder (Vincent et al. 2010).
        sparsity_weight: weight of the mean absolute latent in the loss; above 0, the model is a sparse auto-encoder.
        hidden_act: activation, by its name in transformers.

    Raises:
        StrictDataclassError: a value has the wrong type or is out of range, or the stages do not divide image_size.
    """

    model_type = "hfgen_autoencoder"

    image_size: ImageSize = 28
    num_channels: int = 1
    hidden_channels: Channels = None
    hidden_size: int = 512
    latent_dim: int = 32
    latent_type: str = "vector"
    reconstruction_loss: str = "mse"
    noise_std: float | int = 0.0
    sparsity_weight: float | int = 0.0
    hidden_act: str = "relu"

    def __post_init__(self, **kwargs):
        if self.hidden_channels is None:
            self.hidden_channels = [32, 64]
        super().__post_init__(**kwargs)

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
        for name in ("noise_std", "sparsity_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                problems.append(f"{name} must be a finite number of at least 0, got {getattr(self, name)}")
        if self.latent_type not in LATENT_TYPES:
            problems.append(f"latent_type must be one of {', '.join(LATENT_TYPES)}, got {self.latent_type!r}")
        if self.reconstruction_loss not in RECONSTRUCTION_LOSSES:
            problems.append(
                f"reconstruction_loss must be one of {', '.join(RECONSTRUCTION_LOSSES)}, "
                f"got {self.reconstruction_loss!r}"
            )
        if self.hidden_act not in ACT2FN:
            problems.append(f"hidden_act must be the name of an activation in transformers, got {self.hidden_act!r}")
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


class AutoencoderEncoder(nn.Module):
    """Pixels in [-1, 1] -> latents: each stage is a convolution, an activation and 2 x 2 max pooling."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        channels = [config.num_channels, *config.hidden_channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(narrow, wide, kernel_size=3, padding=1) for narrow, wide in zip(channels, channels[1:])
        )
        self.pool = nn.MaxPool2d(2)
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
        for conv in self.convs:
            hidden_states = self.pool(self.act(conv(hidden_states)))
        if self.latent_type == "vector":
            hidden_states = hidden_states.flatten(1)
        return self.to_latents(self.act(self.hidden(hidden_states)))


class AutoencoderDecoder(nn.Module):
    """Latents -> pixels in [-1, 1]: the encoder mirrored, with a transposed convolution of stride 2 per pooling."""

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
            nn.ConvTranspose2d(wide, narrow, kernel_size=4, stride=2, padding=1)
            for wide, narrow in zip(channels, channels[1:])
        )

    def forward(self, latents: Tensor) -> Tensor:
        hidden_states = self.hidden(self.act(self.from_latents(latents)))
        if self.latent_type == "vector":
            hidden_states = hidden_states.unflatten(1, self.feature_shape)
        for conv in self.convs:
            hidden_states = conv(self.act(hidden_states))
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


class AutoencoderModel(PreTrainedModel):
    """Convolutional Auto-Encoder for images in [0, 1]: a compressor, an embedding and an anomaly detector.

    >>> model = AutoencoderModel(AutoencoderConfig(image_size=28, latent_dim=32))
    >>> model.encode(torch.rand(16, 1, 28, 28)).shape
    torch.Size([16, 32])
    """

    config_class = AutoencoderConfig
    base_model_prefix = "autoencoder"
    main_input_name = "pixel_values"
    input_modalities = "image"
    _range_is_checked = False

    def __init__(self, config: AutoencoderConfig):
        config.validate()  # again: fields may have been changed since it was created
        super().__init__(config)
        self.encoder = AutoencoderEncoder(config)
        self.decoder = AutoencoderDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            _init_he(module)

    @_evaluates_without_labels
    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Any = None,
        noise: Tensor | None = None,
        return_loss: bool = True,
    ) -> AutoencoderOutput:
        """Encodes and decodes images, and measures the reconstruction error.

        Args:
            pixel_values: (batch, channels, height, width) in [0, 1].
            labels: ignored, so that a labeled batch can be passed as it is.
            noise: standard normal numbers in the shape of pixel_values. A denoising model adds `noise_std` times them
                during training; drawn here if None.
            return_loss: False leaves the loss out.

        Raises:
            ValueError: the images do not fit the configuration, or the first ones are far from [0, 1].
        """
        inputs = pixel_values = self._check_images(pixel_values)
        self._check_range(pixel_values)
        if self.training and self.config.noise_std > 0:
            noise = torch.randn_like(pixel_values) if noise is None else noise
            inputs = pixel_values + self.config.noise_std * noise
        latents = self.encode(inputs)
        reconstruction = self._images(self.decoder(latents))
        loss = self._loss(pixel_values, latents, reconstruction) if return_loss else None
        return AutoencoderOutput(latents=latents, loss=loss, reconstruction=reconstruction)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Latents (batch, *config.latent_shape) of images (batch, channels, height, width) in [0, 1]; a gray model
        takes color too."""
        return self.encoder((2 * self._check_images(pixel_values) - 1).to(self.dtype))

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
    def anomaly_score(self, pixel_values: Tensor) -> Tensor:
        """Mean squared reconstruction error, (batch,): images unlike the training data score higher."""
        pixel_values = self._check_images(pixel_values)
        return (self.decode(self.encode(pixel_values)) - pixel_values).square().flatten(1).mean(1)

    def _loss(self, pixel_values: Tensor, latents: Tensor, reconstruction: Tensor) -> Tensor:
        measure = F.mse_loss if self.config.reconstruction_loss == "mse" else F.l1_loss
        loss = measure(reconstruction, pixel_values.to(reconstruction.dtype))
        if self.config.sparsity_weight > 0:
            loss = loss + self.config.sparsity_weight * _at_least_float32(latents).abs().mean()
        return loss

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

    def _images(self, decoded: Tensor) -> Tensor:
        images = (_at_least_float32(decoded) + 1) / 2
        # The loss needs the unclamped output, as a clamped pixel has no gradient; callers get [0, 1].
        return images if self.training else images.clamp(0, 1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Sums, exponentials and images are too coarse in the 16-bit types that networks may run in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _init_he(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
    """He et al. 2015: keeps the variance of activations through layers with rectifiers; biases 0."""
    weight = layer.weight
    fan_in: float = weight[0].numel()
    if isinstance(layer, nn.ConvTranspose2d):
        # Each output pixel of a transposed convolution is reached by kernel / stride cells along each side.
        fan_in = weight.shape[0] * weight[0, 0].numel() / math.prod(layer.stride)
    init.normal_(weight, std=math.sqrt(2.0 / fan_in))
    if layer.bias is not None:
        init.zeros_(layer.bias)


# With these, save_pretrained and push_to_hub copy this file next to the weights, even if it was itself loaded from the
# Hub.
AutoencoderConfig.register_for_auto_class("AutoConfig")
AutoencoderModel.register_for_auto_class("AutoModel")

__all__ = ["AutoencoderConfig", "AutoencoderModel", "AutoencoderOutput"]
