"""The tables of the GPTs: what is run for each row, what is kept, and how it reads. Trainings are played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.config.parser import parse
from training.config.scripts import SCRIPTS
from training.tools import gpt
from training.tools.gpt_rows import race
from training.tools.gpt_rows.figures import figure
from training.tools.gpt_rows.race import BARE, FLAGS, OURS, draw_race
from training.tools.measuring import rows
from training.tools.measuring.rows import own_column, read_trials
from training.tools.measuring.runs import AVX2, RECIPES, as_words


Call = tuple[str, Path, list[str], dict[str, str]]


def played(loss: float, **more: Any) -> dict[str, Any]:
    """A run as `run_recipe` returns it."""
    return {"metrics": {"loss": loss}, "metrics_details": {}, "flags": [], "seconds": 12.5, "seconds_trained": 6.0,
            "num_parameters": 130_000, **more}  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Call]:
    """The recipes that were run, instead of running them; the loss of seed 7 is above the target."""
    found: list[Call] = []

    def run_recipe(recipe: str, output_dir: Path, flags: list[str], environment: dict[str, str]) -> dict[str, Any]:
        found.append((recipe, output_dir, flags, environment))
        return played(1.95 if "7" in flags else 1.88)

    def run_task(module: str, task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        assert module.endswith("bare_gpt") and task["target"] == 1.89
        if task["seed"] == 9:
            raise ValueError("it must succeed, got exit status 1")
        return {"loss": 1.886, "seconds_of_start": 2.0, "seconds_trained": 120.0, "seconds_of_evaluation": 3.0,
                "seconds_to_target": 118.0 if task["seed"] else None, "num_parameters": 802_944}  # fmt: skip

    for module in (rows, race):
        monkeypatch.setattr(module, "run_recipe", run_recipe)
    monkeypatch.setattr(race, "run_task", run_task)
    monkeypatch.setattr(race, "text_path", lambda: tmp_path / "input.txt")
    return found


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *words: str) -> dict[str, Any]:
    """Runs the command; returns what it wrote."""
    monkeypatch.setattr("sys.argv", ["gpt.py", *words, "--figures", str(path)])
    gpt.main()
    return json.loads(path.read_text())


def test_the_race_is_run_by_seed_with_both_sets_of_instructions_and_shows_the_ratio(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = run(monkeypatch, tmp_path / "f.json", "race", "--both", "--seeds", "1", "2")["rows"]["race"]
    assert [call[3] for call in calls] == [{}, {}, AVX2, AVX2]
    assert calls[1][2] == [*FLAGS, "--seed", "2"] and calls[1][0] == "gpt-tiny-shakespeare"
    assert "runs-avx2" in calls[2][1].parts and "runs" in calls[1][1].parts
    columns = [own_column(), "AVX2 alone"]
    assert {line: list(found) for line, found in figures.items()} == {OURS: columns, BARE: columns}
    assert [run["seconds"] for run in figures[BARE]["AVX2 alone"]] == [125.0, 125.0]
    shown = capsys.readouterr().out
    assert shown.count("**10.0** times as long (10.0 to 10.0) to its end. It reaches 1.89 after 120.0 s.") == 2
    assert "| bare loop | 802,944 | 1.886 (1.886 to 1.886) | 125.0 (125.0 to 125.0) |" in shown


def test_no_ratio_is_shown_where_the_target_was_missed(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures = run(monkeypatch, tmp_path / "f.json", "race", "--seeds", "0", "7")["rows"]["race"]
    shown = draw_race("race", figures)
    assert f"{OURS} missed the target: seed 7 ended at 1.950." in shown and "times" not in shown
    only_0 = {line: {own_column(): columns[own_column()][:1]} for line, columns in figures.items()}
    assert "**10.0** times as long to its end. It does not reach 1.89 with every seed." in draw_race("r", only_0)


def test_what_was_measured_before_a_failure_is_kept(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="race: it must succeed"):
        run(monkeypatch, tmp_path / "f.json", "race", "three-minutes", "--seeds", "1", "9")
    found = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert [run["seed"] for run in found["race"][OURS][own_column()]] == [1, 9]
    assert [run["seed"] for run in found["race"][BARE][own_column()]] == [1]
    assert len(found["three-minutes"]["3 minutes, context 64"][own_column()]) == 2
    assert "bare loop takes **10.0** times" in draw_race("race", found["race"])


def test_the_cell_names_the_best_state() -> None:
    long = played(1.45, metrics_details={"published_step": 900}, seconds=1830.0, seconds_trained=1800.0)
    assert figure([long]) == (
        "**1.450** nats per character; 0.1 M parameters; 1830 s in all, 1800 s of training; the best state is that of "
        "step 900"
    )


def test_flags_of_rows_and_trials_are_flags_of_the_training(tmp_path: Path) -> None:
    trials = read_trials(gpt.TOOL.trials)
    flags = [("gpt-tiny-shakespeare", list(FLAGS)), *((t.recipe, list(t.flags)) for t in gpt.TRAININGS.values()),
             *((t.recipe, as_words(t.flags)) for t in trials.values())]  # fmt: skip
    for recipe, words in flags:
        path = RECIPES / f"{recipe}.yaml"
        assert yaml.safe_load(path.read_text())["dataset_path"] == "../shared/data/tiny_shakespeare/input.txt"
        parse(SCRIPTS["gpt"], [str(path), *words])
