"""Pixels <-> tensors, without torchvision.

    to_pixel_values(images, num_channels=1)    images of any kind -> one uint8 tensor (batch, channels, height, width)
    to_pil(pixel_values)                       floats in [0, 1] (or uint8) -> PIL images
    image_grid(pixel_values)                   ... -> one picture to look at
    overlay_maps(pixel_values, maps)           images painted red where they are strange
    build_image_processor(1, (28, 28))         the processor that is saved with a model

`preprocessor_config.json` names transformers' own `ViTImageProcessor`, so AutoImageProcessor loads it with no custom
code and without hfgen. That class does not convert color to gray: give it PIL images of mode "L" or arrays (height,
width, 1) for a gray model, which otherwise converts color itself. [`HfgenImageProcessor`] reads the same file, takes
every kind of image, and converts before it resizes, as for training.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import ViTImageProcessorPil
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension

from .models.image_inputs import MODES, exif_orientation, overlay_maps, to_pil_image, why_unreadable


BILINEAR = PIL.Image.Resampling.BILINEAR

# Of the files that are taken for images in a folder.
IMAGE_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif"),
    *(".tiff", ".pnm", ".ppm", ".pgm", ".pbm", ".tga", ".ico", ".psd"),
}

__all__ = [
    "BILINEAR",
    "IMAGE_SUFFIXES",
    "HfgenImageProcessor",
    "build_image_processor",
    "exif_orientation",
    "image_grid",
    "overlay_maps",
    "to_pil",
    "to_pixel_values",
    "why_unreadable",
]


class HfgenImageProcessor(ViTImageProcessorPil):
    """Images of any kind to `pixel_values`, float32 in [0, 1], shape (batch, channels, height, width).

    Equal to transformers' `ViTImageProcessor` where that works, and takes what that does not: for a gray model color,
    alpha and palettes; for any model 16-bit images, floats in [0, 1] and arrays without a channel axis. See
    [`to_pixel_values`] for the rules. A gray model is one whose file has `"do_convert_rgb": false`.

    Pipelines pass every image on as RGB; a gray model converts it, or this processor if they are given it:
    `pipeline(..., image_processor=processor)`.
    """

    do_resize = True
    do_rescale = True
    do_normalize = False
    do_convert_rgb = True

    @property
    def num_channels(self) -> int:
        return 3 if self.do_convert_rgb else 1

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        convert_rgb = kwargs.get("do_convert_rgb")
        num_channels = self.num_channels if convert_rgb is None else 3 if convert_rgb else 1
        layout = kwargs.pop("input_data_format", None)
        channel_axis = None if layout is None else 0 if ChannelDimension(layout) is ChannelDimension.FIRST else -1
        arrays = []
        for index, image in enumerate(_flatten(images)):
            if isinstance(image, str) and not os.path.isfile(image):
                image = self.fetch_images(image)  # a URL or base64
            array = _convert(image, num_channels, index, channel_axis)
            arrays.append(np.atleast_3d(array).transpose(2, 0, 1))
        return super().preprocess(arrays, *args, input_data_format="channels_first", **kwargs)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "image_processor_type": "ViTImageProcessor"}


def build_image_processor(
    num_channels: int, image_size: tuple[int, int], resample: PIL.Image.Resampling = BILINEAR
) -> HfgenImageProcessor:
    """The image processor of a model; `save_pretrained` writes its `preprocessor_config.json`.

    Args:
        num_channels: 1 (gray) or 3 (RGB).
        image_size: (height, width) that images are resized to, without keeping the aspect ratio.
        resample: the resampling filter.
    """
    _check_num_channels(num_channels)
    height, width = _check_size("image_size", image_size)
    return HfgenImageProcessor(
        do_convert_rgb=num_channels == 3,
        size={"height": height, "width": width},
        resample=resample,
        image_mean=0.0,  # No normalization: networks rescale inside.
        image_std=1.0,
    )


def to_pixel_values(
    images: Any,
    num_channels: int,
    size: tuple[int, int] | None = None,
    resample: PIL.Image.Resampling = BILINEAR,
) -> torch.Tensor:
    """Converts images of any kind to one uint8 tensor (batch, channels, height, width).

    An image is a PIL image of any mode, an array or tensor (height, width), (height, width, channels) or (channels,
    height, width), encoded bytes, a path, or the `{"bytes", "path"}` of a `datasets` column cast to
    `Image(decode=False)`, which also lets an error name a corrupt image by its position.

    - Color becomes the luma of ITU-R BT.601, as in PIL; gray becomes color by repeating the channel.
    - Transparent pixels are composited onto white, as in newer transformers.
    - uint8 stays as it is, bool becomes 0/255, uint16 and 16-bit PIL images are scaled by 1/257, with a warning if
      they use 12 bits or fewer; other integers must be in 0..255, and floats in [0, 1]; they are rounded to 8 bits.
    - An array is channels-first if its first axis has 1, 3 or 4 entries, else channels-last if its last one has.

    Args:
        images: one image, a batch (4 axes), or a sequence or iterable of images.
        num_channels: 1 (gray) or 3 (RGB).
        size: (height, width) to resize to, with the filter `resample`; by default all images must have one size.

    Raises:
        ValueError: there is no image, or one cannot be read, has values out of range or NaN, or differs in size.
    """
    _check_num_channels(num_channels)
    if size is not None:
        size = _check_size("size", size)
    images = _flatten(images)
    batch: np.ndarray | None = None
    for index, image in enumerate(images):
        array = _convert(image, num_channels, index)
        if size is not None and array.shape[:2] != size:
            array = np.asarray(PIL.Image.fromarray(array).resize(size[::-1], resample=resample))
        if batch is None:
            batch = np.empty((len(images), num_channels, *array.shape[:2]), np.uint8)
        elif array.shape[:2] != batch.shape[2:]:
            raise ValueError(
                f"images must have one size, got {_by(array.shape)} (height x width) at position {index} after "
                f"{_by(batch.shape[2:])}. Give a size to resize all of them to."
            )
        batch[index] = array if array.ndim == 2 else array.transpose(2, 0, 1)
    if batch is None:
        raise ValueError("images must hold at least one image, got none. Check the dataset, split and column.")
    return torch.from_numpy(batch)


def to_pil(pixel_values: torch.Tensor) -> list[PIL.Image.Image]:
    """Converts pixel values to PIL images of mode "L" (one channel) or "RGB" (three).

    Args:
        pixel_values: (batch, channels, height, width) or one (channels, height, width). Floats are clamped to [0, 1]
            and rounded to 8 bits; uint8 stays as it is.

    Raises:
        ValueError: wrong shape or dtype, or NaN.
    """
    array = _to_uint8_pixels(pixel_values)
    if array.shape[1] == 1:
        return [PIL.Image.fromarray(image[0]) for image in array]
    return [PIL.Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in array]


def image_grid(
    pixel_values: torch.Tensor, columns: int | None = None, padding: int = 2, scale: int | None = None
) -> PIL.Image.Image:
    """Arranges many images in one, row by row on white.

    Args:
        pixel_values: as [`to_pil`] takes them.
        columns: images per row; by default the smallest number that gives no more rows than columns.
        padding: pixels between and around images, after scaling.
        scale: integer factor that enlarges each image (nearest neighbor, so that pixels stay sharp); by default the
            smallest that makes the result at least 512 pixels wide.
    """
    array = _to_uint8_pixels(pixel_values)
    count, channels, height, width = array.shape
    for name, value, least in (("columns", columns, 1), ("padding", padding, 0), ("scale", scale, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}. Leave it out for the default.")
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    if scale is None:
        scale = max(1, math.ceil((512 - padding * (columns + 1)) / (columns * width)))
    rows = math.ceil(count / columns)
    cell_height, cell_width = height * scale + padding, width * scale + padding
    grid = np.full((rows * cell_height + padding, columns * cell_width + padding, channels), 255, np.uint8)
    for index, image in enumerate(array):
        top, left = (index // columns) * cell_height + padding, (index % columns) * cell_width + padding
        cell = image.transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
        grid[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return PIL.Image.fromarray(grid[..., 0] if channels == 1 else grid)


# ------------------------------------------------------------------------------------------------------ many images


def _convert(image: Any, num_channels: int, index: int, channel_axis: int | None = None) -> np.ndarray:
    try:
        return np.asarray(to_pil_image(image, num_channels, channel_axis))
    except ValueError as error:
        raise ValueError(f"images, position {index}: {error}") from error


def _flatten(images: Any) -> Any:
    """One image, a batch, a sequence of images or a nested one, as a flat sequence (a lazy one stays lazy)."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images if images.ndim == 4 else [images]
    if isinstance(images, (PIL.Image.Image, bytes, str, os.PathLike, dict)):
        return [images]
    if not isinstance(images, Iterable):
        raise ValueError(
            f"images must be an image or an iterable of images, got {type(images).__name__}. Pass a list."
        )
    if isinstance(images, (list, tuple)) and any(isinstance(image, (list, tuple)) for image in images):
        return [image for group in images for image in (group if isinstance(group, (list, tuple)) else [group])]
    return images if hasattr(images, "__len__") else list(images)


