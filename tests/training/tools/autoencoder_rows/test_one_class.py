"""The one-class rows: what is trained on, what is recorded, and how it reads. Trainings are played."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hfgen import AutoencoderConfig, AutoencoderModel
from training.tools import autoencoder
from training.tools.autoencoder_rows import one_class
from training.tools.autoencoder_rows.baselines import BASELINES
from training.tools.autoencoder_rows.one_class import DATASETS, OURS, table
from training.tools.measuring.runs import AVX2


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The trainings that were started; an untrained model with a detector of its class is saved instead."""
    found: list[SimpleNamespace] = []

    def run_training(
        family: str, recipe: list[str], output_dir: Path, flags: list[str], environment: dict[str, str]
    ) -> dict[str, Any]:
        named = dict(zip(flags[::2], flags[1::2], strict=True))
        found.append(SimpleNamespace(family=family, flags=named, environment=environment))
        torch.manual_seed(0)
        sizes = {"image_size": 8, "hidden_channels": [4], "hidden_size": 16, "latent_dim": 4, "anomaly_dim": 32}
        model = AutoencoderModel(AutoencoderConfig(**sizes)).eval()
        images = one_class.load(named["--dataset_name"])
        model.fit_anomaly([images.normal(images.classes.index(named["--normal_label"]))])
        model.save_pretrained(output_dir)
        return {"steps": 7, "seconds_trained": 1.0}

    monkeypatch.setattr(one_class, "run_training", run_training)
    monkeypatch.setitem(DATASETS, "one-class", "digits")
    return found


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str) -> dict[str, Any]:
    """Runs the row on the digits; returns what it wrote."""
    path = tmp_path / "figures.json"
    monkeypatch.setattr("training.tools.measuring.rows.ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["autoencoder.py", "one-class", "--figures", str(path), *words])
    autoencoder.main()
    return json.loads(path.read_text())["rows"]["one-class"]


def test_a_model_sees_its_own_class_and_all_methods_judge_all_test_images(
    trainings: list[SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--classes", "3", "--seconds", "5", "--seeds", "2", "--learning_rate", "1e-3", "--avx2"]
    found = run(monkeypatch, tmp_path, *words)

    (one,) = trainings
    assert one.family == "autoencoder"
    assert one.flags == {
        "--dataset_name": "digits", "--normal_label": "3", "--max_train_seconds": "5", "--seed": "2",
        "--learning_rate": "1e-3",
    }  # fmt: skip
    assert one.environment == AVX2
    (figures,) = found["3"]["AVX2 alone"]
    measured = figures["measured"]
    assert set(measured["auroc"]) == {OURS, *BASELINES} == set(measured["seconds"])
    assert all(90 < value <= 100 for value in measured["auroc"].values()), "a 3 is easy to tell from other digits"
    assert (figures["steps"], figures["seed"]) == (7, 2) and figures["machine"]["cores"] >= 1
    assert "| edges, Mahalanobis | **" in capsys.readouterr().out


def test_classes_are_added_to_those_that_were_measured(
    trainings: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = run(monkeypatch, tmp_path, "--classes", "0")
    after = run(monkeypatch, tmp_path, "--classes", "1")

    assert sorted(after) == ["0", "1"] and after["0"] == before["0"]
    assert trainings[0].flags["--max_train_seconds"] == "50"


def test_a_training_that_fails_is_named_and_the_others_are_measured(
    trainings: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play = one_class.run_training
    outcomes = iter([ValueError("hfgen train must succeed"), None])

    def run_training(*how: Any) -> dict[str, Any]:
        if error := next(outcomes):
            raise error
        return play(*how)

    monkeypatch.setattr(one_class, "run_training", run_training)
    with pytest.raises(SystemExit, match=r"^one-class: 0: hfgen train must succeed$"):
        run(monkeypatch, tmp_path, "--classes", "0", "1")

    assert list(json.loads((tmp_path / "figures.json").read_text())["rows"]["one-class"]) == ["1"]


def test_unknown_classes_are_refused_before_anything_is_trained(
    trainings: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"--classes must be from 0 to 9, got 10, -1\."):
        run(monkeypatch, tmp_path, "--classes", "3", "10", "-1")
    assert trainings == []


def test_table_has_the_mean_over_seeds_and_the_worst_class() -> None:
    def figures(label: int, ours: float) -> dict[str, Any]:
        auroc = {OURS: ours, **dict.fromkeys(BASELINES, 90.0)}
        measured = {"dataset": "d", "label": label, "auroc": auroc}
        return {"seconds_trained": 40.0, "machine": {"hardware": "a processor", "cores": 2}, "measured": measured}

    lines = table(
        "one-class",
        {
            "ten": {"AVX2 alone": [figures(10, 97.0), figures(10, 98.0)]},
            "two": {"AVX2 alone": [figures(2, 99.0)]},
        },
    ).splitlines()

    assert lines[0].startswith("**one-class**, AVX2 alone (a processor, 2 cores): one class of d is normal")
    assert lines[0].endswith("; trained for 40 s")
    assert lines[2] == "| AUROC, % | mean | worst | two | ten |"
    assert lines[4] == f"| {OURS} | **98.25** | 97.50 | 99.0 | 97.5 |"
    assert len(lines) == 5 + len(BASELINES)
