"""The command of the Auto-Encoder's tables: its rows, its flags, and what it prints of all that was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from training.tools import autoencoder
from training.tools.autoencoder import MODEL_ROWS, ROWS, TOOL
from training.tools.autoencoder_rows.one_class import DATASETS
from training.tools.measuring.rows import own_column, read_trials, tables
from training.tools.measuring.runs import RECIPES


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that would be measured, instead of measuring them."""
    found: list[str] = []

    def measure(session: Any, row: str) -> Any:
        found.append(row)
        return iter(())

    for row in ROWS:
        monkeypatch.setitem(ROWS, row, measure)
    return found


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["autoencoder.py", *words])
    autoencoder.main()


def test_without_rows_all_are_measured(measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "--figures", str(tmp_path / "figures.json"))
    assert measured == [
        "start", "reduction", "one-class", "one-class-cifar", "codec-mnist", "codec-cifar10", "lossless-mnist",
        "lossless-binarized", "text",
    ]  # fmt: skip


def test_every_row_that_was_measured_is_printed_with_its_opponents() -> None:
    figures = json.loads(TOOL.file.with_suffix(".json").read_text(encoding="utf-8"))
    printed = tables(TOOL, figures)
    for row, lines in figures["rows"].items():
        assert row in ROWS
        if row in TOOL.tables:
            assert printed.count(f"**{row}**, {own_column()} (") == 1
        names = [] if row in DATASETS else lines
        assert all(f"\n| {name} |" in printed for name in names), row
    assert "| hfgen compress |" in printed and "| JPEG |" in printed and "| Auto-Encoder | **" in printed


def test_recipes_and_trials_of_the_tool_are_there() -> None:
    recipes = {path.stem for path in RECIPES.glob("*.yaml")}
    assert {"autoencoder-mnist", *MODEL_ROWS.values()} <= recipes
    assert {trial.recipe for trial in read_trials(TOOL.trials).values()} == {"autoencoder-mnist"}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--model", "{}"], "--model must come with one of the rows codec-mnist"),
        (["start", "--model", "{}"], r"got \['start'\]"),
        (["--trials", "--model", "{}"], "got trials"),
        (["codec-mnist", "text", "--model", "{}"], r"got \['codec-mnist', 'text'\]"),
        (["text", "--model", "{}", "--max_train_steps", "5"], "--model must come without flags of a training"),
        (["text", "--model", "{}", "--seconds", "5"], "--model must come without flags of a training"),
        (["text", "--model", "{}/nowhere"], "--model must be the folder of a model, got .*nowhere"),
        (
            ["reduction", "--classes", "8"],
            r"--classes must come with one-class or one-class-cifar, got \['reduction'\]",
        ),
    ],
)
def test_flags_that_do_not_fit_the_rows_are_refused_before_anything_runs(
    words: list[str],
    message: str,
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *(word.format(tmp_path) for word in words))
    error = " ".join(capsys.readouterr().err.split())
    assert measured == []
    assert re.search(message, error), error
