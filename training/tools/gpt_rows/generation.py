"""How fast does a GPT write, beside GPT2LMHeadModel of transformers at the same shape?

Both have random weights, 10 million of them, and draw as many tokens with `generate` and the same settings. They take
turns, also with hfgen's model in the loop of transformers, and with a sum over all weights that a token needs: matrix
after matrix, and over as many bytes in one block. One text cannot be written faster than its weights are read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ..measuring.rows import Lines, Session
from ..measuring.runs import answer_task, describe, run_task
from ..measuring.table import RowFigures, Runs, heading, markdown, tables_by_column


MODULE = "training.tools.gpt_rows.generation"
LINE = "tokens per second"
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


def check(session: Session) -> None:
    """Raises ValueError if --tokens are more than the context holds."""
    most, tokens = Shape().context - PROMPT, session.options.tokens
    if not 1 <= tokens <= most:
        raise ValueError(f"--tokens must be from 1 to {most}, got {tokens}")


def measure_generation(session: Session, row: str) -> Lines:
    """Measures in a process of its own, whose instructions are those of the column."""
    options = session.options
    settings = {"batch_sizes": options.batch_sizes, "tokens": options.tokens, "repeats": options.repeats,
                "shape": asdict(Shape())}  # fmt: skip
    yield LINE, [{"machine": describe(), "settings": settings,
                  **run_task(MODULE, settings, environment=session.environment)}]  # fmt: skip


def draw_generation(row: str, figures: RowFigures) -> str:
    """The table of the speeds: medians, and the ranges of the ratios of measurements that were made in turn."""
    return tables_by_column(figures, lambda column, runs: _draw(row, column, runs[LINE]))


def _draw(row: str, column: str, runs: Runs) -> str:
    (found,) = runs
    tokens, repeats = found["settings"]["tokens"], found["settings"]["repeats"]
    size = f"{found['parameters'][OURS]:,} parameters"
    what = f"tokens per second, {size}, {tokens} new tokens, fp32, medians of {repeats}"
    header = ["texts", REFERENCE, WITHOUT, OURS, f"times {REFERENCE}", "share of the speed of reading each matrix",
              "one block"]  # fmt: skip
    lines = [_line(int(batch), tokens, seconds) for batch, seconds in found["seconds"].items()]
    return "\n".join([heading(row, column, found, what), "", markdown(header, lines)])


def _line(batch: int, tokens: int, seconds: dict[str, list[float]]) -> list[str]:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rates = [f"{batch * tokens / medians[name]:,.0f}" for name in (REFERENCE, WITHOUT, OURS)]
    ratios = [theirs / ours for theirs, ours in zip(seconds[REFERENCE], seconds[OURS])]
    times = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    shares = [f"{medians[name] / medians[OURS]:.0%}" if batch == 1 else "" for name in (MATRICES, BLOCK)]
    return [str(batch), *rates, times, *shares]


if __name__ == "__main__":
    answer_task(__doc__, lambda task: measure(**task))
