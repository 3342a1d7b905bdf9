"""What is read of the course of a run, and how it reads. Trainings are played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.tools.gan_rows import course
from training.tools.gan_rows.course import course_of, measure_broken, measure_stopping
from training.tools.gan_rows.figures import figure
from training.tools.measuring.rows import Session


def write_log(folder: Path, distances: dict[int, float]) -> None:
    """A metrics.jsonl with these distances by step, among other lines."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [{"step": 1, "generator_loss": 0.7}]
    lines += [{"step": step, "eval_quick_fid": value} for step, value in distances.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The flags of trainings, instead of training; each stops after 300 s, and collapsed at its second evaluation."""
    found: list[list[str]] = []

    def run_training(family: str, recipe: list[str], output_dir: Path, flags: list[str], env: Any) -> dict[str, Any]:
        found.append(flags)
        write_log(output_dir, {10: 9.0, 20: 4.0, 30: 5.0})
        problem = {"kind": "collapse", "step": 20, "text": "collapse at step 20"}
        details = {"stop_reason": "Converged at step 30.", "published_step": 20, "problems": [problem]}
        return {"metrics": {"classifier_fid": 3.0}, "metrics_details": details, "seconds_trained": 300.0,
                "flags": flags}  # fmt: skip

    monkeypatch.setattr(course, "run_training", run_training)
    return found


def test_run_that_stops_is_trained_to_a_limit_and_compared_with_its_best(calls: list[Any], tmp_path: Path) -> None:
    session = Session("no bf16 tiles", tmp_path, {}, seeds=[0, 1, 2])
    lines = dict(measure_stopping(session, "stopping"))
    assert list(lines) == ["stop when converged, MNIST", "stop when converged, digits"] and len(calls) == 6
    assert calls[4][:3] == ["--dataset_name", "digits", "--stop_when_converged"]
    assert all(flags[flags.index("--max_train_seconds") + 1] == "900" for flags in calls)
    text = figure(lines["stop when converged, MNIST"])
    assert text.startswith("classifier FID **3.00** (3.00 to 3.00); 3 of 3 stopped before the limit of 900 s, ")
    assert text.endswith("training took 300 s (300 to 300), published at **1.00** times the best distance seen")


def test_broken_runs_say_what_the_log_named_and_when(calls: list[Any], tmp_path: Path) -> None:
    lines = dict(measure_broken(Session("no bf16 tiles", tmp_path, {}, seconds=5), "broken"))
    rate, images = calls
    assert float(rate[rate.index("--learning_rate") + 1]) == pytest.approx(0.3)
    assert images[images.index("--max_train_samples") + 1] == "50"
    assert [figure(runs) for runs in lines.values()] == ["classifier FID **3.00**; collapse at evaluation 2"] * 2


def test_course_without_problems_or_an_early_end(tmp_path: Path) -> None:
    write_log(tmp_path, {10: 4.0, 20: 5.0})
    found = course_of(tmp_path, {"stop_reason": None, "problems": []}, 60)
    # What is published is the last state
    assert found == {"limit": 60, "stop_reason": None, "published_over_best": 1.25, "problems": []}
    run = {"course": found, "flags": [], "metrics": {}, "seconds_trained": 60.0}
    assert figure([run]) == "no classifier FID; nothing in 1 of 1"
    write_log(tmp_path, {})
    assert course_of(tmp_path, {}, 60)["published_over_best"] is None
