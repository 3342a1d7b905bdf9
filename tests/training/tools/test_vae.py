"""The table of the VAEs: what is run for each row, what is kept, and how it reads. Trainings are played.

What all such tables have in common is tested here, too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from training.tools import vae
from training.tools.measuring import rows
from training.tools.measuring.rows import Tool, own_column, read_trials
from training.tools.measuring.runs import AVX2
from training.tools.measuring.table import table, trials_table
from training.tools.vae_rows.figures import bits_of, figure


Call = tuple[str, Path, list[str], dict[str, str]]


def played(nll: float, **more: Any) -> dict[str, Any]:
    """A run as `run_recipe` returns it."""
    run = {"metrics": {"nll": nll, "elbo": -nll - 4}, "metrics_details": {"nll_standard_error": 0.03}, "flags": [],
           "seconds": 301.0, "seconds_trained": 240.0, "examples_seen": 480_000, "num_parameters": 1000}  # fmt: skip
    return {**run, **more}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The recipes that were run, instead of running them; the NLL is 90 plus the number of the run."""
    found: list[Call] = []

    def run_recipe(recipe: str, output_dir: Path, flags: list[str], environment: dict[str, str]) -> dict[str, Any]:
        found.append((recipe, output_dir, flags, environment))
        return played(90.0 + len(found), flags=flags)

    set_run_recipe(monkeypatch, run_recipe)
    return found


