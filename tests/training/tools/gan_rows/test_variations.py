"""Variations: what is trained and checked for each, and the table. Trainings and checks are played."""

from __future__ import annotations

import copy
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from training.tools.gan_rows import variations
from training.tools.gan_rows.variations import (
    DCGAN,
    DEFAULT,
    VARIATIONS,
    Variation,
    check,
    measure_variations,
    slug,
    table,
)
from training.tools.measuring.rows import Session


def session(folder: Path, *numbers: int) -> Session:
    """Of the command with --variations and these numbers, if there are any."""
    return Session("no bf16 tiles", folder, {}, seconds=5.0, options=Namespace(variations=list(numbers) or None))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was trained and checked, instead of doing it. The preset dcgan skips a step each time."""
    found: list[Any] = []

    def run_training(family: str, recipe: list[str], output_dir: Path, flags: list[str], env: Any) -> dict[str, Any]:
        if "broken" in flags:
            raise ValueError("hfgen train must succeed")
        found.append(flags)
        output_dir.mkdir(parents=True)
        skipped = int("--preset" in flags)
        (output_dir / "results.json").write_text(json.dumps({"skipped_steps": skipped}))
        return {"seconds_trained": 120.0}

    def run_task(module: str, task: dict[str, Any], environment: Any) -> dict[str, Any]:
        assert module == "training.tools.gan_rows.sample_check"
        found.append(task)
        figures = {"classifier_fid": 10.0, "coverage": 0.5, "spread": 1.0, "state": "stable"}
        return {"models": {DEFAULT: figures, DCGAN: {**figures, "classifier_fid": 40.0}},
                "real": {"classifier_fid": 1.0}}  # fmt: skip

    monkeypatch.setattr(variations, "run_training", run_training)
    monkeypatch.setattr(variations, "run_task", run_task)
    return found


def test_both_models_are_trained_alike_and_checked_on_the_whole_dataset(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = [Variation("few", "digits", {"max_train_samples": 200}), Variation("one", "digits", label=8)]
    monkeypatch.setattr(variations, "VARIATIONS", chosen)
    lines = dict(measure_variations(session(tmp_path), "variations"))
    ours, theirs, task, of_one_class = calls[:4]
    common = ["--dataset_name", "digits", "--max_train_samples", "200", "--max_train_seconds", "5"]
    end = ["--quality_samples", "0", "--on_nonfinite", "skip"]
    assert ours == [*common, *end] and theirs == [*common, "--preset", "dcgan", *end]
    assert (task["dataset"], task["label"], task["samples"]) == ("digits", None, 10_000)
    assert of_one_class[1].endswith("data/digits-class-8") and (tmp_path / "data" / "digits-class-8").is_dir()
    assert calls[5]["label"] == 8 and calls[5]["dataset"] == "digits"
    # A step whose loss was not finite, whatever the samples look like
    (run,) = lines["few"]
    assert run["measured"]["models"][DCGAN]["state"] == "diverged"
    assert run["measured"]["models"][DEFAULT]["state"] == "stable"

    text = table("variations", {name: {"no bf16 tiles": runs} for name, runs in lines.items()})
    assert "| few | **10.0**, 0.50, stable | **40.0**, 0.50, diverged | 0.25 | 1.0 |" in text
    assert text.startswith("**variations**, no bf16 tiles (") and "trainings of 120 s" in text
    assert text.endswith(
        "Of 2 variations, 2 are stable with the default settings and 0 with the preset dcgan; the default settings "
        "have the smaller distance in 2."
    )


def test_of_several_seeds_the_table_says_how_far_apart_they_are(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(variations, "VARIATIONS", [Variation("few", "digits")])
    (runs,) = dict(measure_variations(session(tmp_path), "variations")).values()
    other = copy.deepcopy(runs[0])
    other["measured"]["models"][DEFAULT]["classifier_fid"] = 30.0

    text = table("variations", {"few": {"no bf16 tiles": [*runs, other]}})

    assert "| few | **20.0** (10.0 to 30.0), 0.50, stable | **40.0** (40.0 to 40.0), 0.50, diverged | 0.50 |" in text


def test_a_training_that_fails_is_reported_after_all_others(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(variations, "VARIATIONS", [Variation("bad", "broken"), Variation("good", "digits")])
    found = []
    with pytest.raises(ValueError, match="bad: hfgen train must succeed"):
        for name, _ in measure_variations(session(tmp_path), "variations"):
            found.append(name)
    assert found == ["good"]


def test_some_are_measured_by_their_number(calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = [Variation(name, "digits") for name in ("first", "second", "third")]
    monkeypatch.setattr(variations, "VARIATIONS", chosen)
    assert [name for name, _ in measure_variations(session(tmp_path, 3, 1), "variations")] == ["third", "first"]
    check(session(tmp_path, 3, 1))
    with pytest.raises(ValueError, match=r"--variations must be numbers from 1 to 3, got 0 4$"):
        check(session(tmp_path, 0, 2, 4))


def test_variations_span_what_the_defaults_promise() -> None:
    flags = [variation.flags for variation in VARIATIONS]
    assert len({slug(variation.name) for variation in VARIATIONS}) == len(VARIATIONS) == 12
    assert {16, 256} <= {one.get("per_device_train_batch_size") for one in flags}
    assert {1, 3} <= {one.get("num_channels") for one in flags}
    assert {16, 64} <= {one.get("image_size") for one in flags}
    assert 200 in {one.get("max_train_samples") for one in flags}
    assert len([variation for variation in VARIATIONS if variation.label is not None]) == 2