def _to_uint8_pixels(pixel_values: torch.Tensor) -> np.ndarray:
    pixels = pixel_values.detach().cpu()
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or pixels.shape[1] not in MODES or pixels.numel() == 0:
        raise ValueError(
            "pixel_values must have the shape (batch, channels, height, width) with 1 or 3 channels and at least one "
            f"image, got {tuple(pixel_values.shape)}. Reshape them."
        )
    if pixels.dtype == torch.uint8:
        return pixels.numpy()
    if not pixels.is_floating_point():
        raise ValueError(f"pixel_values must be floats in [0, 1] or uint8, got {pixel_values.dtype}. Convert them.")
    if pixels.isnan().any():
        raise ValueError("pixel_values must be numbers, got NaN. The model that produced them has diverged.")
    return pixels.float().clamp(0, 1).mul(255).round().to(torch.uint8).numpy()


def _check_num_channels(num_channels: int) -> None:
    if num_channels not in MODES:
        raise ValueError(f"num_channels must be 1 (gray) or 3 (RGB), got {num_channels}. Convert the images.")


def _check_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    sides = list(size) if isinstance(size, Iterable) else [size]
    if len(sides) != 2 or any(not isinstance(side, (int, np.integer)) or side < 1 for side in sides):
        raise ValueError(f"{name} must be (height, width), two positive integers, got {size!r}. Give both.")
    return int(sides[0]), int(sides[1])


def _by(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
