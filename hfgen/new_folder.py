"""A folder that appears only once everything is in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(target: str | os.PathLike[str], argument: str = "OUT") -> Iterator[Path]:
    """Gives an empty folder of the same name to fill, which takes the place of the target at the end. After an error,
    nothing is left of it.

    Args:
        target: a new or empty folder. The folders above it are created.
        argument: what the target is called where the user gave it.

    Raises:
        ValueError: the target is neither new nor empty; raised before anything is written.
    """
    path = Path(target)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"{argument} must be a new or empty folder, got {str(target)!r}, which is not. Name another one."
        )
    path = path.resolve()
    home = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(home, ignore_errors=True)
    staging = home / path.name  # what is written may name its folder
    staging.mkdir(parents=True)
    try:
        yield staging
        if path.is_dir():
            path.rmdir()
        staging.rename(path)
    finally:
        shutil.rmtree(home, ignore_errors=True)
