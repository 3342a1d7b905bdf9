"""What people call an image, as a PIL image in the model's colors; and pixels as PIL images, painted with maps.

image_pipelines.py needs this file. It travels beside it, so that an image is read in the same way wherever a model is
used.
"""

import base64
import binascii
import io
import os
import re
import urllib.error
import urllib.request
import warnings
from typing import Any

import numpy as np
import torch
from transformers.utils import is_vision_available


if is_vision_available():  # a model can be used without Pillow, and transformers looks for what its files import
    import PIL.ExifTags
    import PIL.Image


MODES = {1: "L", 3: "RGB"}  # of PIL, by the number of channels
_CHANNEL_COUNTS = (1, 3, 4)
_URL = re.compile(r"https?://", flags=re.IGNORECASE)
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
# EXIF orientation -> the name of what turns the stored image into the one to display.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def to_pil_image(image: Any, num_channels: int, channel_axis: int | None = None) -> "PIL.Image.Image":
    """One image of any kind as a PIL image of mode "L" or "RGB", in its own size.

    Color becomes the luma of ITU-R BT.601; gray becomes color by repeating it; transparent pixels are composited onto
    white; 16 bits become 8; the orientation of a photograph is applied.

    Args:
        image: a PIL image of any mode; an array or tensor (height, width), (height, width, channels) or (channels,
            height, width), of uint8, or of floats in [0, 1]; encoded bytes; a path; or the `{"bytes", "path"}` of a
            `datasets` column that does not decode.
        num_channels: 1 (gray) or 3 (RGB).
        channel_axis: of an array: 0 or -1; found by its length if None.

    Raises:
        ValueError: it cannot be read, or has values out of range; says what it must be and what to do.
    """
    if isinstance(image, (np.ndarray, torch.Tensor)):
        image = _array_to_pil(_to_numpy(image), channel_axis)
    elif isinstance(image, PIL.Image.Image):
        _load(image)
    else:
        image = _decode(image)
    return _change_mode(image, MODES[num_channels])


def fetch_image(image: str, timeout: float | None = None) -> Any:
    """The bytes of an image that is named by a URL (http, https, or data:image/...;base64); any other text as it is,
    which is then a path.

    Raises:
        ValueError: the URL cannot be read.
    """
    if data := _DATA_URL.match(image):
        try:
            return base64.b64decode(image[data.end() :], validate=True)
        except binascii.Error as error:
            raise ValueError(f"must be base64 after {data[0]}, got {error}. Encode it again.") from None
    if not _URL.match(image):
        return image
    request = urllib.request.Request(image, headers={"User-Agent": "transformers"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read()
    except (OSError, ValueError) as error:  # urllib's own errors are OSErrors
        raise ValueError(f"must be a URL that can be read, got {image}: {error}. Check it in a browser.") from None


def pixels_to_pil(pixel_values: torch.Tensor) -> "list[PIL.Image.Image]":
    """Floats in [0, 1], (batch, channels, height, width) with 1 or 3 channels, as PIL images."""
    levels = pixel_values.detach().cpu().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    arrays = levels.permute(0, 2, 3, 1).numpy()
    return [PIL.Image.fromarray(np.ascontiguousarray(a[..., 0] if a.shape[-1] == 1 else a)) for a in arrays]


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


def _decode(image: Any) -> "PIL.Image.Image":
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
    return decoded if turn is None else decoded.transpose(PIL.Image.Transpose[turn])


def exif_orientation(image: "PIL.Image.Image") -> int:
    """How an image is turned for display, 1 to 8 as in EXIF; 1, as it is, if nothing legible says so."""
    try:
        return int(image.getexif().get(PIL.ExifTags.Base.Orientation, 1))
    except Exception:  # The block is malformed: PIL raises SyntaxError, struct.error, ValueError and others.
        return 1


def _load(image: "PIL.Image.Image") -> None:
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


def _array_to_pil(array: np.ndarray, channel_axis: int | None) -> "PIL.Image.Image":
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


def _change_mode(image: "PIL.Image.Image", mode: str) -> "PIL.Image.Image":
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
