"""Pictures and folders of images as output: whole, or not there."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import torch
from torch import Tensor

from ...compression.new_files import check_new, write_folder
from ...image_processing import image_grid, to_pil


ANIMATED = (".gif", ".webp")
MILLISECONDS = 80  # per frame of an animation


def check_output(output: Path) -> bool:
    """Checks where images are to go, before any work.

    Returns:
        Whether it is a picture, which may replace another one. A name without a suffix is a new folder.

    Raises:
        ValueError: it is no kind of picture that Pillow writes, its folder is missing, or it is a folder that exists.
    """
    if not output.suffix:
        check_new(output)
        return False
    PIL.Image.init()
    kinds = sorted(suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.SAVE)
    if output.suffix.lower() not in kinds:
        raise ValueError(
            f"OUT must end in .png, .jpg, .webp or another suffix of pictures, got {str(output)!r}. A name without a "
            "suffix is a folder, with a file for each image."
        )
    if output.is_dir() or not output.parent.is_dir():
        raise ValueError(f"OUT must be a file in a folder that exists, got {str(output)!r}. Create the folder first.")
    return True


def write_picture(output: Path, pictures: list[PIL.Image.Image]) -> None:
    """Writes a picture, or several as an animation that repeats; it replaces an earlier one when it is complete.

    Raises:
        ValueError: Pillow cannot write these images in the format of the suffix.
    """
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    kind = PIL.Image.registered_extensions()[output.suffix.lower()]
    options = {"save_all": True, "append_images": pictures[1:], "duration": MILLISECONDS, "loop": 0}
    try:
        pictures[0].save(temporary, format=kind, **(options if len(pictures) > 1 else {}))
        temporary.replace(output)
    except (OSError, KeyError) as error:
        raise ValueError(f"OUT cannot be written as {output.suffix}: {error}. Use .png.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_images(output: Path, images: Iterator[tuple[str, Tensor]]) -> int:
    """Writes a new folder of images, which appears when all are there.

    Args:
        output: the folder.
        images: file name and pixels (channels, height, width) in [0, 1]; as they are needed.

    Returns:
        The number of images.
    """
    count = 0

    def fill(folder: Path) -> None:
        nonlocal count
        for name, pixels in images:
            to_pil(pixels)[0].save(folder / name)
            count += 1

    write_folder(output, fill)
    return count


def draw_batches(count: int, size: int, draw: Callable[[int, int], Tensor]) -> Iterator[Tensor]:
    """Draws many images a batch at a time: `draw(start, stop)` returns those from start to stop."""
    for start in range(0, count, size):
        yield draw(start, min(start + size, count))


def pairs_picture(originals: Tensor, others: Tensor, columns: int) -> PIL.Image.Image:
    """Draws rows of images, each above a row of what became of them.

    Args:
        originals, others: (batch, channels, height, width) in [0, 1].
        columns: pairs per row; the rest of the last row is white.
    """
    columns = min(columns, len(originals))
    rest = -len(originals) % columns
    white = torch.ones(rest, *originals.shape[1:])
    rows = math.ceil(len(originals) / columns)
    pairs = [torch.cat([images.cpu(), white]).unflatten(0, (rows, columns)) for images in (originals, others)]
    return image_grid(torch.stack(pairs, dim=1).flatten(0, 2), columns)
