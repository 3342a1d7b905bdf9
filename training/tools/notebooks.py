"""Runs the notebooks of `training/notebooks` from top to bottom and stores in them what they show.

    python -m training.tools.notebooks                  all of them, about a minute each
    python -m training.tools.notebooks gan vae          some

A notebook keeps the fingerprint of the code that its outputs come from, and tests compare it: outputs are never older
than the code above them. Nothing is written if a cell fails or warns.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image


NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
FINGERPRINT = "outputs_of"  # in the notebook's metadata
MOST_BYTES = 300_000
COLORS = 96  # of a figure; it halves its size, and nobody sees it
TIMEOUT = 1800  # seconds for a cell


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    parser = argparse.ArgumentParser(prog="notebooks", description="Runs notebooks and stores what they show.")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"some of {', '.join(names)} (default: all)")
    arguments = parser.parse_args(argv)
    if unknown := sorted({*arguments.names} - {*names}):
        parser.error(f"NAME must be one of {', '.join(names)}, got {', '.join(unknown)}.")
    failed = 0
    for name in arguments.names or names:
        try:
            size = store_outputs(NOTEBOOKS / f"{name}.ipynb")
        except Exception as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr)
        else:
            print(f"{name}: {size / 1000:.0f} KB", flush=True)
    return 1 if failed else 0


def store_outputs(path: Path) -> int:
    """Runs a notebook in a kernel of its own and writes it with its outputs; returns its size in bytes.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
        ValueError: a cell wrote to standard error, as warnings do, or the notebook is larger than `MOST_BYTES`.
    """
    notebook = nbformat.read(path, as_version=4)
    _execute(notebook)
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise ValueError(f"a cell must not write to standard error, got: {output.text}. Mend its cause.")
            _tidy(output)
        cell.outputs = _merged(cell.outputs)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}, FINGERPRINT: fingerprint(notebook)}
    )
    content = nbformat.writes(notebook) + "\n"
    if (size := len(content.encode())) > MOST_BYTES:
        raise ValueError(f"{path.name} must have at most {MOST_BYTES:,} bytes, got {size:,}. Draw smaller pictures.")
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)
    return size


def _execute(notebook: Any) -> None:
    """Runs the cells in a kernel that listens at sockets of the file system, and not at ports of the machine."""
    # Without ipywidgets, which nobody needs here, tqdm warns.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"}
    with tempfile.TemporaryDirectory() as sockets:
        manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        client = NotebookClient(notebook, km=manager, timeout=TIMEOUT, record_timing=False)
        client.execute(env=environment, cleanup_kc=True)


def code_cells(notebook: Any) -> list[Any]:
    """The cells with code, in their order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def fingerprint(notebook: Any) -> str:
    """The SHA-256 of the code, without spaces at ends of lines, in hexadecimal digits."""
    lines = [line.rstrip() for cell in code_cells(notebook) for line in cell.source.splitlines()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _merged(outputs: list[Any]) -> list[Any]:
    """Outputs with neighboring pieces of printed text in one; where they are cut is chance."""
    merged: list[Any] = []
    for output in outputs:
        if merged and output.output_type == merged[-1].output_type == "stream":
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def _tidy(output: Any) -> None:
    """Makes a picture small, and removes texts that differ each time, such as the address of an object."""
    data = output.get("data", {})
    if "image/png" in data:
        picture: Image.Image = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
        if picture.mode not in ("L", "P"):
            picture = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
        small = io.BytesIO()
        picture.save(small, "PNG", optimize=True)
        output["data"] = nbformat.from_dict({"image/png": base64.b64encode(small.getvalue()).decode() + "\n"})
    elif "text/html" in data:
        output["data"] = nbformat.from_dict({"text/html": data["text/html"]})


if __name__ == "__main__":
    sys.exit(main())
