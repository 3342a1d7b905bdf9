"""What the models of images share: the images and labels that they take, how their configs are read, and how their
weights start.

Each model is a file of its own, modeling_X.py, which holds its config, its networks and its objective. transformers
copies this file beside it, into a saved folder and to the Hub, because the model's file imports from it.
"""

import inspect
import math
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
import transformers


# Without this, an older transformers would complain about some name that is imported below.
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18):
    raise ImportError(
        f"This model needs transformers 5.18 or newer, found {transformers.__version__}. "
        'Run: pip install --upgrade "transformers>=5.18,<6"'
    )

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils import is_tracing


if TYPE_CHECKING:
    ImageSize = Any  # may be one number or None on input, and is always a list afterwards
    Channels = Any
else:
    ImageSize = int | list[int]
    Channels = list[int] | None

Labels = Any  # of classes: numbers or names, one for each image in a tensor, array or list, or one for all images
ConfigClass = TypeVar("ConfigClass", bound=type)


def takes_plain_values(config_class: ConfigClass) -> ConfigClass:
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


# The pipelines of transformers, by task: file and class.
PIPELINES = {
    "image-anomaly-detection": "image_pipelines.ImageAnomalyDetectionPipeline",
    "image-to-image": "image_pipelines.ImageReconstructionPipeline",
    "unconditional-image-generation": "image_pipelines.ImageGenerationPipeline",
}


