"""The table of lossless images: what is measured, and how it reads."""

from __future__ import annotations

import bz2
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.compression.lossless.tiny_vae import smooth_images, tiny_vae
from training.tools import lossless_compression, measured_recipes
from training.tools.lossless_compression import LOSSLESS, OURS, evidence_bits, general_sizes, measure, table
from training.tools.measured_runs import AVX2


ROWS = {
    OURS: {"size": 200, "bits_per_pixel": 0.5, "elbo_bits_per_pixel": 0.4876, "initial_bytes": 9,
           "seconds_to_compress": 2.0, "seconds_to_decompress": 4.0},
    "PNG": {"size": 400, "bits_per_pixel": 1.0},
}  # fmt: skip


def test_a_model_is_measured_on_what_its_recipe_holds_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = torch.from_numpy(smooth_images(30))
    monkeypatch.setattr(lossless_compression, "held_out_images", lambda recipe: images)
    monkeypatch.setattr(lossless_compression, "MOSAIC_COLUMNS", 5)
    tiny_vae(likelihood="logistic_mixture").save_pretrained(tmp_path / "vae")

    found = measure(str(tmp_path / "vae"), LOSSLESS[1])

    assert (found["images"], found["mosaic"]) == (30, 25)
    ours = found["rows"].pop(OURS)
    assert ours["bits_per_pixel"] == 8 * ours["size"] / images.numel()
    assert ours["bits_per_pixel"] == pytest.approx(ours["elbo_bits_per_pixel"], rel=0.3)
    assert {*found["rows"]} == {"PNG", "WebP-lossless", "bz2 -9", "xz -9e"}
    assert all(row["bits_per_pixel"] == 8 * row["size"] / (25 * 64) for row in found["rows"].values())


def test_the_bound_is_that_of_the_model(tmp_path: Path) -> None:
    model, images = tiny_vae(likelihood="discretized_logistic"), torch.from_numpy(smooth_images(300))
    model.save_pretrained(tmp_path / "vae")
    with torch.no_grad():
        loss = model(images / 255).loss.item()
    assert evidence_bits(str(tmp_path / "vae"), images) == pytest.approx(loss / math.log(2) / 64, rel=0.05)


def test_compressors_get_bits_where_that_is_smaller() -> None:
    noise = 255 * np.random.default_rng(0).integers(0, 2, (80, 80, 1)).astype(np.uint8)
    as_bytes, as_bits = general_sizes(noise, False), general_sizes(noise, True)
    assert as_bits["bz2 -9"] == len(bz2.compress(np.packbits(noise > 0).tobytes(), 9)) < as_bytes["bz2 -9"]
    assert as_bits["PNG"] < 1000 < as_bytes["PNG"]


def test_recipes_are_trained_and_measured_with_the_instructions_of_the_column(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def run_recipe(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        return {"seconds": 600.0}

    def run_task(module: str, task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        calls.append((module, task, environment))
        return {"images": 80, "mosaic": 25, "rows": ROWS}

    monkeypatch.setattr(measured_recipes, "run_recipe", run_recipe)
    monkeypatch.setattr(measured_recipes, "run_task", run_task)
    figures = tmp_path / "figures.json"
    words = ["--recipes", LOSSLESS[0], "--avx2", "--max_train_steps", "5", "--figures", str(figures)]
    monkeypatch.setattr("sys.argv", ["lossless_compression.py", *words])
    lossless_compression.main()

    folder = measured_recipes.ROOT / "runs-avx2" / LOSSLESS[0]
    assert calls == [
        (LOSSLESS[0], folder, ["--max_train_steps", "5"], AVX2),
        ("training.tools.lossless_compression", {"model": str(folder.resolve()), "recipe": LOSSLESS[0]}, AVX2),
    ]
    written = json.loads(figures.read_text())
    assert written["columns"]["AVX2 alone"][LOSSLESS[0]]["training"] == {"seconds": 600.0}
    assert capsys.readouterr().out == table(written) + "\n"
    assert f"| {OURS} | 0.5000 | 0.4876 | 40 | 20 |\n| PNG | 1.0000 |  |  |  |" in table(written)


def test_one_model_is_of_one_recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["lossless_compression.py", "--model", "runs/mine"])
    with pytest.raises(SystemExit):
        lossless_compression.main()
    assert "--model must come with one of --recipes" in capsys.readouterr().err
