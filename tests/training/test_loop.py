"""What the loop promises besides resuming: the folder it leaves, bad input, bad numbers, trackers, time."""

from __future__ import annotations

import json
import math
import resource
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hfgen
from hfgen.model_folder import code_files
from tests.runs import (
    FAMILIES,
    Fault,
    before_calls,
    differences,
    everything,
    metrics,
    shared_run,
    streamed,
    train,
)
from training.checkpoint import storage
from training.step import PhaseTrainer


@pytest.fixture(scope="module")
def finished() -> dict[str, Path]:
    runs = {family: shared_run(family, "--report_to", "tensorboard") for family in FAMILIES}
    folders = {family: run.folder for family, run in runs.items()}
    assert all("AutoModel.from_pretrained" in run.run.output for run in runs.values())
    assert not any("shards" in run.run.output for run in runs.values())
    return folders


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_holds_what_the_design_promises(family: str, finished: dict[str, Path]) -> None:
    folder = finished[family]
    names = {path.name for path in folder.iterdir()} - {"README.md", "notebook.ipynb"}
    own = {
        "gpt": {"tokenizer.json", "tokenizer_config.json", "generation_config.json"},
        "gan": {"preprocessor_config.json", ".film"},
    }
    expected = own.get(family, {"preprocessor_config.json"})
    if family in ("vae", "ladder_vae", "gan"):  # with which diffusers loads it, too
        expected |= {"model_index.json", "pipeline.py", "model"}
    code = {path.name for path in code_files(Path(hfgen.models.__file__).with_name(f"modeling_{family}.py"))}
    assert names == expected | code | {"config.json", "model.safetensors", "results.json", "report.html",
                                       "metrics.jsonl", "samples", "plots", "checkpoints", "logs"}  # fmt: skip
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-000008", "step-000012"]
    assert {path.suffix for path in folder.glob("checkpoints/*/*")} == {".json", ".safetensors"}
    assert list((folder / "logs").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("family", FAMILIES)
def test_results_hold_metrics_data_and_time(family: str, finished: dict[str, Path]) -> None:
    results = json.loads((finished[family] / "results.json").read_text())
    name = {
        "autoencoder": "mse",
        "vae": "nll",
        "ladder_vae": "nll",
        "codec": "bits_per_pixel",
        "gan": "discriminator_accuracy",
        "gpt": "bits_per_char",
    }[family]
    assert math.isfinite(results["metrics"][name])
    assert results["model_type"] == f"hfgen_{family}"
    assert results["steps"] == 12 and results["examples_seen"] == 96 and results["skipped_steps"] == 0
    assert {"dataset", "split", "seconds_trained", "seconds_wall", "seconds_other", "choices",
            "share_outside_compute", "num_parameters",
            "hardware", "processes", "versions", "command", "arguments"} <= set(results)  # fmt: skip
    final = metrics(finished[family])[-1]
    assert {f"eval_{name}": value for name, value in results["metrics"].items()} == {
        name: value for name, value in final.items() if name != "step"
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_drawn_with_each_evaluation_and_losses_plotted(family: str, finished: dict[str, Path]) -> None:
    samples = list((finished[family] / "samples").iterdir())
    # A GAN with few images is evaluated twice as often.
    steps = [f"step-{step:06d}" for step in ((2, 3, 5, 6, 8, 9, 11, 12) if family == "gan" else (3, 6, 9, 12))]
    more = ["-interpolation", "-reconstructions", "-traversal"] if "vae" in family else []
    at_end = {
        "codec": {"step-000012-rate-distortion"},
        "gan": {"step-000012-comparison", "step-000012-interpolation", "film"},
        "gpt": set(),
    }.get(family, {"step-000012-map"})
    assert {path.stem for path in samples} == {step + name for step in steps for name in ["", *more]} | at_end
    if family == "gpt":
        assert all(len(path.read_text(encoding="utf-8")) > 5 for path in samples)
    else:
        assert all(np.asarray(Image.open(path)).std() > 1 for path in samples)
    plot = np.asarray(Image.open(finished[family] / "plots" / "loss.png").convert("L"))
    assert plot.shape[1] > plot.shape[0] and plot.std() > 5


def test_tensorboard_has_the_samples_of_every_step(finished: dict[str, Path]) -> None:
    shown = {}
    for file in (finished["vae"] / "logs").rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        shown |= {name: [event.step for event in events.Images(name)] for name in events.Tags()["images"]}
    names = ["samples", "reconstructions", "interpolation", "traversal"]
    assert shown == {**{name: [3, 6, 9, 12] for name in names}, "map": [12]}


def test_every_line_of_metrics_is_written_once(finished: dict[str, Path]) -> None:
    lines = metrics(finished["vae"])
    assert [line["step"] for line in lines if "loss" in line] == [5, 10, 12]
    assert [line["step"] for line in lines if "eval_elbo" in line] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--dataset_name", "no/such/place"], "no/such/place"),
        (["--image_column", "picture"], "picture"),
        (["--hidden_channels", 4, 4, 4, 4, 4], "image_size"),
        (["--streaming", "--num_train_epochs", 2], "--num_train_epochs"),
        (["--report_to", "abacus"], "abacus"),
        (["--per_device_train_batch_size", 0], "per_device_train_batch_size"),
    ],
)
def test_bad_input_is_reported_in_one_paragraph_and_leaves_nothing(
    flags: list[object], named: str, tmp_path: Path
) -> None:
    if "--streaming" in flags:
        flags = [*flags, *streamed("vae")]
    run = train("vae", tmp_path / "run", *flags)
    assert run.code == 1, run.output
    assert named in run.output and "Traceback" not in run.output
    assert not (tmp_path / "run").exists()


