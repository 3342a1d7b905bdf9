"""The rows of lossless images: what is measured, and how it reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.compression.lossless.tiny_vae import smooth_images, tiny_vae
from training.tools import autoencoder
from training.tools.autoencoder_rows import lossless_images, models
from training.tools.autoencoder_rows.lossless_images import OURS, RECIPES, evidence_bits, measure, table
from training.tools.measuring import rows
from training.tools.measuring.runs import AVX2


MEASURED = {"images": 80, "size": 200, "bits_per_pixel": 0.5, "elbo_bits_per_pixel": 0.4876, "initial_bytes": 9,
            "seconds_to_compress": 2.0, "seconds_to_decompress": 4.0}  # fmt: skip


def test_a_model_is_measured_on_what_its_recipe_holds_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = torch.from_numpy(smooth_images(30))
    monkeypatch.setattr(lossless_images, "held_out_images", lambda recipe: images)
    tiny_vae(likelihood="logistic_mixture").save_pretrained(tmp_path / "vae")

    found = measure({"model": str(tmp_path / "vae"), "recipe": RECIPES["lossless-mnist"]})

    assert found["images"] == 30 and found["bits_per_pixel"] == 8 * found["size"] / images.numel()
    assert found["bits_per_pixel"] == pytest.approx(found["elbo_bits_per_pixel"], rel=0.3)


def test_the_bound_is_that_of_the_model(tmp_path: Path) -> None:
    model, images = tiny_vae(likelihood="discretized_logistic"), torch.from_numpy(smooth_images(300))
    model.save_pretrained(tmp_path / "vae")
    with torch.no_grad():
        loss = model(images / 255).loss.item()
    assert evidence_bits(str(tmp_path / "vae"), images) == pytest.approx(loss / math.log(2) / 64, rel=0.05)


def test_recipes_are_trained_and_measured_with_the_instructions_of_the_column(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def run_recipe(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        return {"seconds": 630.0, "seconds_trained": 600.0}

    def run_task(module: str, task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        calls.append((module, task, environment))
        return MEASURED

    monkeypatch.setattr(rows, "run_recipe", run_recipe)
    monkeypatch.setattr(models, "run_task", run_task)
    images = torch.from_numpy(smooth_images(80, is_binary=True))
    monkeypatch.setattr(lossless_images, "held_out_images", lambda recipe: images)
    path, recipe = tmp_path / "figures.json", RECIPES["lossless-binarized"]
    words = ["lossless-binarized", "--avx2", "--max_train_steps", "5", "--figures", str(path)]
    monkeypatch.setattr("sys.argv", ["autoencoder.py", *words])
    autoencoder.main()

    folder = rows.ROOT / "runs-avx2" / "lossless-binarized" / "seed-0" / recipe
    assert calls == [
        (recipe, folder, ["--max_train_steps", "5"], AVX2),
        (lossless_images.MODULE, {"model": str(folder.resolve()), "recipe": recipe}, AVX2),
    ]
    lines = json.loads(path.read_text())["rows"]["lossless-binarized"]
    assert {*lines} == {OURS, "PNG", "WebP-lossless", "bz2 -9", "xz -9e"}
    png = lines["PNG"]["AVX2 alone"][0]["measured"]
    assert png["bits_per_pixel"] == 8 * png["size"] / images.numel() and png["images"] == 80
    assert table("lossless-binarized", lines) in capsys.readouterr().out
    shown = table("lossless-binarized", lines).splitlines()
    assert shown[0].endswith(f"80 images that {recipe} holds out; trained for 600 s")
    assert shown[4] == f"| {OURS} | 0.5000 | 0.4876 | 40 | 20 |  |"
