"""What the loop promises beside resuming: the folder it leaves, bad input, bad numbers, trackers, time."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runs import FAMILIES, Fault, differences, everything, metrics, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp("finished") / family
        run = train(family, folders[family], "--report_to", "tensorboard")
        assert run.code == 0, run.output
        assert "AutoModel.from_pretrained" in run.output and "shards" not in run.output
    return folders


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_holds_what_the_design_promises(family: str, finished: dict[str, Path]) -> None:
    folder = finished[family]
    names = {path.name for path in folder.iterdir()} - {"README.md"}
    own = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    expected = own if family == "gpt" else {"preprocessor_config.json"}
    assert names == expected | {"config.json", "model.safetensors", f"modeling_{family}.py", "results.json",
                                "metrics.jsonl", "samples", "plots", "checkpoints", "logs"}  # fmt: skip
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-000008", "step-000012"]
    assert {path.suffix for path in folder.glob("checkpoints/*/*")} == {".json", ".safetensors"}
    assert list((folder / "logs").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("family", FAMILIES)
def test_results_tell_metrics_data_and_time(family: str, finished: dict[str, Path]) -> None:
    results = json.loads((finished[family] / "results.json").read_text())
    name = {"autoencoder": "mse", "vae": "nll", "gan": "discriminator_accuracy", "gpt": "bits_per_char"}[family]
    assert math.isfinite(results["metrics"][name])
    assert results["model_type"] == f"hfgen_{family}"
    assert results["steps"] == 12 and results["examples_seen"] == 96 and results["skipped_steps"] == 0
    assert {"dataset", "split", "seconds_trained", "seconds_evaluated", "share_outside_compute", "num_parameters",
            "hardware", "processes", "versions", "command", "arguments"} <= set(results)  # fmt: skip
    final = metrics(finished[family])[-1]
    assert {f"eval_{name}": value for name, value in results["metrics"].items()} == {
        name: value for name, value in final.items() if name != "step"
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_come_with_each_quarter_and_plots_are_drawn(family: str, finished: dict[str, Path]) -> None:
    samples = sorted((finished[family] / "samples").iterdir())
    assert [path.stem for path in samples] == ["step-000003", "step-000006", "step-000009", "step-000012"]
    if family == "gpt":
        assert all(len(path.read_text(encoding="utf-8")) > 5 for path in samples)
    else:
        assert all(np.asarray(Image.open(path)).std() > 1 for path in samples)
    plot = np.asarray(Image.open(finished[family] / "plots" / "loss.png").convert("L"))
    assert plot.shape[1] > plot.shape[0] and plot.std() > 5


def test_every_line_of_metrics_is_there_once(finished: dict[str, Path]) -> None:
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
def test_bad_input_is_told_in_one_paragraph_and_leaves_nothing(
    flags: list[object], named: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if "--streaming" in flags:
        from tests.training.checkpoint.test_resume import write_dataset

        flags = [*flags, "--dataset_name", write_dataset("vae", tmp_path_factory.mktemp("data") / "images")]
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


def test_overwriting_deletes_files_of_the_run_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train("vae", folder).code == 0
    first = everything(folder)
    (folder / "notes.txt").write_text("keep me")
    run = train("vae", folder, "--overwrite_output_dir", "--seed", 1, fault=Fault(at_step=1))
    assert run.code < 0
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "checkpoints", "metrics.jsonl"}
    assert train("vae", folder, "--overwrite_output_dir").code == 0
    assert differences(first, everything(folder)) == []


NAN_IN_STEP = """
import torch
from training import step as phases
accumulate, calls = phases.PhaseTrainer._accumulate, 0
def patched(self, batches, draws):
    global calls
    calls += 1
    if calls in {at}:
        for batch in batches:
            batch["pixel_values"] = batch["pixel_values"] * float("nan")
    return accumulate(self, batches, draws)
phases.PhaseTrainer._accumulate = patched
"""
INFINITE_WEIGHT = """
import torch
from training import step as phases
accumulate, calls = phases.PhaseTrainer._accumulate, 0
def patched(self, batches, draws):
    global calls
    calls += 1
    if calls == 6:
        with torch.no_grad():
            list(self.phase.loss.model.decoder.parameters())[-1].fill_(float("inf"))
    return accumulate(self, batches, draws)
