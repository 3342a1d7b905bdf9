"""What evaluations lead to: in a whole run that is made to converge, and in one that is made to collapse."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import ONE, TWO, Fault, differences, everything, metrics, start, train
from training.config.scripts import GANArguments
from training.evaluation.adversarial import AdversarialEstimator
from training.evaluation.convergence import ConvergenceWatch
from training.objective import Metrics
from training.progress import Progress
from training.step import StepResult
from training.train_gpt import GPTObjective
from training.watching import describe_course, note_gradients, watch_evaluation


FLAGS = ("--quality_samples", 100, "--stop_when_converged", "--eval_steps", 1, "--max_train_steps", 12,
         "--ema_decay", 0.9)  # fmt: skip


class FakeState(SimpleNamespace):
    """Counts how often it is kept."""

    def keep_as_best(self) -> None:
        self.kept = [*getattr(self, "kept", []), self.progress.step]
        self.progress.best_step = self.progress.step


def measure(state: Any, watch: ConvergenceWatch, step: int, distance: float) -> None:
    state.progress.step = step
    watch_evaluation(state, watch, Metrics({"quick_fid": distance, "pair_accuracy": 0.5}))


def test_the_best_state_is_kept_and_a_run_on_a_plateau_ends() -> None:
    state: Any = FakeState(progress=Progress())
    watch = ConvergenceWatch(stops=True)
    for step, distance in enumerate([9, 5, 6, 5, 7], start=1):
        measure(state, watch, step, distance)
        assert state.progress.stop_reason is None
    measure(state, watch, 6, 6)
    assert state.kept == [1, 2] and state.progress.stop_reason.startswith("Converged at step 6")
    details = describe_course(state, watch).details
    assert details == {"problems": [], "stop_reason": state.progress.stop_reason, "published_step": 2}


def test_the_training_adapts_to_each_evaluation() -> None:
    state: Any = FakeState(progress=Progress())
    heard: list[list[float]] = []
    watch = ConvergenceWatch(adapt=lambda history: heard.append([row["step"] for row in history]))
    for step in (1, 2, 3):
        measure(state, watch, step, 9)
    assert heard == [[1], [1, 2], [1, 2, 3]]


def test_a_repeated_evaluation_replaces_its_row() -> None:
    state: Any = FakeState(progress=Progress())
    for step, distance in [(1, 9), (2, 5), (3, 4), (2, 6)]:
        measure(state, ConvergenceWatch(), step, distance)
    assert [(row["step"], row["quick_fid"]) for row in state.progress.history] == [(1, 9), (2, 6)]
    assert not hasattr(state, "kept")  # nobody asked to stop


def test_gradient_norms_are_averaged_between_evaluations_and_infinite_ones_left_out() -> None:
    state: Any = FakeState(progress=Progress())
    note_gradients(state.progress, "generator", StepResult(gradient_norms=[1.0, 3.0]))
    note_gradients(state.progress, "generator", StepResult(gradient_norms=[float("inf"), 5.0]))
    measure(state, ConvergenceWatch(), 1, 9)
    measure(state, ConvergenceWatch(), 2, 9)
    assert state.progress.history[0]["gradient_norm_generator"] == 3
    assert "gradient_norm_generator" not in state.progress.history[1]


def pretend(*rows: dict[str, float]) -> None:
    """Patches a run so that its evaluations in the middle measure these values, the last ones again and again."""
    original, calls = AdversarialEstimator.result, []

    def result(self: AdversarialEstimator) -> Metrics:
        metrics = original(self)
        if self.with_quality:
            metrics.values |= rows[min(len(calls), len(rows) - 1)]
            calls.append(1)
        return metrics

    AdversarialEstimator.result = result  # type: ignore[method-assign]


def test_a_run_that_has_converged_ends_and_publishes_its_best_state(tmp_path: Path) -> None:
    rows = [{"quick_fid": value, "pair_accuracy": 0.5} for value in (90.0, 50.0, 60.0, 60.0, 60.0, 60.0)]
    run = train("gan", tmp_path, *FLAGS, fault=Fault(patch=partial(pretend, *rows)))
    assert run.code == 0 and "Converged at step 6" in run.output, run.output
    results = json.loads((tmp_path / "results.json").read_text())
    details = results["metrics_details"]
    assert results["steps"] == 6 and details["published_step"] == 2
    card = (tmp_path / "README.md").read_text()
    assert "Converged at step 6" in card and "those after step 2, the best state" in card
    checkpoint = tmp_path / "checkpoints" / "step-000006"
    best, published = load_file(checkpoint / "best.safetensors"), load_file(tmp_path / "model.safetensors")
    last = load_file(checkpoint / "average.safetensors")
    assert all(torch.equal(best[name], published[name]) for name in published)
    assert any(not torch.equal(last[name], published[name]) for name in published)
    assert (tmp_path / "samples" / "film.webp").is_file() and "samples/film.webp" in card
    again = train("gan", tmp_path, *FLAGS)
    assert again.code == 0 and "holds this finished run" in again.output


def test_a_collapse_is_named_in_log_results_and_card(tmp_path: Path) -> None:
    others = {"feature_distance_ratio": 1.0, "class_kl": 0.0}
    rows = [{"quick_coverage": value, **others} for value in (0.8, 0.9, 0.1)]
    run = train("gan", tmp_path, *FLAGS, "--max_train_steps", 4, fault=Fault(patch=partial(pretend, *rows)))
    assert run.code == 0 and "collapse at step 3: samples cover 10 %" in run.output, run.output
    problems = json.loads((tmp_path / "results.json").read_text())["metrics_details"]["problems"]
    assert ("collapse", 3) in [(problem["kind"], problem["step"]) for problem in problems]
    assert "During the training: collapse at step 3" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_was_killed_has_the_same_best_state_problems_and_film(processes: int, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = (*FLAGS, "--eval_steps", 3, "--checkpointing_steps", 4)
    # So that images are changed from the first evaluation on, before and after the resume.
    remembers = partial(pretend, {"pair_accuracy": 0.5, "pair_accuracy_train": 0.8})
    uninterrupted = start("gan", whole, *flags, processes=processes, fault=Fault(patch=remembers))
    # Two updates of the discriminator and one of the generator a step: in the eighth step, after two evaluations.
    run = train("gan", killed, *flags, processes=processes, fault=Fault(signal.SIGKILL, at_step=22, patch=remembers))
    assert run.code == -signal.SIGKILL, run.output
    again = train("gan", killed, *flags, processes=processes, fault=Fault(patch=remembers))
    assert again.code == 0 and "Resuming after step 4" in again.output, again.output
    assert uninterrupted.wait().code == 0, uninterrupted.output
    assert differences(everything(whole), everything(killed)) == []
    details = [json.loads((folder / "results.json").read_text())["metrics_details"] for folder in (whole, killed)]
    assert details[0] == details[1] and details[0]["published_step"] in (3, 6, 9, 12)
    films = [sorted(path.name for path in (folder / ".film").iterdir()) for folder in (whole, killed)]
    assert films[0] == films[1] and len(films[0]) > 2


def test_a_run_that_goes_on_without_the_flag_publishes_its_last_state(tmp_path: Path) -> None:
    rows = [{"quick_fid": value} for value in (50.0, 60.0, 60.0)]
    flags = (*FLAGS, "--max_train_steps", 5)
    run = train("gan", tmp_path, *flags, fault=Fault(signal.SIGTERM, at_step=8, patch=partial(pretend, *rows)))
    assert "Stopped after step 3" in run.output and (tmp_path / "checkpoints/step-000003/best.safetensors").is_file()
    again = train("gan", tmp_path, *[flag for flag in flags if flag != "--stop_when_converged"])
    assert again.code == 0, again.output
    last = load_file(tmp_path / "checkpoints" / "step-000005" / "average.safetensors")
    published = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(last[name], published[name]) for name in published)
    assert "published_step" not in json.loads((tmp_path / "results.json").read_text())["metrics_details"]


def test_evaluations_measure_the_same_images_with_any_number_of_processes(tmp_path: Path) -> None:
    flags = ("--quality_samples", 100, "--eval_steps", 1, "--max_train_steps", 2)
    runs = [start("gan", tmp_path / "one", *ONE, *flags), start("gan", tmp_path / "two", *TWO, *flags, processes=2)]
    assert [run.wait().code for run in runs] == [0, 0], [run.output for run in runs]
    one, two = (next(row for row in metrics(tmp_path / name) if "eval_quick_fid" in row) for name in ("one", "two"))
    for name in ("quick_fid", "quick_coverage", "feature_distance_ratio", "largest_logit", "overfitting_ratio"):
        # Not the same: batch normalization sees the images of one process.
        assert one[f"eval_{name}"] == pytest.approx(two[f"eval_{name}"], rel=0.02), name


def test_stopping_needs_samples_to_watch() -> None:
    assert GANArguments().problems() == [] and GANArguments(stop_when_converged=True).problems() == []
    (problem,) = GANArguments(stop_when_converged=True, quality_samples=0).problems()
    assert "--quality_samples must be at least 100" in problem


def pretend_losses(*losses: float) -> None:
    """Patches a run so that its evaluations measure these losses, the last one again and again."""
    original, calls = GPTObjective.derive, []

    def derive(self: GPTObjective, means: dict[str, float]) -> dict[str, float]:
        calls.append(1)
        return original(self, {"loss": losses[min(len(calls), len(losses)) - 1]})

    GPTObjective.derive = derive  # type: ignore[method-assign]


KEEP_BEST = ("--keep_best", "--eval_steps", 2, "--max_train_steps", 8)


def test_the_state_of_the_smallest_loss_is_published_and_the_run_goes_to_its_end(tmp_path: Path) -> None:
    run = train("gpt", tmp_path, *KEEP_BEST, fault=Fault(patch=partial(pretend_losses, 3.0, 2.0, 2.5, 2.25, 2.125)))
    assert run.code == 0, run.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["steps"] == 8 and results["metrics"]["loss"] == 2.125  # measured again, on the whole split
    assert results["metrics_details"] == {"compared_states": 4, "stop_reason": None, "published_step": 4}
    assert "those after step 4, the best of 4 states" in " ".join((tmp_path / "README.md").read_text().split())
    checkpoint = tmp_path / "checkpoints" / "step-000008"
    best, published = load_file(checkpoint / "best.safetensors"), load_file(tmp_path / "model.safetensors")
    last = load_file(checkpoint / "average.safetensors")
    assert all(torch.equal(best[name], published[name]) for name in published)
    assert any(not torch.equal(last[name], published[name]) for name in published)
    assert not (tmp_path / ".film").exists()


def test_a_run_that_was_killed_keeps_the_same_best_state_by_real_losses(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = start("gpt", whole, *KEEP_BEST)
    run = train("gpt", killed, *KEEP_BEST, fault=Fault(signal.SIGKILL, at_step=6))
    assert run.code == -signal.SIGKILL, run.output
    again = train("gpt", killed, *KEEP_BEST)
    assert again.code == 0 and "Resuming after step 4" in again.output, again.output
    assert uninterrupted.wait().code == 0, uninterrupted.output
    assert differences(everything(whole), everything(killed)) == []
    evaluated = {row["step"]: row["eval_loss"] for row in metrics(whole)[:-1] if "eval_loss" in row}
    details = json.loads((whole / "results.json").read_text())["metrics_details"]
    assert details["published_step"] == min(evaluated, key=lambda step: evaluated[step])
