"""The rows on MNIST: what is run for each, and how it reads. Trainings are played, but for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.config.scripts import GAN_PRESETS
from training.tools import gan
from training.tools.gan_rows import on_mnist
from training.tools.gan_rows.figures import figure
from training.tools.gan_rows.on_mnist import measure_dcgan
from training.tools.measuring import rows
from training.tools.measuring.rows import Session, own_column
from training.tools.measuring.runs import AVX2


Call = tuple[list[str], Path, list[str], dict[str, str]]


def played(classifier_fid: float | None, **more: Any) -> dict[str, Any]:
    """A run as `run_training` returns it."""
    run = {"metrics": {"classifier_fid": classifier_fid, "coverage": 0.9}, "flags": [], "seconds": 640.0,
           "seconds_trained": 600.0, "examples_seen": 60_000, "num_parameters": 1000}  # fmt: skip
    return {**run, **more}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What was trained, instead of training it; the classifier FID is 4, 8, 12 and so on."""
    found: list[Call] = []

    def run_training(family: str, recipe: list[str], output_dir: Path, flags: list[str], env: Any) -> dict[str, Any]:
        assert family == "gan"
        found.append((recipe, output_dir, flags, env))
        return played(4.0 * len(found))

    def run_recipe(recipe: str, output_dir: Path, flags: list[str], environment: Any) -> dict[str, Any]:
        return {"recipe": recipe, **run_training("gan", [recipe], output_dir, flags, environment)}

    monkeypatch.setattr(on_mnist, "run_training", run_training)
    monkeypatch.setattr(rows, "run_recipe", run_recipe)
    return found


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Any]]:
    """Tasks of the bare loop and their environments, instead of doing them; its images per second are 50, 100, 150."""
    found: list[tuple[dict[str, Any], Any]] = []

    def run_task(module: str, task: dict[str, Any], environment: Any) -> dict[str, Any]:
        assert module == "training.tools.gan_rows.bare_dcgan"
        found.append((task, environment))
        speed = 50.0 * len(found)
        return {"metrics": {"classifier_fid": 20.0}, "images_per_second": speed, "seconds_trained": 600.0}

    monkeypatch.setattr(on_mnist, "run_task", run_task)
    return found


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *words: str) -> dict[str, Any]:
    """Runs the command; returns the rows that it wrote."""
    monkeypatch.setattr("sys.argv", ["gan.py", *words, "--figures", str(path)])
    gan.main()
    return json.loads(path.read_text())["rows"]


def test_default_settings_dcgan_and_bare_loop_are_trained_for_equal_time(
    calls: list[Call], tasks: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = run(monkeypatch, tmp_path / "gan.json", "default", "dcgan", "example", "--seeds", "0", "1", "--avx2")
    data = ["--dataset_name", "ylecun/mnist", "--dataset_path", "../shared/data/mnist"]
    length = ["--max_train_seconds", "600"]
    assert [flags for _, _, flags, _ in calls] == [
        [*data, *length],
        [*data, *length, "--seed", "1"],
        [*data, "--preset", "dcgan", *length],
        [*data, "--preset", "dcgan", *length, "--seed", "1"],
    ]
    assert all(recipe == [] and environment == AVX2 for recipe, _, _, environment in calls)
    assert len({folder for _, folder, _, _ in calls}) == 4
    for seed, (task, environment) in enumerate(tasks):
        assert (task["seconds"], task["seed"], task["quality_samples"]) == (600, seed, 10_000) and environment == AVX2
        assert task["data"]["dataset_path"] == "../shared/data/mnist"
    # 4 and 8 with the default settings, 12 and 16 with the preset, 20 in the bare loop
    assert figure(found["dcgan"]["preset dcgan"]["AVX2 alone"]) == (
        "classifier FID **14.00** (12.00 to 16.00), 2.33 times the 6.00 of the default settings, "
        "coverage 0.900 (0.900 to 0.900); 640 s in all, 600 s of training"
    )
    example = figure(found["example"]["DCGAN in a bare loop"]["AVX2 alone"])
    assert "**20.00** (20.00 to 20.00), 3.33 times the 6.00" in example and example.endswith("; 600 s of training")


def test_runs_of_another_length_are_not_set_beside_the_default(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "gan.json"
    run(monkeypatch, path, "default")
    monkeypatch.setattr(on_mnist, "run_training", lambda *_: played(9.0, seconds_trained=5.0))
    (one,) = run(monkeypatch, path, "dcgan", "--seconds", "5")["dcgan"]["preset dcgan"][own_column()]
    assert "default_fid" not in one and figure([one]).startswith("classifier FID **9.00**, coverage 0.900; ")


def test_seconds_and_other_flags_reach_every_training(
    calls: list[Call], tasks: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["--seconds", "5", "--dataset_name", "digits", "--max_eval_samples", "50", "--quality_samples", "40"]
    run(monkeypatch, tmp_path / "gan.json", "conditional", "presets", "example", *words)
    assert calls[0][0] == ["gan-mnist"] and calls[0][2][:4] == [
        "--max_train_seconds", "600", "--max_train_seconds", "5",  # the last one counts
    ]  # fmt: skip
    assert [flags[flags.index("--preset") + 1] for _, _, flags, _ in calls if "--preset" in flags] == [*GAN_PRESETS]
    for _, _, flags, _ in calls[1:]:
        assert flags[:2] == ["--dataset_name", "digits"] and flags[-6:] == words[2:]
        assert flags[flags.index("--max_train_seconds") + 1] == "5"
    ((task, _),) = tasks
    assert task["data"] == {"dataset_name": "digits", "max_train_samples": None, "max_eval_samples": 50}
    assert (task["seconds"], task["quality_samples"]) == (5, 40)


def test_throughput_takes_turns_and_compares_pairs(
    calls: list[Call], tasks: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = run(monkeypatch, tmp_path / "gan.json", "throughput", "--repeats", "3")
    runs = found["throughput"]["preset dcgan, images/s"][own_column()]
    # 60,000 images in 600 s, against 50, 100 and 150 images/s
    assert [one["ratio"] for one in runs] == pytest.approx([2, 1, 2 / 3])
    assert figure(runs) == "**1.00** times the bare loop (0.67 to 2.00), 100 to 100"
    assert {(task["seconds"], task["quality_samples"]) for task, _ in tasks} == {(30, 0)}
    assert all("dcgan" in flags for _, _, flags, _ in calls) and len(calls) == 3


def test_what_was_not_measured_is_said() -> None:
    assert figure([played(None)]) == "no classifier FID; 640 s in all, 600 s of training"
    labeled = played(3.0, metrics={"classifier_fid": 3.0, "coverage": None, "label_accuracy": 0.98})
    assert figure([labeled]).startswith("classifier FID **3.00**, taken for their class 98.0 %; ")


@pytest.mark.slow
def test_a_row_trains_and_measures_for_real(tmp_path: Path) -> None:
    flags = ["--dataset_name", "digits", "--quality_samples", "60", "--max_eval_samples", "60"]
    session = Session("no bf16 tiles", tmp_path, {}, seconds=0.5, flags=flags)
    ((line, (one,)),) = measure_dcgan(session, "dcgan")
    assert line == "preset dcgan" and one["steps"] > 0
    assert one["metrics"]["classifier_fid"] > 0
    assert (tmp_path / "dcgan" / "seed-0" / "dcgan" / "model.safetensors").is_file()
    assert figure([one]).startswith(f"classifier FID **{one['metrics']['classifier_fid']:.2f}**, coverage ")
