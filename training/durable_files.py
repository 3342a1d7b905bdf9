"""Files that are whole after a power cut: JSON written and flushed, folders flushed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Writes JSON and flushes it to the disk. NaN and infinity, which JSON does not know, are refused."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(to_json(content))
        file.flush()
        os.fsync(file.fileno())


def to_json(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def flush(path: Path) -> None:
    """Flushes a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