def test_foreign_folder_is_refused_and_untouched_even_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for flags in ([], ["--overwrite_output_dir"]):
        run = train("vae", tmp_path, *flags)
        assert run.code == 1 and "thesis.tex" in run.output
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_deletes_only_files_of_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train("vae", folder).code == 0
    first = everything(folder)
    (folder / "notes.txt").write_text("keep me")
    run = train("vae", folder, "--overwrite_output_dir", "--seed", 1, fault=Fault(at_step=1))
    assert run.code < 0
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "checkpoints", "metrics.jsonl", ".lock"}
    assert train("vae", folder, "--overwrite_output_dir").code == 0
    assert differences(first, everything(folder)) == []


def nan_in_calls(*numbers: int) -> None:
    def strike(_: PhaseTrainer, micro_batches: list[dict[str, torch.Tensor]], *__: object) -> None:
        for batch in micro_batches:
            batch["pixel_values"] = batch["pixel_values"] * float("nan")

    before_calls(PhaseTrainer, "accumulate", numbers, strike)


def infinite_weight() -> None:
    def strike(trainer: PhaseTrainer, *_: object) -> None:
        with torch.no_grad():
            list(trainer.phase.loss.model.decoder.parameters())[-1].fill_(float("inf"))

    before_calls(PhaseTrainer, "accumulate", [6], strike)


# In the middle; before an evaluation is due (6); at the end (12).
@pytest.mark.parametrize(("step", "examples"), [(6, "40 to 47"), (7, "48 to 55"), (12, "88 to 95")])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_nonfinite_loss_stops_before_the_update_and_names_its_place(
    optimizer: str, step: int, examples: str, tmp_path: Path
) -> None:
    run = train("vae", tmp_path, "--optimizer", optimizer, fault=Fault(patch=partial(nan_in_calls, step)))
    assert run.code == 1 and "Traceback" not in run.output
    assert f"Step {step}, phase 'model'" in run.output and "'pixel_values'" in run.output
    assert f"examples {examples}" in run.output
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == [f"step-{last:06d}" for last in range(4, step, 4)]
    assert metrics(tmp_path)[-1]["step"] < step
    assert all(value is not None for line in metrics(tmp_path) for value in line.values())
    assert not (tmp_path / "results.json").exists()


def test_nonfinite_loss_names_the_module_it_began_in(tmp_path: Path) -> None:
    run = train("autoencoder", tmp_path, fault=Fault(patch=infinite_weight))
    assert run.code == 1 and "first in the module 'model.decoder" in run.output, run.output


def test_skipped_steps_are_counted_and_leave_no_trace_in_statistics(tmp_path: Path) -> None:
    # Otherwise the generator's batch normalization would keep NaN in its running averages forever.
    run = train("gan", tmp_path, "--on_nonfinite", "skip", fault=Fault(patch=partial(nan_in_calls, 4, 9)))
    assert run.code == 0, run.output
    results = json.loads((tmp_path / "results.json").read_text())
    # Of the second step, both updates of the discriminator and the generator's, whose images are compared with real
    # ones; and the generator's of the third.
    assert results["skipped_steps"] == 4 and results["steps"] == 12
    assert all(value is not None for line in metrics(tmp_path) for value in line.values())


def break_tracker(method: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("the server is gone")

    setattr(TensorBoardTracker, method, fail)


@pytest.mark.parametrize("method", ["start", "store_init_configuration", "log", "log_images", "finish"])
def test_failing_tracker_never_stops_a_run(method: str, finished: dict[str, Path], tmp_path: Path) -> None:
    run = train("vae", tmp_path / "run", "--report_to", "tensorboard",
                fault=Fault(patch=partial(break_tracker, method)))  # fmt: skip
    assert run.code == 0 and run.output.count("the server is gone") == 1, run.output
    assert differences(everything(finished["vae"]), everything(tmp_path / "run")) == []


def test_run_in_seconds_ends_in_time_with_the_learning_rate_near_zero(tmp_path: Path) -> None:
    started = time.monotonic()
    run = train("vae", tmp_path, "--max_train_steps", 10**6, "--max_train_seconds", 2)
    assert run.code == 0 and time.monotonic() - started < 30
    results = json.loads((tmp_path / "results.json").read_text())
    assert 2 <= results["seconds_trained"] < 3
    rates = [line["learning_rate"] for line in metrics(tmp_path) if "learning_rate" in line]
    assert rates == sorted(rates, reverse=True) or rates[0] < rates[1]  # the first line may be in the warm-up
    assert rates[-1] < 0.1 * max(rates)
    assert sum("eval_elbo" in line for line in metrics(tmp_path)) == 4


def fill_disk() -> None:
    """A limit on file sizes: the closest to a full disk that every machine has."""

    class FullDisk(storage.Disk):
        def save_tensors(self, tensors: dict[str, torch.Tensor], path: Path, *args: Any) -> None:
            if path.parent.name == ".step-000008":
                resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
            super().save_tensors(tensors, path, *args)

    storage.disk = FullDisk()


def test_full_disk_stops_with_a_readable_error_and_the_previous_checkpoint(tmp_path: Path) -> None:
    run = train("vae", tmp_path, fault=Fault(patch=fill_disk))
    assert run.code == 1 and "Traceback" not in run.output, run.output
    assert "step 8 could not be written" in run.output and "step-000004" in run.output
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]
    assert train("vae", tmp_path).code == 0
