"""An evaluation that cannot be done: the training ends with its model, and results and card say what is missing."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot
import pytest
import torch
from torch import Tensor

from hfgen import VAEModel
from tests.runs import TWO, Fault, before_calls, metrics, train
from training.distributed.processes import Processes
from training.evaluation import sample_quality
from training.evaluation.means import ItemMeans
from training.train_gan import GANObjective
from training.train_gpt import GPTObjective
from training.variational import VariationalObjective


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("the measure is broken.")


def break_calls(owner: Any, name: str, *numbers: int) -> Fault:
    return Fault(patch=partial(before_calls, owner, name, numbers, fail))


def break_quality_measure() -> None:
    before_calls(sample_quality, "frechet_distance", [1], fail)


def results_of(folder: Path) -> dict[str, Any]:
    assert (folder / "model.safetensors").is_file() and (folder / "checkpoints").is_dir()
    return json.loads((folder / "results.json").read_text())


def test_error_in_the_quality_measure_costs_its_metrics_only(tmp_path: Path) -> None:
    run = train("gan", tmp_path, "--quality_samples", 16, fault=Fault(patch=break_quality_measure))
    assert run.code == 0 and "Not measured: classifier_fid" in run.output, run.output
    results = results_of(tmp_path)
    assert results["metrics"]["classifier_fid"] is None and results["metrics"]["coverage"] is None
    assert results["metrics_missing"]["coverage"] == "RuntimeError: the measure is broken"
    assert math.isfinite(results["metrics"]["discriminator_accuracy"])
    assert "Coverage" in (tmp_path / "README.md").read_text().partition("Not measured: ")[2]
    assert metrics(tmp_path)[-1]["eval_classifier_fid"] is None


def test_error_in_an_evaluation_costs_this_evaluation_only(tmp_path: Path) -> None:
    run = train("vae", tmp_path, "--report_to", "tensorboard", fault=break_calls(VariationalObjective, "evaluate", 1))
    assert run.code == 0 and "the measure is broken" in run.output, run.output
    values = [line["eval_elbo"] for line in metrics(tmp_path) if "eval_elbo" in line]
    assert [value is None for value in values] == [True, False, False, False]
    assert results_of(tmp_path)["metrics_missing"] == {}


def test_error_in_the_last_evaluation_of_one_process_reaches_the_results(tmp_path: Path) -> None:
    """The other process measures the last batch well, and must neither wait nor publish half of an average."""
    fault = break_calls(VariationalObjective, "evaluate", 3)
    fault.rank = 1
    run = train("vae", tmp_path, *TWO, "--eval_steps", 100, fault=fault, processes=2)
    assert run.code == 0, run.output
    results = results_of(tmp_path)
    assert results["metrics"] == {"elbo": None}
    assert results["metrics_missing"] == {"elbo": "RuntimeError: the measure is broken"}
    assert "Nothing was measured.\n\nNot measured: ELBO (RuntimeError" in (tmp_path / "README.md").read_text()


def test_error_in_the_likelihood_of_one_process_reaches_the_results(tmp_path: Path) -> None:
    """The other process goes on with its images, and must not wait for those of the one that failed."""
    fault = break_calls(VAEModel, "log_importance_weights", 1)
    fault.rank = 1
    run = train("vae", tmp_path, *TWO, "--nll_samples", 200, fault=fault, processes=2)
    assert run.code == 0, run.output
    results = results_of(tmp_path)
    assert results["metrics"] == {"elbo": None} and results["metrics_details"] == {}
    assert results["metrics_missing"] == {"elbo": "RuntimeError: the measure is broken"}


def test_what_is_missing_is_measured_by_the_command_with_other_flags(tmp_path: Path) -> None:
    """As advised by an error that names a flag. The training is not repeated."""
    flags = ["--eval_steps", 100]
    assert train("vae", tmp_path, *flags, fault=break_calls(VariationalObjective, "evaluate", 1)).code == 0
    assert results_of(tmp_path)["metrics"] == {"elbo": None}
    weights = (tmp_path / "model.safetensors").read_bytes()
    again = train("vae", tmp_path, *flags)
    assert again.code == 0 and "holds this finished run" in again.output
    other = train("vae", tmp_path, *flags, "--per_device_eval_batch_size", 4)
    assert other.code == 0 and "Resuming after step 12" in other.output, other.output
    results = results_of(tmp_path)
    assert math.isfinite(results["metrics"]["nll"]) and results["metrics_missing"] == {} and results["steps"] == 12
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def break_plots() -> None:
    before_calls(matplotlib.pyplot, "subplots", [1], fail)


def test_plot_that_cannot_be_drawn_is_a_warning(tmp_path: Path) -> None:
    run = train("vae", tmp_path, fault=Fault(patch=break_plots))
    assert run.code == 0 and "The losses were not plotted: RuntimeError" in run.output, run.output
    assert results_of(tmp_path)["steps"] == 12 and "plots/loss.png" not in (tmp_path / "README.md").read_text()


def test_error_while_drawing_samples_is_a_warning(tmp_path: Path) -> None:
    # With each of eight evaluations, and for the film after each of the 11 steps before the last one.
    run = train("gan", tmp_path, fault=break_calls(GANObjective, "draw_samples", *range(1, 20)))
    assert run.code == 0 and run.output.count("No samples were drawn: RuntimeError") == 19, run.output
    assert results_of(tmp_path)["steps"] == 12 and not (tmp_path / "samples" / "film.webp").exists()
    assert "samples/step-000012.png" not in (tmp_path / "README.md").read_text()


def test_loss_beyond_what_a_perplexity_can_express_is_measured(tmp_path: Path) -> None:
    run = train("gpt", tmp_path, fault=Fault(patch=worse_by_a_thousand_nats))
    assert run.code == 0, run.output
    results = results_of(tmp_path)
    assert results["metrics"]["loss"] > 1000 and results["metrics"]["perplexity"] is None
    assert results["metrics_missing"] == {"perplexity": "the value is inf"}


def worse_by_a_thousand_nats() -> None:
    original = GPTObjective.evaluate

    def evaluate(self: GPTObjective, *args: Any) -> dict[str, Tensor]:
        return {"loss": original(self, *args)["loss"] + 1000}

    GPTObjective.evaluate = evaluate  # type: ignore[method-assign]


def test_average_over_nothing_is_nan() -> None:
    means = ItemMeans()
    means.add({"loss": torch.zeros(0), "nll": torch.ones(2)})
    found = means.compute(Processes())
    assert math.isnan(found["loss"]) and found["nll"] == pytest.approx(1)
