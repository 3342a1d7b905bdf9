"""The table of generation speeds: what is measured, and how it reads."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationMixin

from hfgen import GPTForCausalLM
from training.tools.gpt_rows import generation
from training.tools.gpt_rows.generation import (
    BLOCK,
    LINE,
    MATRICES,
    OURS,
    REFERENCE,
    WITHOUT,
    Shape,
    build_models,
    check,
    draw_generation,
    measure,
    measure_generation,
)  # fmt: skip
from training.tools.measuring.rows import Session
from training.tools.measuring.runs import AVX2


TINY = Shape(context=32, width=16, layers=2, heads=2)


def test_both_models_have_the_same_shape() -> None:
    """They differ by learned positions and biases, a few in a thousand."""
    counts = [sum(p.numel() for p in model.parameters()) for model in build_models(Shape())]
    assert counts[0] == pytest.approx(counts[1], rel=0.03) and counts[1] > 10e6


def test_each_is_measured_with_its_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[tuple[str, str]] = []
    for cls in (GPTForCausalLM, GenerationMixin):
        usual = cls._sample

        def recorded(self: Any, *arguments: Any, usual: Any = usual, name: str = cls.__name__, **named: Any) -> Any:
            loops.append((name, self.config.model_type))
            return usual(self, *arguments, **named)

        monkeypatch.setattr(cls, "_sample", recorded)

    found = measure([2], tokens=4, repeats=1, shape=asdict(TINY))

    one_round = [("GenerationMixin", "gpt2"), ("GPTForCausalLM", "hfgen_gpt"), ("GenerationMixin", "hfgen_gpt")]
    assert loops == 2 * one_round  # the first round warms up
    assert found["seconds"].keys() == {"2"}
    assert {name: len(seconds) for name, seconds in found["seconds"]["2"].items()} == dict.fromkeys(
        (REFERENCE, OURS, WITHOUT, MATRICES, BLOCK), 1
    )


def session(tokens: int = 256, column: str = "no bf16 tiles") -> Session:
    return Session(column, Path("runs"), {}, options=Namespace(tokens=tokens, batch_sizes=[1, 32], repeats=3))


def test_the_row_has_the_instructions_of_its_column_and_its_table_the_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 256 tokens in 1 second by one model and in a quarter of it by the other."""
    tasks: list[Any] = []
    seconds = {REFERENCE: [1.0, 2.0, 1.0], WITHOUT: [0.5, 0.5, 0.5], OURS: [0.25, 0.25, 0.25],
               MATRICES: [0.2, 0.1, 0.2], BLOCK: [0.15, 0.1, 0.15]}  # fmt: skip

    def run_task(module: str, task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        tasks.append((module, task["tokens"], environment))
        return {"parameters": {REFERENCE: 11, OURS: 10}, "threads": 2, "bytes": 40,
                "seconds": {"1": seconds, "32": seconds}}  # fmt: skip

    monkeypatch.setattr(generation, "run_task", run_task)
    columns = {}
    for column in ("no bf16 tiles", "AVX2 alone"):
        ((line, columns[column]),) = measure_generation(session(column=column), "generate")
        assert line == LINE

    module = "training.tools.gpt_rows.generation"
    assert tasks == [(module, 256, {}), (module, 256, AVX2)]
    shown = draw_generation("generate", {LINE: columns})
    assert shown.count("**generate**") == 2
    assert "| 1 | 256 | 512 | 1,024 | 4.00 (4.00 to 8.00) | 80% | 60% |" in shown
    assert "| 32 | 8,192 | 16,384 | 32,768 | 4.00 (4.00 to 8.00) |  |  |" in shown


def test_more_tokens_than_the_context_holds_are_refused() -> None:
    check(session(504))
    with pytest.raises(ValueError, match="--tokens must be from 1 to 504, got 505"):
        check(session(505))
