"""The table of the image codecs: what is measured, and how it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compression.lossy.image_data import DATA
from training.tools import image_compression, measured_recipes
from training.tools.image_compression import OURS, measure_files, table


def test_files_of_every_level_are_measured() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 1), dtype=np.uint8)

    points, seconds = measure_files(DATA / "codec", pixels)

    assert len(points) == 3
    assert all(1.0 < 40 * 60 * point.bits_per_pixel / 8 < 40 * 60 and 3 < point.psnr < 20 for point in points)
    assert seconds.keys() == {"seconds_to_compress", "seconds_to_decompress"} and min(seconds.values()) > 0


def test_the_table_has_ratios_at_half_a_bit_and_speeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def run_task(module: str, task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        calls.append((module, task["recipe"], task["model"]))
        points = [{"bits_per_pixel": 0.25, "psnr": 20.0}, {"bits_per_pixel": 0.75, "psnr": 26.0}]
        curves = {OURS: points, "JPEG": points[1:]}
        return {"pixels": 1_000_000, "curves": curves, "seconds_to_compress": 0.5, "seconds_to_decompress": 2.0}

    monkeypatch.setattr(measured_recipes, "run_task", run_task)
    words = ["image_compression.py", "--recipes", "codec-mnist", "--model", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*words, "--figures", str(tmp_path / "figures.json")])

    image_compression.main()

    assert calls == [("training.tools.image_compression", "codec-mnist", str(tmp_path))]
    shown = capsys.readouterr().out
    assert "| hfgen compress | 23.00 | 2.00 | 0.50 |" in shown and "| JPEG | none |  |  |" in shown
    assert shown.strip() == table(json.loads((tmp_path / "figures.json").read_text())).strip()


def test_a_model_of_one_recipe_is_not_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for words in (["--model", str(tmp_path)], ["--model", str(tmp_path), "--recipes", "codec-mnist", "--seed", "1"]):
        monkeypatch.setattr("sys.argv", ["image_compression.py", *words])
        with pytest.raises(SystemExit):
            image_compression.main()
