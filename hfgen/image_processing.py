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

import io
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import torch
from transformers import ViTImageProcessorPil
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension


BILINEAR = PIL.Image.Resampling.BILINEAR

# Of the files that are taken for images in a folder.
IMAGE_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif"),
    *(".tiff", ".pnm", ".ppm", ".pgm", ".pbm", ".tga", ".ico", ".psd"),
}
_MODES = {1: "L", 3: "RGB"}
_CHANNEL_COUNTS = (1, 3, 4)
# EXIF orientation -> what turns the stored image into the one to display.
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


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


def overlay_maps(pixel_values: torch.Tensor, maps: torch.Tensor, threshold: float | None = None) -> torch.Tensor:
    """Paints images red where their anomaly maps are high, the more the higher.

    Red begins at half of the threshold and has its full strength, which lets the image shine through, at one and a
    half times the threshold.

    Args:
        pixel_values: floats in [0, 1], (batch, channels, height, width) with 1 or 3 channels.
        maps: (batch, map height, map width), not negative; resized to the images.
        threshold: what maps of normal images rarely exceed. By default two thirds of the largest value of each map:
            maps are then comparable within an image only.

    Returns:
        (batch, 3, height, width).
    """
    if pixel_values.ndim != 4 or maps.ndim != 3 or len(maps) != len(pixel_values):
        raise ValueError(
            "maps must have the shape (batch, height, width), one for each image of pixel_values, got "
            f"{tuple(maps.shape)} for images of shape {tuple(pixel_values.shape)}. Use predict_anomaly(...).maps."
        )
    maps = torch.nn.functional.interpolate(maps[:, None].float(), pixel_values.shape[2:], mode="bilinear")
    limits = torch.full((len(maps), 1, 1, 1), threshold or 0.0, device=maps.device)
    if not threshold:
        limits = maps.amax((1, 2, 3), keepdim=True) * 2 / 3
    strength = 0.8 * (maps / limits.clamp(min=1e-30) - 0.5).clamp(0, 1)
    red = torch.tensor([1.0, 0.0, 0.0], device=maps.device).view(1, 3, 1, 1)
    return pixel_values.float() * (1 - strength) + red * strength


# ------------------------------------------------------- one image -> uint8 (height, width) or (height, width, 3)


def _convert(image: Any, num_channels: int, index: int, channel_axis: int | None = None) -> np.ndarray:
    try:
        if isinstance(image, (np.ndarray, torch.Tensor)):
            image = _array_to_pil(_to_numpy(image), channel_axis)
        elif isinstance(image, PIL.Image.Image):
            _load(image)
        else:
            image = _decode(image)
        return np.asarray(_change_mode(image, _MODES[num_channels]))
    except ValueError as error:
        raise ValueError(f"images, position {index}: {error}") from error


def _decode(image: Any) -> PIL.Image.Image:
    source = image
    if isinstance(image, dict) and ("bytes" in image or "path" in image):
        source = image.get("bytes") if image.get("bytes") is not None else image.get("path")
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    elif not isinstance(source, (str, os.PathLike)):
        kind = "an empty image" if source is None else type(source).__name__
        raise ValueError(
            f"must be a PIL image, array, tensor, encoded bytes or path, got {kind}. Drop the row or name another "
            "column."
        )
    try:
        decoded = PIL.Image.open(source)
    except Exception as error:
        raise ValueError(why_unreadable(error)) from error
    _load(decoded)
    turn = _TURNS.get(exif_orientation(decoded))
    return decoded if turn is None else decoded.transpose(turn)


def exif_orientation(image: PIL.Image.Image) -> int:
    """How an image is turned for display, 1 to 8 as in EXIF; 1, as it is, if nothing legible says so."""
    try:
        return int(image.getexif().get(PIL.ExifTags.Base.Orientation, 1))
    except Exception:  # The block is malformed: PIL raises SyntaxError, struct.error, ValueError and others.
        return 1


