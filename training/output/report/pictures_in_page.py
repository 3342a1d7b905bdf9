"""Pictures and texts of a run's samples, in a form that a page holds by itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import PIL.Image

from hfgen.model_folder import step_of


# Larger PNG files are embedded as WebP of this quality, in which losses are hardly visible.
LARGEST_PNG, QUALITY = 150_000, 88
WEBP_SIDE = 16_383  # of the largest picture that the format can hold
# The most frames of a film, and the most bytes of all of them together: the page has to stay small enough to send.
MOST_FRAMES, FILM_BYTES = 40, 2_500_000

Item = TypeVar("Item")


@dataclass
class Embedded:
    """A picture as the page shows it.

    Attributes:
        uri: with all of its bytes.
        width, height: in pixels.
    """

    uri: str
    width: int
    height: int


@dataclass
class Frame:
    """What a run drew after some step: a picture or a text."""

    step: int
    picture: Embedded | None = None
    text: str | None = None


def embed(picture: PIL.Image.Image | Path) -> Embedded:
    """Turns a picture into a data URI: a PNG, or WebP if that is large."""
    opened = PIL.Image.open(picture) if isinstance(picture, Path) else picture
    content = picture.read_bytes() if isinstance(picture, Path) else _encode(opened, "PNG", optimize=True)
    kind = "png"
    if len(content) > LARGEST_PNG and max(opened.size) <= WEBP_SIDE:
        smaller = _encode(opened.convert("RGB"), "WEBP", quality=QUALITY)
        if len(smaller) < len(content):
            content, kind = smaller, "webp"
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return Embedded(uri, *opened.size)


def _encode(picture: PIL.Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=form, **options)
    return file.getvalue()


def read_film(folder: Path) -> tuple[list[Frame], int]:
    """The samples that a run drew, in the order of their steps; of many, some that are evenly spread.

    Args:
        folder: of the run.

    Returns:
        the frames, with the first and the last, and how many there were.
    """
    files = [path for path in (folder / "samples").glob("step-*") if path.stem.count("-") == 1]
    files = sorted((path for path in files if path.suffix in (".png", ".txt")), key=step_of)
    if not files:
        return [], 0
    fitting = FILM_BYTES // max(1, max(path.stat().st_size for path in files))
    chosen = spread(files, max(2, min(MOST_FRAMES, fitting)))
    return [_read_frame(path) for path in chosen], len(files)


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Some of the items, evenly spread, the first and the last among them.

    Args:
        items: any number of them.
        most: at least 2.
    """
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _read_frame(path: Path) -> Frame:
    if path.suffix == ".txt":
        return Frame(step_of(path), text=path.read_text(encoding="utf-8", errors="replace"))
    return Frame(step_of(path), picture=embed(path))
