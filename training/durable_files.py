"""Files that survive a power cut: JSON that is written and flushed, folders that are flushed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Writes JSON and flushes it to the disk.

    Raises:
        ValueError: the content holds NaN or infinity, which are not valid JSON.
    """
    with open(path, "w", encoding="utf-8") as file:
        file.write(to_json(content))
        file.flush()
        os.fsync(file.fileno())


def to_json(content: Any) -> str:
    """Returns the text that [`write_json`] writes."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def flush(path: Path) -> None:
    """Flushes the content of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
