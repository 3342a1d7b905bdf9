"""The row `text`: how small does `hfgen compress` make a text, beside the programs that everybody has?

The text is the tenth of tiny Shakespeare that the recipe holds out. Sizes are those of whole files, headers included.
The model is not counted, and neither is a program. What general compressors gain from the other nine tenths, which the
model was trained on, is measured as well: the size of everything minus the size of the nine tenths.

This module measures a model, too, in a process of its own.
"""

from __future__ import annotations

import bz2
import importlib.util
import lzma
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.compression import compress, decompress
from hfgen.compression import describe as describe_file

from ...config.flags import DataArguments
from ...data.text import load_text
from ..measuring.rows import Lines, Session, data_of, read_recipe
from ..measuring.runs import answer_task
from ..measuring.table import RowFigures, Runs, heading, markdown, tables_by_column
from .models import mean_of, measure_models, measured_here, trained_for


RECIPES = {"text": "gpt-tiny-shakespeare"}
MODULE = "training.tools.autoencoder_rows.texts"
GPT = "GPT, hfgen compress"


@dataclass(frozen=True)
class Texts:
    """A text in the two parts of a recipe, UTF-8."""

    training: bytes
    held_out: bytes


def measure_text(session: Session, row: str) -> Lines:
    """Trains the recipe, and measures the file of its held-out text, and those of general compressors."""
    texts = load_texts(RECIPES[row])
    characters = len(texts.held_out.decode("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "text.txt")
        file.write_bytes(texts.held_out)
        runs = measure_models(session, row, RECIPES[row], MODULE, file=str(file))
    for run in runs:
        run["measured"]["characters"] = characters
    yield GPT, runs
    for name, found in measure_general(texts).items():
        yield name, [measured_here({**found, "characters": characters})]


def load_texts(recipe: str) -> Texts:
    """The text of a recipe, cut where its training cuts it."""
    found = load_text(DataArguments(**data_of(recipe)), 0, read_recipe(recipe)["max_position_embeddings"])
    parts = (found.train.tokens, found.eval_tokens)  # type: ignore[attr-defined]
    return Texts(*(found.tokenizer.decode(tokens[:].tolist()).encode("utf-8") for tokens in parts))


def general_compressors() -> dict[str, Callable[[bytes], bytes]]:
    """The strongest setting of each program that there is here, by its name."""
    found: dict[str, Callable[[bytes], bytes]] = {
        "xz -9e": lambda content: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
        "bz2 -9": lambda content: bz2.compress(content, 9),
    }
    if sys.version_info >= (3, 14):
        found["zstd -19"] = lambda content: importlib.import_module("compression.zstd").compress(content, 19)
    elif importlib.util.find_spec("zstandard"):
        zstandard = importlib.import_module("zstandard")
        found["zstd -19"] = lambda content: zstandard.ZstdCompressor(level=19).compress(content)
    elif program := shutil.which("zstd"):
        found["zstd -19"] = lambda content: subprocess.run([program, "-19", "-c"], input=content, check=True,
                                                           capture_output=True).stdout  # fmt: skip
    else:
        print("There is no zstd here, so it is left out: install the program, or `pip install zstandard`.")
    return found


def measure_general(texts: Texts) -> dict[str, dict[str, Any]]:
    """Bytes by each program, of the held-out text alone and after the training text."""
    found = {}
    for name, compressor in general_compressors().items():
        started = time.perf_counter()
        size = len(compressor(texts.held_out))
        found[name] = {"size": size, "seconds_to_compress": time.perf_counter() - started}
        if not name.startswith("bz2"):  # its blocks end before
            after = len(compressor(texts.training + texts.held_out)) - len(compressor(texts.training))
            found[f"{name}, after the training text"] = {"size": after}
    return found


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """What the process measures: the `model` on a `file`. Its seconds count the model's loading, not that of torch.

    Raises:
        ValueError: the text did not come back.
    """
    model, file = task["model"], Path(task["file"])
    with tempfile.TemporaryDirectory() as folder:
        packed, again = Path(folder, "text.hfz"), Path(folder, "text.txt")
        started = time.perf_counter()
        compress(file, packed, model)
        between = time.perf_counter()
        decompress(packed, again, model)
        seconds = {"seconds_to_compress": between - started, "seconds_to_decompress": time.perf_counter() - between}
        if again.read_bytes() != file.read_bytes():
            raise ValueError(f"The decompressed text must be {file}, got another.")
        content = describe_file(packed)
    return {"size": content["size"], **seconds, "streams": content["streams"], "kept": content["kept"]}


def table(row: str, figures: RowFigures) -> str:
    """The row as tables, with how many times the bytes of the GPT the others take."""

    def draw(column: str, lines: dict[str, Runs]) -> str:
        first = next(iter(lines.values()))[0]
        ours = lines.get(GPT, [])
        what = f"{first['measured']['characters']:,} characters of tiny Shakespeare that were held out"
        header = ["", "bytes", "bits per character", "times the GPT's", "characters/s, compress", "decompress"]
        cells = [[name, *_cells(runs, ours)] for name, runs in lines.items()]
        return f"{heading(row, column, first, what + trained_for(ours))}\n\n{markdown(header, cells)}"

    return tables_by_column(figures, draw)


def _cells(runs: Runs, ours: Runs) -> list[str]:
    characters, size = runs[0]["measured"]["characters"], mean_of(runs, "size")
    times = f"{size / mean_of(ours, 'size'):.2f}" if ours else ""
    speeds = [
        f"{characters / mean_of(runs, name):,.0f}" if name in runs[0]["measured"] else ""
        for name in ("seconds_to_compress", "seconds_to_decompress")
    ]
    return [f"{size:,.0f}", f"{8 * size / characters:.3f}", times, *speeds]


if __name__ == "__main__":
    answer_task(__doc__, measure)
