"""How do files appear? Whole, or not at all, and never in place of others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..new_folder import new_folder


def check_new(output: str | Path) -> Path:
    """Before the work begins: a file or folder that can be written and is not there yet.

    Raises:
        ValueError: it is there, or its folder is not.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"OUT must be a new file, got {str(output)!r}, which exists. Name another, or remove it.")
    if not output.parent.is_dir():
        raise ValueError(f"OUT must be in a folder that exists, got {str(output)!r}. Create {output.parent} first.")
    return output


def check_image_name(name: str) -> str:
    """Returns a name that is safe as that of a new file in a folder.

    Raises:
        ValueError: it is not.
    """
    if not name.endswith(".png") or name != name.strip() or len(name) > 255 or set(name) & set('/\\:*?"<>|'):
        raise ValueError(f"The name of an image must be that of a PNG file, got {name!r}. Rename the image.")
    if any(ord(character) < 32 for character in name) or name.startswith("."):
        raise ValueError(
            f"The name of an image must have no control characters nor begin with a period, got {name!r}."
        )
    return name


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that appears only when it is complete."""
    temporary = _temporary(path)
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Writes a folder that appears only when `fill`, which gets an empty one, has returned."""
    with new_folder(path) as folder:
        fill(folder)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
