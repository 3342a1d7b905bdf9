"""The table of generation speeds: what is measured, and how it reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationMixin

from hfgen import GPTForCausalLM
from training.tools import generation
from training.tools.generation import BLOCK, MATRICES, OURS, REFERENCE, WITHOUT, Shape, build_models, measure, table
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


def test_figures_are_written_and_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 256 tokens in 1 second by one model and in a quarter of it by the other."""
    tasks: list[Any] = []
    rows = {REFERENCE: [1.0, 2.0, 1.0], WITHOUT: [0.5, 0.5, 0.5], OURS: [0.25, 0.25, 0.25],
            MATRICES: [0.2, 0.1, 0.2], BLOCK: [0.15, 0.1, 0.15]}  # fmt: skip
    measured = {"parameters": {REFERENCE: 11, OURS: 10}, "threads": 2, "bytes": 40,
                "seconds": {"1": rows, "32": rows}}  # fmt: skip

    def run_task(module: str, task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        tasks.append((module, task["tokens"], environment))
        return measured

    monkeypatch.setattr(generation, "run_task", run_task)
    for words in ([], ["--avx2"]):
        monkeypatch.setattr("sys.argv", ["generation.py", *words, "--figures", str(tmp_path / "figures.json")])
        generation.main()

    assert tasks == [("training.tools.generation", 256, {}), ("training.tools.generation", 256, AVX2)]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["columns"].keys() == {"all instructions", "AVX2 alone"}
    assert table(figures) in capsys.readouterr().out
    assert "| 1 | 256 | 512 | 1,024 | 4.00 (4.00 to 8.00) | 80% | 60% |" in table(figures)
    assert "| 32 | 8,192 | 16,384 | 32,768 | 4.00 (4.00 to 8.00) |  |  |" in table(figures)


def test_more_tokens_than_the_context_holds_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["generation.py", "--tokens", "505"])
    with pytest.raises(SystemExit):
        generation.main()
    assert "--tokens must be from 1 to 504, got 505" in capsys.readouterr().err
