"""How small does `hfgen compress` make a text, beside the programs that everybody has?

    python training/tools/compression.py                                    # trains the recipe, as a user would
    python training/tools/compression.py --model runs/gpt-tiny-shakespeare  # with a model that the recipe trained
    python training/tools/compression.py --avx2                             # as without AVX-512 and bf16

The text is the tenth of tiny Shakespeare that the recipe holds out. Sizes are those of whole files, headers included.
The model is not counted, and neither is a program. What general compressors gain from the other nine tenths, which the
model was trained on, is measured as well: the size of everything minus the size of the nine tenths.

It prints the table and writes compression.json beside this file: new figures replace those of the same column.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


if __name__ == "__main__" and not __package__:  # started as a file: run it again as a module of its package
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    runpy.run_module(f"training.tools.{Path(__file__).stem}", run_name="__main__", alter_sys=True)
    sys.exit()

import argparse
import bz2
import importlib.util
import json
import lzma
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from .measured_runs import AVX2, RECIPES, ROOT, describe, run_recipe, run_task
from .measured_table import COLUMNS


FIGURES = Path(__file__).with_suffix(".json")
RECIPE = "gpt-tiny-shakespeare"
MODULE = "training.tools.compression"
GPT = "GPT, hfgen compress"


@dataclass(frozen=True)
class Texts:
    """A text in the two parts of a recipe, UTF-8."""

    training: bytes
    held_out: bytes


def load_texts(recipe: str) -> Texts:
    """The text of a recipe, cut where its training cuts it."""
    from ..config.flags import DataArguments
    from ..data.text import load_text

    flags = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))
    data = {name: value for name, value in flags.items() if name.startswith("dataset_")}
    found = load_text(DataArguments(**data), 0, flags["max_position_embeddings"])
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
    return found


def measure_general(texts: Texts) -> dict[str, dict[str, Any]]:
    """Bytes and bits per character by each program, of the held-out text alone and after the training text."""
    found = {}
    for name, compress in general_compressors().items():
        started = time.perf_counter()
        size = len(compress(texts.held_out))
        found[name] = {"size": size, "seconds_to_compress": time.perf_counter() - started}
        if not name.startswith("bz2"):  # its blocks end before
            after = len(compress(texts.training + texts.held_out)) - len(compress(texts.training))
            found[f"{name}, after the training text"] = {"size": after}
    return found


def measure_gpt(model: Path, text: bytes, environment: dict[str, str]) -> dict[str, Any]:
    """Compresses and decompresses in a process of its own, limited to some instructions.

    Raises:
        ValueError: it failed, or the text did not come back.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "text.txt")
        file.write_bytes(text)
        return run_task(MODULE, {"model": str(model.resolve()), "file": str(file)}, environment=environment)


def compress_and_decompress(model: str, file: str) -> dict[str, Any]:
    """What the child process measures; its seconds count the model's loading, not that of torch.

    Raises:
        ValueError: the text did not come back.
    """
    from hfgen.compression import compress, decompress
    from hfgen.compression import describe as describe_file

    packed, again = f"{file}.hfz", f"{file}.again"
    started = time.perf_counter()
    compress(file, packed, model)
    between = time.perf_counter()
    decompress(packed, again, model)
    seconds = {"seconds_to_compress": between - started, "seconds_to_decompress": time.perf_counter() - between}
    if Path(again).read_bytes() != Path(file).read_bytes():
        raise ValueError(f"The decompressed text must be {file}, got another.")
    content = describe_file(packed)
    return {"size": content["size"], **seconds, "streams": content["streams"], "kept": content["kept"]}


def table(figures: dict[str, Any]) -> str:
    """The figures in Markdown, and how many times the bytes of the GPT the others take."""
    lines = []
    for column, found in figures["columns"].items():
        characters, rows = found["characters"], found["rows"]
        lines += [f"{found['machine']['hardware']}, {found['machine']['cores']} cores, {column}; "
                  f"{characters:,} characters of tiny Shakespeare that were held out", "",
                  "| | bytes | bits per character | times the GPT's | characters/s, compress | decompress |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for name, row in rows.items():
            speeds = [row.get(f"seconds_to_{way}") for way in ("compress", "decompress")]
            shown = [f"{characters / seconds:,.0f}" if seconds else "" for seconds in speeds]
            bits, times = 8 * row["size"] / characters, row["size"] / rows[GPT]["size"]
            lines.append(f"| {name} | {row['size']:,} | {bits:.3f} | {times:.2f} | {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, help=f"folder of a model that {RECIPE} trained (default: train one)")
    parser.add_argument("--avx2", action="store_true", help="use no instructions beyond AVX2, and so none for bf16")
    parser.add_argument(
        "--figures", type=Path, default=FIGURES, help="file of the figures (default: compression.json)"
    )
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args, flags = parser.parse_known_args()
    if args.child is not None:
        print(json.dumps(compress_and_decompress(**args.child)))
        return
    if args.model is not None and flags:
        parser.error(f"without a training, there must be no flags for it, got {' '.join(flags)}")
    environment = AVX2 if args.avx2 else {}
    texts = load_texts(RECIPE)
    model, training = args.model, None
    if model is None:
        model = ROOT / ("runs-avx2" if args.avx2 else "runs") / RECIPE
        training = run_recipe(RECIPE, model, flags, environment)
    rows = {GPT: measure_gpt(model, texts.held_out, environment), **measure_general(texts)}
    figures = json.loads(args.figures.read_text(encoding="utf-8")) if args.figures.is_file() else {"columns": {}}
    figures["columns"][COLUMNS[args.avx2]] = {
        "machine": describe(),
        "characters": len(texts.held_out.decode("utf-8")),
        "training": training,
        "rows": rows,
    }
    args.figures.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