def _load(image: PIL.Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error and others.
        raise ValueError(why_unreadable(error)) from error


def why_unreadable(error: Exception) -> str:
    """What an image must be that PIL failed to open or to load with this error, and what to do."""
    if isinstance(error, PIL.Image.DecompressionBombError):
        return (
            f"must not be too large ({error}). Make it smaller, or, if you trust where it comes from, set "
            "PIL.Image.MAX_IMAGE_PIXELS = None in Python before it is read."
        )
    reason = re.sub(r"\s*<_io[^>]*>", "", str(error))
    return (
        f"must be readable, got corrupt or unknown data ({type(error).__name__}: {reason}). Repair the file "
        "or remove it from the dataset."
    )


def _to_numpy(array: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return array


def _array_to_pil(array: np.ndarray, channel_axis: int | None) -> PIL.Image.Image:
    if array.ndim == 3:
        if channel_axis is None:
            channel_axis = next((axis for axis in (0, -1) if array.shape[axis] in _CHANNEL_COUNTS), None)
        if channel_axis is None or array.shape[channel_axis] not in _CHANNEL_COUNTS:
            raise ValueError(
                f"must have 1, 3 or 4 channels on the first or the last axis, got an array of shape {array.shape}. A "
                "batch of gray arrays needs a channel axis: array[:, None]."
            )
        array = np.moveaxis(array, channel_axis, -1)
    elif array.ndim != 2:
        raise ValueError(
            "must have the shape (height, width), (height, width, channels) or (channels, height, width), got "
            f"{array.shape}."
        )
    if array.size == 0:
        raise ValueError(f"must have pixels, got an array of shape {array.shape}. Drop it.")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return PIL.Image.fromarray(np.ascontiguousarray(_to_8_bits(array)))


def _to_8_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        _warn_of_unused_bits(array)
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"must hold numbers, got an array of dtype {array.dtype}. Convert it to uint8.")
    lowest, highest = array.min(), array.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError("must be finite, got NaN or infinity. Find the step that produced them.")
    limit, slack, kind = (1, 1e-4, "floats in [0, 1]") if array.dtype.kind == "f" else (255, 0, "integers in 0..255")
    if lowest < -slack or highest > limit + slack:
        raise ValueError(
            f"must hold {kind}, got values from {lowest:.6g} to {highest:.6g}. Rescale the array, or give 8-bit "
            "pixels as uint8."
        )
    return np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8) if limit == 1 else array.astype(np.uint8)


def _warn_of_unused_bits(array: np.ndarray) -> None:
    """Cameras and scanners store 10 or 12 bits in files of 16, which do not say so."""
    bits = int(array.max()).bit_length()
    if 0 < bits <= 12:
        warnings.warn(
            f"A 16-bit image uses only the lowest {bits} bits and comes out nearly black, as 65535 is white. If its "
            f"white is {2**bits - 1}, give floats instead, array / {2**bits - 1}, or rewrite the file.",
            stacklevel=2,
        )


def _change_mode(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    if image.mode == mode and not transparent:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # PIL would saturate these at 255.
        array = np.asarray(image)
        if image.mode == "I" and image.format == "PPM":  # PIL has scaled the file's largest value to 65535.
            array = array.astype(np.uint16)
        image = PIL.Image.fromarray(_to_8_bits(array))
    elif transparent:
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    try:
        return image.convert(mode)
    except ValueError as error:
        raise ValueError(f"must have a mode that PIL converts to {mode}, got {image.mode}. Convert it.") from error


# ------------------------------------------------------------------------------------------------------ many images


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
    if pixels.ndim != 4 or pixels.shape[1] not in _MODES or pixels.numel() == 0:
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
    if num_channels not in _MODES:
        raise ValueError(f"num_channels must be 1 (gray) or 3 (RGB), got {num_channels}. Convert the images.")


def _check_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    sides = list(size) if isinstance(size, Iterable) else [size]
    if len(sides) != 2 or any(not isinstance(side, (int, np.integer)) or side < 1 for side in sides):
        raise ValueError(f"{name} must be (height, width), two positive integers, got {size!r}. Give both.")
    return int(sides[0]), int(sides[1])


def _by(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
