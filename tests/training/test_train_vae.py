"""The scale of the latents, which a VAE's training measures at its end and publishes in the config."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from hfgen import VAEModel
from tests.runs import TWO, Fault, before_calls, copy_run, shared_run, streamed, train
from training.config.flags import DataArguments
from training.data.feeds.batches import GlobalBatch
from training.data.images import load_images
from training.variational import VariationalObjective


SPATIAL = ("--latent_type", "spatial", "--num_labels", 10)


def measured(folder: Path) -> tuple[float, float]:
    """scaling_factor and shift_factor as published; the config and results.json agree."""
    found = [json.loads((folder / name).read_text()) for name in ("config.json", "results.json")]
    of_config, of_results = ((content["scaling_factor"], content["shift_factor"]) for content in found)
    assert of_config == of_results and of_config != (1.0, 0.0)
    return of_config


@pytest.mark.parametrize("flags", [(), SPATIAL], ids=["vector", "spatial and conditional"])
def test_latents_of_the_training_images_are_standardized_by_the_config(flags: tuple[object, ...]) -> None:
    folder = shared_run("vae", *flags).folder
    data = load_images(DataArguments(max_train_samples=50), 0)
    batch = next(data.train.batches(0, GlobalBatch(50), torch.device("cpu")))
    model = VAEModel.from_pretrained(folder)

    labels = batch["labels"] if model.config.num_labels else None
    with torch.no_grad():
        posterior = model.encode(batch["pixel_values"], labels).latent_dist
    # Half of the mass one standard deviation below the mean, half above it, has the mean and variance of a normal one.
    latents = torch.cat([posterior.mean - posterior.std, posterior.mean + posterior.std])
    standardized = (latents - model.config.shift_factor) * model.config.scaling_factor

    assert float(standardized.mean()) == pytest.approx(0, abs=1e-5)
    assert float(standardized.std(correction=0)) == pytest.approx(1, abs=1e-5)
    measured(folder)


def test_an_interrupted_run_and_a_longer_one_measure_what_they_publish(tmp_path: Path) -> None:
    expected = measured(shared_run("vae").folder)

    assert train("vae", tmp_path, fault=Fault(signal.SIGTERM, at_step=6)).code == 0
    assert not (tmp_path / "config.json").exists()
    assert train("vae", tmp_path).code == 0
    assert measured(tmp_path) == expected

    longer = train("vae", tmp_path, "--max_train_steps", 16)
    assert longer.code == 0, longer.output
    assert measured(tmp_path) != expected


def test_several_processes_measure_what_one_does(tmp_path: Path) -> None:
    run = train("vae", tmp_path, *TWO, processes=2)
    assert run.code == 0, run.output
    assert measured(tmp_path) == pytest.approx(measured(shared_run("vae").folder), rel=1e-4)


def test_the_latents_of_a_stream_are_measured(tmp_path: Path) -> None:
    run = train("vae", tmp_path, *streamed("vae"))
    assert run.code == 0, run.output
    measured(tmp_path)


def test_a_run_resumes_although_the_model_that_it_started_from_was_measured_again(tmp_path: Path) -> None:
    start, run = copy_run("vae", tmp_path / "start"), tmp_path / "run"
    assert train("vae", run, "--model_name_or_path", start, fault=Fault(signal.SIGTERM, at_step=6)).code == 0
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps({**config, "scaling_factor": 2.0, "shift_factor": 1.0}))

    resumed = train("vae", run, "--model_name_or_path", start)

    assert resumed.code == 0 and "Resuming after step 7" in resumed.output, resumed.output
    assert measured(run) != (2.0, 1.0)


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("the measure is broken.")


def test_a_measurement_that_fails_is_a_warning_and_leaves_the_default(tmp_path: Path) -> None:
    run = train(
        "vae", tmp_path, fault=Fault(patch=partial(before_calls, VariationalObjective, "measure_config", [1], fail))
    )
    assert run.code == 0 and "No config fields were measured: RuntimeError" in run.output, run.output
    config = VAEModel.from_pretrained(tmp_path).config
    assert (config.scaling_factor, config.shift_factor) == (1.0, 0.0)
    assert "scaling_factor" not in json.loads((tmp_path / "results.json").read_text())


def test_what_is_measured_is_no_flag(tmp_path: Path) -> None:
    run = train("vae", tmp_path / "run", "--scaling_factor", 2)
    assert run.code != 0 and "--scaling_factor" in run.output and not (tmp_path / "run").exists()