phases.PhaseTrainer._accumulate = patched
"""


def test_nonfinite_loss_stops_before_the_update_and_names_its_place(tmp_path: Path) -> None:
    run = train("vae", tmp_path, fault=Fault(code=NAN_IN_STEP.format(at="{6}")))
    assert run.code == 1 and "Traceback" not in run.output
    assert "Step 6, phase 'model'" in run.output and "'pixel_values'" in run.output
    assert "examples 40 to 47" in run.output
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]
    assert not (tmp_path / "results.json").exists()


LOOKS_LATER = """
from training import step as phases
phases.looks_later = lambda *_: True
"""


@pytest.mark.parametrize(("step", "examples"), [(6, "40 to 47"), (7, "48 to 55"), (12, "88 to 95")])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_nonfinite_loss_is_named_rightly_where_nobody_waits_for_the_device(
    optimizer: str, step: int, examples: str, tmp_path: Path
) -> None:
    """As on a GPU: looked at a step later, or before anything is written, here an evaluation (6) and the end (12)."""
    code = LOOKS_LATER + NAN_IN_STEP.format(at=f"{{{step}}}")
    run = train("vae", tmp_path, "--optimizer", optimizer, fault=Fault(code=code))
    assert run.code == 1 and "Traceback" not in run.output
    assert f"Step {step}, phase 'model'" in run.output and f"examples {examples}" in run.output
    assert max((tmp_path / "checkpoints").iterdir()).name == f"step-{(step - 1) // 4 * 4:06d}"
    assert all(value is not None for line in metrics(tmp_path) for value in line.values())


@pytest.mark.parametrize("family", ["gan", "vae"])
def test_looking_later_changes_nothing(family: str, finished: dict[str, Path], tmp_path: Path) -> None:
    assert train(family, tmp_path, fault=Fault(code=LOOKS_LATER)).code == 0
    assert differences(everything(finished[family]), everything(tmp_path)) == []


def test_nonfinite_loss_names_the_module_it_began_in(tmp_path: Path) -> None:
    run = train("autoencoder", tmp_path, fault=Fault(code=INFINITE_WEIGHT))
    assert run.code == 1 and "first in the module 'model.decoder" in run.output, run.output


def test_skipped_steps_are_counted_and_leave_no_trace_in_statistics(tmp_path: Path) -> None:
    # The generator's batch normalisation would carry NaN in its running averages for ever.
    run = train("gan", tmp_path, "--on_nonfinite", "skip", fault=Fault(code=NAN_IN_STEP.format(at="{4, 9}")))
    assert run.code == 0, run.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["skipped_steps"] == 2 and results["steps"] == 12
    assert all(value is not None for line in metrics(tmp_path) for value in line.values())


BROKEN_TRACKER = """
from accelerate.tracking import TensorBoardTracker
def fail(self, *args, **kwargs):
    raise ConnectionError("the server is gone")
TensorBoardTracker.{method} = fail
"""


@pytest.mark.parametrize("method", ["start", "store_init_configuration", "log", "finish"])
def test_failing_tracker_never_stops_a_run(method: str, finished: dict[str, Path], tmp_path: Path) -> None:
    run = train("vae", tmp_path / "run", "--report_to", "tensorboard",
                fault=Fault(code=BROKEN_TRACKER.format(method=method)))  # fmt: skip
    assert run.code == 0 and run.output.count("the server is gone") == 1, run.output
    assert differences(everything(finished["vae"]), everything(tmp_path / "run")) == []


def test_run_in_seconds_ends_in_time_with_the_learning_rate_near_zero(tmp_path: Path) -> None:
    started = time.monotonic()
    run = train("vae", tmp_path, "--max_train_steps", 10**6, "--max_train_seconds", 2)
    assert run.code == 0 and time.monotonic() - started < 30
    results = json.loads((tmp_path / "results.json").read_text())
    assert 2 <= results["seconds_trained"] < 3
    rates = [line["learning_rate"] for line in metrics(tmp_path) if "learning_rate" in line]
    assert rates == sorted(rates, reverse=True) or rates[0] < rates[1]  # the first line may lie in the warm-up
    assert rates[-1] < 0.1 * max(rates)
    assert sum("eval_elbo" in line for line in metrics(tmp_path)) == 4


def test_full_disk_stops_with_a_readable_error_and_the_previous_checkpoint(tmp_path: Path) -> None:
    # A limit on the size of files is the nearest to a full disk that every machine has.
    full = """
import resource, signal
from training import loop
save, calls = loop.storage.save, 0
def patched(*args):
    global calls
    calls += 1
    if calls == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    return save(*args)
loop.storage.save = patched
"""
    run = train("vae", tmp_path, fault=Fault(code=full))
    assert run.code == 1 and "Traceback" not in run.output, run.output
    assert "step 8 could not be written" in run.output and "step-000004" in run.output
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]
    assert train("vae", tmp_path).code == 0
