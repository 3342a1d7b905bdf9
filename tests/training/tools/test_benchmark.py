"""The benchmark runs a recipe as a user does."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.tools.benchmark import table
from training.tools.measuring.runs import AVX2, run_recipe


@pytest.mark.slow
def test_a_recipe_is_run_and_every_second_is_accounted_for(tmp_path: Path) -> None:
    flags = ["--dataset_name", "digits", "--max_train_steps", "2", "--nll_samples", "1", "--max_eval_samples", "16"]
    figure = run_recipe("vae-binarized-mnist", tmp_path / "vae", flags, AVX2)
    assert figure["steps"] == 2 and "nll" in figure["metrics"]
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in figure["hardware"]
    named = figure["seconds_trained"] + sum(figure["seconds_other"].values())
    assert 0.5 * figure["seconds"] < named <= figure["seconds"] + 1
    assert {"start", "final evaluation", "samples", "model and card"} <= set(figure["seconds_other"])
    header, line = table([figure]).splitlines()
    assert header.split()[:3] == ["recipe", "command", "training"] and f"{figure['seconds']:.1f} s" in line