class ImageConfig(PreTrainedConfig):
    """A config whose config.json tells transformers which pipelines the model has and where their code is.

    Attributes:
        tasks: of its pipelines, besides image-feature-extraction, which is transformers' own.
    """

    tasks: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config that a config.json describes. If it belongs to an installed hfgen, it names no pipelines: those
        are registered with transformers, and need no trust_remote_code."""
        if cls.__module__.startswith("hfgen."):
            config_dict = {name: value for name, value in config_dict.items() if name != "custom_pipelines"}
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """Adds the pipelines. (Those in the config itself have classes in them once transformers has used them.)"""
        own = {task: {"impl": PIPELINES[task], "pt": ["AutoModel"], "type": "image"} for task in self.tasks}
        return {**super().to_diff_dict(), "custom_pipelines": own}


class LabeledConfig(ImageConfig):
    """A config without classes unless they are given: `num_labels` is 0 by default, and not transformers' 2."""

    def __post_init__(self, **kwargs):
        if self.id2label is None:
            kwargs.setdefault("num_labels", 0)
        super().__post_init__(**kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """Writes the labels even if there are two, which transformers takes as the default and omits."""
        return {**super().to_diff_dict(), "id2label": self.id2label, "label2id": self.label2id}


class StagedConfig(ImageConfig):
    """A config whose `hidden_channels` are the stages of an encoder, each of which halves height and width."""

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


def default_channels(image_size: Any) -> list[int]:
    """Channels of the stages before a fully connected layer: 32, 64, and 128 for each further stage, until no side has
    more than 8 cells or the size cannot be halved. On a larger map, the fully connected layer would hold most weights.
    """
    channels = [32, 64]
    if not isinstance(image_size, list) or not image_size:
        return channels  # whatever else it is, it is refused later
    while max(image_size) > 8 * 2 ** len(channels) and not any(side % 2 ** (len(channels) + 1) for side in image_size):
        channels.append(128)
    return channels


def staged_problems(config: Any, *positive: str, **choices: Collection[str]) -> list[str]:
    """What is wrong with a [`StagedConfig`]: its sizes, further fields that must be positive, and those of choices."""
    problems = []
    if len(config.image_size) != 2 or min(config.image_size) < 1:
        problems.append(f"image_size must be one or two positive numbers (height, width), got {config.image_size}")
    elif any(side % config.downsampling for side in config.image_size):
        problems.append(
            f"image_size {config.image_size} must be divisible by {config.downsampling}, as each of the "
            f"{len(config.hidden_channels)} stages in hidden_channels halves it; "
            "resize the images or use fewer stages"
        )
    if not config.hidden_channels or min(config.hidden_channels) < 1:
        problems.append(f"hidden_channels must be a non-empty list of positive numbers, got {config.hidden_channels}")
    for name in ("num_channels", "hidden_size", "latent_dim", *positive):
        if getattr(config, name) < 1:
            problems.append(f"{name} must be at least 1, got {getattr(config, name)}")
    return problems + choice_problems(config, **choices)


def choice_problems(config: Any, **choices: Collection[str]) -> list[str]:
    """Which fields of a config are none of their choices, and hidden_act, if there is one, no known activation."""
    problems = [
        f"{name} must be one of {', '.join(known)}, got {getattr(config, name)!r}"
        for name, known in choices.items()
        if getattr(config, name) not in known
    ]
    if getattr(config, "hidden_act", "relu") not in ACT2FN:
        problems.append(f"hidden_act must be the name of an activation in transformers, got {config.hidden_act!r}")
    return problems


def evaluates_without_labels(forward: Callable[..., Any]) -> Callable[..., Any]:
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


class ImageModel(PreTrainedModel):
    """A model of images in [0, 1]. Its config has `image_size` and `num_channels`, and `num_labels` if it can be
    conditional.

    Attributes:
        takes_any_size: whether images may have another size than `image_size`.
    """

    takes_any_size = False
    _range_is_checked = False

    def __init__(self, config: PreTrainedConfig):
        config.validate()  # again: fields may have been changed since it was created
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            _init_with_gain(module)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=getattr(module, "init_gain", 1.0))

    def check_images(self, pixel_values: Tensor) -> Tensor:
        """The images, if they fit the configuration; raises a ValueError if not. For a gray model, color becomes gray:
        transformers' pipelines read every file as RGB."""
        is_float, is_color = pixel_values.is_floating_point(), pixel_values.ndim == 4 and pixel_values.shape[1] == 3
        if self.config.num_channels == 1 and is_float and is_color:
            red, green, blue = pixel_values.split(1, dim=1)
            # The luma of ITU-R BT.601, as in Pillow; in differences, which leave gray what it is to the bit.
            pixel_values = green + 0.299 * (red - green) + 0.114 * (blue - green)
        expected: tuple[int | str, ...] = (self.config.num_channels, *self.config.image_size)
        fits = pixel_values.shape[1:] == expected
        if self.takes_any_size:
            expected = (self.config.num_channels, "height", "width")
            fits = pixel_values.ndim == 4 and pixel_values.shape[1] == expected[0] and 0 not in pixel_values.shape[2:]
        if not (fits and is_float):
            raise ValueError(
                f"pixel_values must be floats in [0, 1] of shape (batch, {', '.join(map(str, expected))}), got "
                f"{pixel_values.dtype} of shape {tuple(pixel_values.shape)}. Use this "
                "model's image processor, which resizes and converts images."
            )
        return pixel_values

    def check_range(self, pixel_values: Tensor) -> None:
        """Raises a ValueError if images are far from [0, 1]. Looks at the first batch alone, as reading a number waits
        for the device, and never while tracing."""
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

    def class_indices(self, labels: Labels, batch: int) -> Tensor | None:
        """Labels as class indices (batch,); None if the model is unconditional.

        Raises:
            ValueError: labels are missing, not called for, unknown, or not one per image.
        """
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


def append_labels(hidden_states: Tensor, labels: Tensor | None, num_labels: int) -> Tensor:
    """Concatenates one-hot labels along dimension 1, at every position of a feature map."""
    if labels is None:
        return hidden_states
    one_hot = F.one_hot(labels.to(hidden_states.device, torch.long), num_labels).to(hidden_states.dtype)
    one_hot = one_hot.view(*one_hot.shape, *[1] * (hidden_states.ndim - 2)).expand(-1, -1, *hidden_states.shape[2:])
    return torch.cat([hidden_states, one_hot], dim=1)


