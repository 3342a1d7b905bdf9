"""The rows of the codecs: what is measured, and how it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compression.lossy.image_data import DATA
from training.evaluation.rate_distortion import RATE
from training.tools import autoencoder
from training.tools.autoencoder_rows import lossy_images, models
from training.tools.autoencoder_rows.lossy_images import OURS, measure, table
from training.tools.measuring import rows
from training.tools.measuring.rows import own_column
from training.tools.measuring.runs import AVX2


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 1), dtype=np.uint8)
MACHINE = {"hardware": "a processor", "cores": 2}


def test_files_of_every_level_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lossy_images, "load_mosaic", lambda recipe: PIXELS)

    found = measure({"model": str(DATA / "codec"), "recipe": "codec-mnist"})

    assert found["pixels"] == 40 * 60 and len(found["curve"]) == 3
    for point in found["curve"]:
        assert 1.0 < 40 * 60 * point["bits_per_pixel"] / 8 < 40 * 60 and 3 < point["psnr"] < 20
    assert min(found["seconds_to_compress"], found["seconds_to_decompress"]) > 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be run, instead of running it: trainings, and processes that measure."""
    found: list[Any] = []

    def run_recipe(recipe: str, output_dir: Path, flags: list[str], environment: dict[str, str]) -> dict[str, Any]:
        found.append((recipe, output_dir, flags, environment))
        return {"recipe": recipe, "seconds": 270.0, "seconds_trained": 240.0}

    def run_task(module: str, task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        found.append((module, task, environment))
        curve = [{"bits_per_pixel": 0.25, "psnr": 20.0}, {"bits_per_pixel": 0.75, "psnr": 26.0}]
        return {"pixels": 2400, "curve": curve, "seconds_to_compress": 0.0012, "seconds_to_decompress": 0.0048}

    monkeypatch.setattr(rows, "run_recipe", run_recipe)
    monkeypatch.setattr(models, "run_task", run_task)
    monkeypatch.setattr(lossy_images, "load_mosaic", lambda recipe: PIXELS)
    return found


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *words: str) -> dict[str, Any]:
    monkeypatch.setattr("sys.argv", ["autoencoder.py", *words, "--figures", str(path)])
    autoencoder.main()
    return json.loads(path.read_text())["rows"]


def test_a_codec_is_trained_and_stands_beside_every_format_that_pillow_writes(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["codec-cifar10", "--avx2", "--seconds", "5", "--latent_dim", "8"]
    found = run(monkeypatch, tmp_path / "figures.json", *words)["codec-cifar10"]

    folder = rows.ROOT / "runs-avx2" / "codec-cifar10" / "seed-0" / "codec-cifar10"
    task = {"model": str(folder.resolve()), "recipe": "codec-cifar10"}
    assert calls == [
        ("codec-cifar10", folder, ["--max_train_seconds", "5", "--latent_dim", "8"], AVX2),
        ("training.tools.autoencoder_rows.lossy_images", task, AVX2),
    ]
    assert {OURS, "JPEG"} <= set(found) <= {OURS, "JPEG", "WebP", "AVIF"}
    assert found["JPEG"]["AVX2 alone"][0]["measured"]["pixels"] == 2400
    shown = capsys.readouterr().out
    assert "**codec-cifar10**, AVX2 alone (" in shown and "trained for 240 s\n" in shown
    assert "| hfgen compress | 23.00 | 2.00 | 0.50 |" in shown and "\n| JPEG | " in shown


def test_a_model_that_is_there_is_not_trained(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = run(monkeypatch, tmp_path / "figures.json", "codec-mnist", "--model", str(tmp_path))["codec-mnist"]
    assert [call[1]["model"] for call in calls] == [str(tmp_path)]
    assert set(found[OURS][own_column()][0]) == {"machine", "measured"}


def test_a_format_without_a_file_at_the_rate_has_no_ratio() -> None:
    def at(*rates: float, psnr: float = 20.0) -> list[dict[str, Any]]:
        curve = [{"bits_per_pixel": rate, "psnr": psnr} for rate in rates]
        return [{"machine": MACHINE, "measured": {"pixels": 9, "curve": curve}}]

    figures = {"JPEG": {own_column(): at(2 * RATE)},
               "WebP": {own_column(): at(0, 2 * RATE) + at(0, 2 * RATE, psnr=30.0)}}  # fmt: skip
    lines = table("codec-mnist", figures).splitlines()
    assert lines[-2:] == ["| JPEG | none |  |  |", "| WebP | 25.00 |  |  |"], "the mean over two seeds"
