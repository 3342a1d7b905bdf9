"""How fast does a GPT write, beside GPT2LMHeadModel of transformers at the same shape?

    python training/tools/generation.py           # about a minute, on a machine that does nothing else
    python training/tools/generation.py --avx2    # as without AVX-512 and bf16

Both have random weights, 10 million of them, and draw as many tokens with `generate` and the same settings. They take
turns, also with hfgen's model in the loop of transformers, and with a sum over all weights that a token needs: matrix
after matrix, and over as many bytes in one block. One text cannot be written faster than its weights are read.

It prints the table and writes generation.json beside this file: new figures replace those of the same column.
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
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from .measuring.runs import AVX2, describe, run_task
from .measuring.table import COLUMNS


FIGURES = Path(__file__).with_suffix(".json")
MODULE = "training.tools.generation"
REFERENCE, WITHOUT, OURS = "GPT2LMHeadModel", "hfgen, transformers' loop", "hfgen"
MATRICES, BLOCK = "sum of each matrix", "sum of one block"
PROMPT = 8  # tokens


@dataclass(frozen=True)
class Shape:
    """Of both models; the defaults are those of nanoGPT's model of Shakespeare's characters, with a longer context."""

    vocab_size: int = 65
    context: int = 512
    width: int = 384
    layers: int = 6
    heads: int = 6


def build_models(shape: Shape) -> tuple[Any, Any]:
    """GPT2LMHeadModel and hfgen's default architecture, with random weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hfgen import GPTConfig, GPTForCausalLM

    torch.manual_seed(0)
    reference = GPT2Config(vocab_size=shape.vocab_size, n_positions=shape.context, n_embd=shape.width,
                           n_layer=shape.layers, n_head=shape.heads, bos_token_id=None, eos_token_id=None)  # fmt: skip
    ours = GPTConfig(vocab_size=shape.vocab_size, max_position_embeddings=shape.context, hidden_size=shape.width,
                     num_hidden_layers=shape.layers, num_attention_heads=shape.heads)  # fmt: skip
    return GPT2LMHeadModel(reference).eval(), GPTForCausalLM(ours).eval()


def measure(batch_sizes: list[int], tokens: int, repeats: int, shape: dict[str, int]) -> dict[str, Any]:
    """What the child process measures.

    Args:
        batch_sizes: numbers of texts that are written together.
        tokens: new ones of each text.
        repeats: of each measurement, in turns.
        shape: fields of [`Shape`].

    Returns:
        parameters, by the model's name; threads of torch; bytes that are summed; and seconds of `tokens` steps, by
        batch size and then by what was measured.
    """
    import torch

    reference, ours = build_models(Shape(**shape))
    matrices = [p.detach() for p in ours.parameters() if p is not ours.model.embed_tokens.weight]
    block = torch.cat([matrix.flatten() for matrix in matrices])
    seconds: dict[str, dict[str, list[float]]] = {}
    for batch in batch_sizes:
        turns: dict[str, Callable[[int], Any]] = {
            REFERENCE: partial(_write, reference, batch),
            OURS: partial(_write, ours, batch),
            WITHOUT: partial(_write_by_transformers, ours, batch),
            MATRICES: lambda count: [matrix.sum() for _ in range(count) for matrix in matrices],
            BLOCK: lambda count: [block.sum() for _ in range(count)],
        }
        found = seconds[str(batch)] = {name: [] for name in turns}
        for run in turns.values():
            run(3)
        for _ in range(repeats):
            for name, run in turns.items():
                started = time.perf_counter()
                run(tokens)
                found[name].append(time.perf_counter() - started)
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in
                  ((REFERENCE, reference), (OURS, ours))}  # fmt: skip
    return {"parameters": parameters, "threads": torch.get_num_threads(), "bytes": block.nbytes,
            "seconds": seconds}  # fmt: skip


def _write(model: Any, batch: int, tokens: int) -> None:
    import torch

    prompt = torch.zeros(batch, PROMPT, dtype=torch.long)
    written = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=True, pad_token_id=0
    )
    if written.shape != (batch, PROMPT + tokens):
        raise ValueError(f"{tokens} tokens must be written after {PROMPT}, got {tuple(written.shape)}.")


def _write_by_transformers(model: Any, batch: int, tokens: int) -> None:
    with transformers_loop(model):
        _write(model, batch, tokens)


@contextmanager
def transformers_loop(model: Any) -> Iterator[None]:
    """Lets `generate` use the loop over tokens of transformers itself."""
    from transformers import GenerationMixin

    usual = type(model)
    model.__class__ = type(usual.__name__, (usual,), {"_sample": GenerationMixin._sample})
    try:
        yield
    finally:
        model.__class__ = usual


def table(figures: dict[str, Any]) -> str:
    """The figures in Markdown: medians, and the ranges of the ratios of measurements that were made in turn."""
    lines = []
    for column, found in figures["columns"].items():
        machine, settings = found["machine"], found["settings"]
        lines += [f"{machine['hardware']}, {column}; {found['parameters'][OURS]:,} parameters, {settings['tokens']} "
                  f"new tokens, fp32; tokens per second, medians of {settings['repeats']}", "",
                  f"| texts | {REFERENCE} | {WITHOUT} | {OURS} | times {REFERENCE} | share of the speed of reading "
                  "each matrix | one block |", "|---|---|---|---|---|---|---|"]  # fmt: skip
        for batch, seconds in found["seconds"].items():
            rates = [f"{int(batch) * settings['tokens'] / statistics.median(seconds[name]):,.0f}"
                     for name in (REFERENCE, WITHOUT, OURS)]  # fmt: skip
            ratios = [their / own for their, own in zip(seconds[REFERENCE], seconds[OURS])]
            times = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            reading = [statistics.median(seconds[name]) for name in (MATRICES, BLOCK)]
            ours = statistics.median(seconds[OURS])
            shares = [f"{once / ours:.0%}" if batch == "1" else "" for once in reading]
            shown = [batch, *rates, times, *shares]
            lines.append(f"| {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32], help="texts written together")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens of each text (default: 256)")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement (default: 5)")
    parser.add_argument("--avx2", action="store_true", help="use no instructions beyond AVX2, and so none for bf16")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="file of the figures (default: generation.json)")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(measure(**args.child)))
        return
    shape = asdict(Shape())
    if not 1 <= args.tokens <= shape["context"] - PROMPT:
        parser.error(f"--tokens must be from 1 to {shape['context'] - PROMPT}, got {args.tokens}")
    settings = {"batch_sizes": args.batch_sizes, "tokens": args.tokens, "repeats": args.repeats, "shape": shape}
    found = run_task(MODULE, settings, environment=AVX2 if args.avx2 else {})
    figures = json.loads(args.figures.read_text(encoding="utf-8")) if args.figures.is_file() else {"columns": {}}
    figures["columns"][COLUMNS[args.avx2]] = {"machine": describe(), "settings": settings, **found}
    args.figures.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