class TransposedConv2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d, faster where a decoder ends in gray pixels: PyTorch's kernels for processors are made for
    many channels. With a single one, a product of matrices gives what each input adds to the pixels around it."""

    def forward(self, hidden_states: Tensor, output_size: list[int] | None = None) -> Tensor:
        is_slow = self.out_channels == 1 and hidden_states.device.type == "cpu" and output_size is None
        if not is_slow or is_tracing(hidden_states):
            return super().forward(hidden_states, output_size)
        options = (self.stride, self.padding, self.dilation, self.kernel_size, self.output_padding)
        sides = zip(hidden_states.shape[-2:], *options)
        height, width = ((n - 1) * s - 2 * p + d * (k - 1) + 1 + extra for n, s, p, d, k, extra in sides)
        patches = F.conv2d(hidden_states, self.weight.flatten(1).T[:, :, None, None]).flatten(-2)
        padding: Any = self.padding  # a convolution's may be a word; that of a transposed one never is
        pixels = F.fold(patches, (height, width), self.kernel_size, self.dilation, padding, self.stride)
        return pixels if self.bias is None else pixels + self.bias.to(pixels.dtype)


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))); starts as the identity, so depth costs nothing at first."""

    def __init__(self, channels: int, hidden_act: str, dropout: float = 0.0):
        super().__init__()
        self.act = ACT2FN[hidden_act]
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = with_init_gain(nn.Conv2d(channels, channels, kernel_size=3, padding=1), 0.0)

    def forward(self, hidden_states: Tensor) -> Tensor:
        update = self.act(self.conv1(self.act(hidden_states)))
        return hidden_states + self.conv2(self.dropout(update))


def pixel_moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and mean square of every pixel, (channels, height, width) each. In float64, where it makes no difference in
    which order a machine adds.

    Args:
        batches: images (batch, channels, height, width).

    Raises:
        ValueError: there are no images.
    """
    count, total, total_of_squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for pixel_values in batches:
        pixels = pixel_values.double()
        count += len(pixels)
        total = total.to(pixels.device) + pixels.sum(0)
        total_of_squares = total_of_squares.to(pixels.device) + pixels.square().sum(0)
    if not count:
        raise ValueError("batches must have at least one image, got none. Give some of the training images.")
    return total / count, total_of_squares / count


def at_least_float32(tensor: Tensor) -> Tensor:
    """Sums, exponentials and images are too coarse in the 16-bit types that networks may run in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def dtype_of(module: nn.Module) -> torch.dtype:
    """That of the first floating-point parameter: a layer whose weight is quantized has none."""
    found = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return next(found, torch.float32)


def randn(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Standard normal numbers, drawn on the generator's device and moved to `device`."""
    source = generator.device if generator is not None else device
    # Not torch.randn, which takes no batch of unknown size, as in exported graphs, along with a generator.
    return torch.empty(shape, device=source).normal_(generator=generator).to(device)


def with_init_gain(layer: nn.Module, gain: float) -> nn.Module:
    """Sets the scale of a layer's initial weights. Marks the layer, not the block around it, because transformers
    calls `_init_weights` only for modules that have weights of their own."""
    layer.init_gain = gain  # type: ignore[assignment]
    return layer


def _init_with_gain(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
    """He et al. 2015: keeps the variance of activations through layers with rectifiers; biases 0."""
    gain: float = getattr(layer, "init_gain", math.sqrt(2.0))
    weight = layer.weight
    if isinstance(layer, nn.ConvTranspose2d):
        init.copy_(weight, gain * _half_smooth(layer))
    else:
        init.normal_(weight, std=gain / math.sqrt(weight[0].numel()))
    if layer.bias is not None:
        init.zeros_(layer.bias)


@torch.no_grad()
def _half_smooth(layer: nn.ConvTranspose2d) -> Tensor:
    """Weights (in_channels, out_channels, height, width) that keep the variance. Half of it comes from linear
    interpolation, times a random number for each pair of channels, the other half from independent weights.

    With independent weights alone, each of the pixels that a cell becomes has a pattern of its own, and the picture
    has a grid, which a training of minutes does not lose. Interpolation alone makes details slow to learn.
    """
    rows, columns = (_triangle(size, stride) for size, stride in zip(layer.kernel_size, layer.stride))
    kernel = rows[:, None] * columns
    # Each pixel is a sum over the cells that reach it, so over a part of the kernel.
    cells = math.prod(layer.stride)
    smooth = (kernel / (kernel.square().sum() / cells).sqrt()).to(layer.weight)
    factors = layer.weight.new_empty(*layer.weight.shape[:2], 1, 1).normal_()
    independent = torch.empty_like(layer.weight).normal_() / math.sqrt(kernel.numel() / cells)
    return (smooth * factors + independent) / math.sqrt(2 * layer.in_channels)


def _triangle(size: int, stride: int) -> Tensor:
    """Weights (size,) of a cell along one side in linear interpolation to `stride` times as many pixels."""
    return (1 - (torch.arange(size) - (size - 1) / 2).abs() / stride).clamp(min=0)
