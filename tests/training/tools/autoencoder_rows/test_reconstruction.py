"""The rows of reconstructions: what is run for each, and how it reads. Trainings are played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.tools import autoencoder
from training.tools.autoencoder_rows import reconstruction
from training.tools.autoencoder_rows.reconstruction import RECIPE, figure
from training.tools.measuring import rows
from training.tools.measuring.rows import own_column
from training.tools.measuring.runs import AVX2


PCA = {"metrics": {"mse": 0.0152, "mean_image_mse": 0.067, "nearest_neighbor": 97.2}, "seconds_trained": 2.0}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was run, instead of running it. The error is 0.01 for each run so far, the accuracy 90 and one more."""
    found: list[tuple[Any, ...]] = []

    def played(flags: list[str]) -> dict[str, Any]:
        return {"metrics": {"mse": 0.01 * len(found), "psnr": 20.0}, "flags": flags, "seconds": 20.0,
                "seconds_trained": 15.0}  # fmt: skip

    def run_training(family: str, recipe: list[str], output_dir: Path, flags: list[str], env: Any) -> dict[str, Any]:
        found.append((family, recipe, output_dir, flags, env))
        return played(flags)

    def run_recipe(recipe: str, output_dir: Path, flags: list[str], env: Any) -> dict[str, Any]:
        found.append((recipe, output_dir, flags, env))
        return played(flags)

    def run_task(module: str, task: dict[str, Any], environment: Any) -> dict[str, Any]:
        assert module == "training.tools.autoencoder_rows.reduction"
        found.append((task, environment))
        return PCA if "components" in task else {"metrics": {"nearest_neighbor": 90.0 + len(found)}}

    monkeypatch.setattr(reconstruction, "run_training", run_training)
    monkeypatch.setattr(reconstruction, "run_task", run_task)
    monkeypatch.setattr(rows, "run_recipe", run_recipe)
    return found


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *words: str) -> dict[str, Any]:
    """Runs the command; returns what it wrote."""
    monkeypatch.setattr("sys.argv", ["autoencoder.py", *words, "--figures", str(path)])
    autoencoder.main()
    return json.loads(path.read_text())


def test_start_trains_with_the_default_flags_beside_pca_and_the_mean_image(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(monkeypatch, tmp_path / "figures.json", "start", "--seeds", "0", "1", "--avx2")
    (task, environment), *trainings = calls
    assert task["components"] == 32 and task["data"]["dataset_name"] == "ylecun/mnist" and environment == AVX2
    for seed, (family, recipe, _, flags, environment) in enumerate(trainings):
        assert (family, recipe, environment) == ("autoencoder", [], AVX2)
        names = flags[::2]
        assert names == ["--dataset_name", "--dataset_path", "--seed", "--max_train_seconds"]
        assert flags[-3:] == [str(seed), "--max_train_seconds", "15"]
    assert list(found["rows"]["start"]) == ["mean image", "PCA, 32 numbers", "Auto-Encoder, default flags, 15 s"]
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines[0] == "| mean image | MSE **0.0670** |"
    assert lines[1] == "| PCA, 32 numbers | MSE **0.0152**; 2 s of training |"
    assert "MSE **0.0250** (0.0200 to 0.0300); 20 s in all, 15 s of training |" in lines[2]


def test_reduction_measures_neighbors_in_the_latents_of_the_recipes(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["--max_train_samples", "100", "--max_eval_samples", "50"]
    found = run(monkeypatch, tmp_path / "figures.json", "reduction", *words)["rows"]["reduction"]
    pca, *trainings = calls
    assert pca[0]["components"] == 32
    assert [training[0] for training in trainings[::2]] == [RECIPE, "autoencoder-mnist-embedding"]
    for training, neighbors in zip(trainings[::2], trainings[1::2], strict=True):
        assert training[2] == words
        assert neighbors[0]["folder"] == str(training[1]) and neighbors[0]["data"]["max_train_samples"] == 100
        assert neighbors[0]["data"]["max_eval_samples"] == 50
    (one,), (other,) = (found[line][own_column()] for line in ("Auto-Encoder", "Auto-Encoder, for comparing images"))
    assert one["metrics"]["mse"] == pytest.approx(0.02) and one["metrics"]["nearest_neighbor"] == 93
    assert other["metrics"]["mse"] == pytest.approx(0.04) and other["metrics"]["nearest_neighbor"] == 95
    assert figure([one]) == "MSE **0.0200**; 1-NN **93.00 %**; 20 s in all, 15 s of training"