def set_run_recipe(monkeypatch: pytest.MonkeyPatch, run_recipe: Any) -> None:
    for module in (rows, vae):
        monkeypatch.setattr(module, "run_recipe", run_recipe)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The modules that were run in processes of their own, their tasks, and how."""
    found: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    def run_task(module: str, task: dict[str, Any], python: Any = None, environment: Any = None) -> dict[str, Any]:
        found.append((module, task, {"python": python, "environment": environment}))
        if module.endswith("bare_vae"):
            return {"images_per_second": 1000.0 * len(found), "num_parameters": 1000}
        return {"metrics": {"nll": 97.0}, "metrics_details": {}, "seconds_trained": task["seconds"]}

    monkeypatch.setattr(vae, "run_task", run_task)
    return found


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *words: str) -> dict[str, Any]:
    """Runs the command; returns what it wrote."""
    monkeypatch.setattr("sys.argv", ["vae.py", *words, "--figures", str(path)])
    vae.main()
    return json.loads(path.read_text())


def test_recipe_is_run_unchanged_once_for_each_seed(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = run(monkeypatch, tmp_path / "vae.json", "plain", "--seeds", "0", "3")
    assert [(recipe, flags, environment) for recipe, _, flags, environment in calls] == [
        ("vae-binarized-mnist", [], {}), ("vae-binarized-mnist", ["--seed", "3"], {})]  # fmt: skip
    assert len({folder for _, folder, _, _ in calls}) == 2
    runs = found["rows"]["plain"]["VAE"][own_column()]
    assert [(one["seed"], one["metrics"]["nll"]) for one in runs] == [(0, 91.0), (3, 92.0)]
    assert found["machine"]["cores"] >= 1 and "torch" in found["machine"]["versions"]


def test_seconds_and_other_flags_reach_every_training(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(
        monkeypatch, tmp_path / "vae.json", "dynamic", "ladder-hour", "--seconds", "5", "--nll_samples", "10", "--avx2"
    )
    assert [recipe for recipe, *_ in calls] == [vae.PLAIN, vae.LADDER, vae.LADDER]
    for _, _, flags, environment in calls:
        assert flags[-4:] == ["--max_train_seconds", "5", "--nll_samples", "10"] and environment == AVX2
    for _, _, flags, _ in calls[:2]:
        assert "--dynamic_binarization" in flags and "train[:50000]" in flags
    assert calls[2][2][:2] == ["--max_train_seconds", "3600"]  # the last of several values counts


def test_new_figures_replace_those_of_the_same_line_and_column(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vae.json"
    before = run(monkeypatch, path, "plain", "ladder")
    run(monkeypatch, path, "plain", "--avx2")
    after = run(monkeypatch, path, "plain")
    assert after["rows"]["ladder"] == before["rows"]["ladder"]
    columns = after["rows"]["plain"]["VAE"]
    assert [columns[name][0]["metrics"]["nll"] for name in (own_column(), "AVX2 alone")] == [94.0, 93.0]
    printed = capsys.readouterr().out.splitlines()[-4:]
    assert printed[0] == f"| | {own_column()} | AVX2 alone |"
    assert printed[2].startswith("| VAE | NLL **94.00** ± 0.03 nats; 301 s in all, 240 s of training | NLL **93.00**")
    assert printed[3].startswith("| ladder VAE | NLL **92.00**") and printed[3].endswith("|  |")


def test_row_that_fails_is_named_and_the_others_are_kept(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play = rows.run_recipe

    def run_recipe(recipe: str, *how: Any) -> dict[str, Any]:
        if recipe == vae.LADDER:
            raise ValueError("no such recipe")
        return play(recipe, *how)

    set_run_recipe(monkeypatch, run_recipe)
    with pytest.raises(SystemExit, match=r"^ladder: no such recipe\ndynamic: no such recipe$"):
        run(monkeypatch, tmp_path / "vae.json", "ladder", "plain", "dynamic")
    kept = json.loads((tmp_path / "vae.json").read_text())["rows"]
    assert list(kept) == ["plain", "dynamic"] and list(kept["dynamic"]) == ["VAE, dynamic binarization"]


def test_unknown_row_is_refused_before_anything_runs(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"plain, ladder.* got plane"):
        run(monkeypatch, tmp_path / "vae.json", "plain", "plane")
    assert calls == []


def test_pythae_gets_the_time_that_the_plain_recipe_took_in_all(
    calls: list[Call], tasks: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, python = tmp_path / "vae.json", ["--pythae_python", "/somewhere/python"]
    with pytest.raises(SystemExit, match="pythae: row plain must be measured first"):
        monkeypatch.setattr("sys.argv", ["vae.py", "pythae", "--figures", str(path), *python])
        vae.main()
    found = run(monkeypatch, path, "plain", "pythae", "--nll_samples", "50", "--avx2", *python)
    assert [task["name"] for _, task, _ in tasks] == ["VAE", "IWAE", "HVAE"]
    for module, task, how in tasks:
        assert module == "training.tools.vae_rows.pythae_vae" and how == {
            "python": Path("/somewhere/python"),
            "environment": AVX2,
        }
        assert (task["seconds"], task["nll_samples"], task["nll_seconds"]) == (301.0, 50, 30)
        assert task["data"]["dataset_name"] == "binarized-mnist"
    (one,) = found["rows"]["pythae"]["pythae's IWAE"]["AVX2 alone"]
    assert one["seed"] == 0 and figure([one]) == "NLL **97.00** nats; 301 s of training"


def test_throughput_takes_turns_and_compares_pairs(
    calls: list[Call], tasks: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = run(monkeypatch, tmp_path / "vae.json", "throughput", "--repeats", "3", "--seconds", "7")
    runs = found["rows"]["throughput"]["VAE, images/s"][own_column()]
    # 480,000 images in 240 s, against 1,000, 2,000 and 3,000 images/s
    assert [one["ratio"] for one in runs] == pytest.approx([2, 1, 2 / 3])
    assert figure(runs) == "**1.00** times the bare loop (0.67 to 2.00), 2,000 to 2,000"
    assert {task["seconds"] for _, task, _ in tasks} == {7.0}
    assert all(isinstance(task["learning_rate"], float) for _, task, _ in tasks)  # YAML reads 6e-3 as a word
    assert all(flags[:2] == ["--max_train_seconds", "7"] for _, _, flags, _ in calls)
    runs[0]["num_parameters"] = 1500
    assert "bare loop, which has 500 weights less (" in figure(runs)


def test_bits_per_dimension_follow_from_the_nll_or_else_the_bound() -> None:
    assert bits_of({"nll": 3072 * math.log(2), "elbo": -9999.0}) == {
        "bits_per_dim": pytest.approx(1),
        "bits_from": "nll",
    }
    bound = bits_of({"nll": None, "elbo": -3072 * 4 * math.log(2)})
    assert bound == {"bits_per_dim": pytest.approx(4), "bits_from": "elbo"}
    assert figure([{**played(1.0), **bound}]).startswith("at most **4.00** bits per dimension; 301 s")
    with pytest.raises(ValueError, match="must have nll or elbo"):
        bits_of({"mse": 1.0})


def test_several_seeds_are_averaged_and_show_their_range() -> None:
    runs = [played(90.0), played(92.0), played(91.0)]
    # The standard error of a mean of three
    assert figure(runs).startswith(f"NLL **91.00** ± {0.03 / math.sqrt(3):.2f} nats (90.00 to 92.00); ")
    assert table({}, ["plain"], figure).splitlines() == ["| |", "|---|"]


def test_trials_are_run_with_their_flags_and_compared_seed_by_seed(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trials = tmp_path / "trials.yaml"
    trials.write_text(
        "- {name: base, recipe: vae-binarized-mnist, flags: {max_train_steps: 9}, change: none, prediction: 93, "
        "seeds: [0, 1]}\n"
        "- {name: wide, recipe: vae-binarized-mnist, flags: {hidden_channels: [8, 16], max_train_steps: 9}, "
        "change: twice as wide, prediction: -1 nat, seeds: [0, 1], against: base}\n"
    )
    monkeypatch.setattr(Tool, "trials", trials)
    found = run(monkeypatch, tmp_path / "vae.json", "--trials")
    assert [flags for _, _, flags, _ in calls] == [
        ["--max_train_steps", "9"],
        ["--max_train_steps", "9", "--seed", "1"],
        ["--hidden_channels", "8", "16", "--max_train_steps", "9"],
        ["--hidden_channels", "8", "16", "--max_train_steps", "9", "--seed", "1"],
    ]
    wide = found["trials"]["wide"][own_column()]
    assert wide["prediction"] == "-1 nat" and [one["seed"] for one in wide["runs"]] == [0, 1]
    # 93 and 94 against 91 and 92
    line = trials_table(found, figure, "nll").splitlines()[3]
    assert line.startswith("| wide | twice as wide | -1 nat | NLL **93.50**") and "; NLL +2.00 ± 0.00 | 0, 1 |" in line


def test_trials_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    entry = "- {name: a, recipe: r, flags: {}, change: c, prediction: p}\n"
    path = tmp_path / "trials.yaml"
    path.write_text(entry * 2)
    with pytest.raises(ValueError, match="'a' again"):
        read_trials(path)
    path.write_text(entry.replace("p}", "p, against: b}"))
    with pytest.raises(ValueError, match="against must be a trial"):
        read_trials(path)
    assert set(read_trials(vae.TOOL.trials)) >= {"classic"}
