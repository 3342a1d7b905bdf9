"""Several processes compute what one process computes, and end cleanly."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import (
    COMMON,
    FAMILIES,
    NO_DROPOUT,
    ONE,
    OWN,
    ROOT,
    TWO,
    Fault,
    before_calls,
    differences,
    everything,
    free_port,
    metrics,
    resume_command,
    shared_run,
    start,
    text_file,
    train,
    wait_until,
)
from training import loop
from training.checkpoint import storage
from training.step import PhaseTrainer


# 37 examples for evaluation in batches of 8: the last batch is not full, and the processes do not have equally many.
EACH_STEP = ["--logging_steps", "1"]
KINDS = {"one": (ONE, 1), "accumulated": (COMMON[:4], 1), "two": (TWO, 2)}


def flags_of(family: str, kind: str) -> list[str]:
    return [*KINDS[kind][0], *EACH_STEP, *(NO_DROPOUT if family == "gpt" else [])]


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, str], Path]:
    """Each family: one process, one that accumulates, and two, at the same global batch."""
    started = {
        (family, kind): shared_run(family, *flags_of(family, kind), processes=processes)
        for family in FAMILIES
        for kind, (_, processes) in KINDS.items()
    }
    return {name: run.folder for name, run in started.items()}


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "step"} for line in metrics(folder)]


@pytest.mark.parametrize("kind", ["accumulated", "two"])
@pytest.mark.parametrize("family", ["autoencoder", "vae", "ladder_vae", "codec", "gpt"])
def test_losses_equal_those_of_one_process(family: str, kind: str, runs: dict[tuple[str, str], Path]) -> None:
    one, other = numbers(runs[family, "one"]), numbers(runs[family, kind])
    assert len(one) == len(other) == 16
    for expected, found in zip(one, other):
        not_measured = {name for name, value in expected.items() if value is None}
        assert not_measured == {name for name, value in found.items() if value is None}
        measured = {name: value for name, value in expected.items() if name not in not_measured}
        assert {name: found[name] for name in found if name not in not_measured} == pytest.approx(
            measured, rel=2e-4, abs=1e-6
        )


@pytest.mark.parametrize("kind", ["accumulated", "two"])
def test_gan_equals_one_process_except_for_batch_normalization(kind: str, runs: dict[tuple[str, str], Path]) -> None:
    """The generator normalizes over the examples that a process has at once, so its images differ a little.

    In the first step, whose learning rate is 0, the losses agree up to that difference.
    """
    one, other = (numbers(runs["gan", name])[0] for name in ("one", kind))
    assert one["learning_rate"] == other["learning_rate"] == 0
    assert one.keys() == other.keys()
    assert other["discriminator_loss"] == pytest.approx(one["discriminator_loss"], rel=0.03)
    assert other["generator_loss"] == pytest.approx(one["generator_loss"], abs=0.01)


def test_results_count_examples_and_processes(runs: dict[tuple[str, str], Path]) -> None:
    results = {kind: json.loads((runs["vae", kind] / "results.json").read_text()) for kind in ("one", "two")}
    assert [results[kind]["examples_seen"] for kind in results] == [96, 96]
    assert [results[kind]["processes"] for kind in results] == [1, 2]


@pytest.mark.parametrize("examples", [3, 17])
def test_evaluation_counts_each_example_once(examples: int, tmp_path: Path) -> None:
    """Even with fewer batches than processes: of 3 examples, the second process gets none."""
    flags = ["--max_eval_samples", examples, "--max_train_steps", 2]
    one = start("vae", tmp_path / "one", *ONE, *flags)
    two = train("vae", tmp_path / "two", *TWO, *flags, processes=2)
    assert two.code == one.wait().code == 0, two.output
    assert numbers(tmp_path / "two")[-1] == pytest.approx(numbers(tmp_path / "one")[-1], rel=1e-4)


# One optimizer and two, images and texts, and tables that are made at the end.
@pytest.mark.parametrize("family", ["vae", "gan", "codec", "gpt"])
def test_two_processes_resume_to_the_bit_when_only_one_gets_the_signal(
    family: str, runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    fault = Fault(signal.SIGTERM, at_step=6, rank=1)
    flags = flags_of(family, "two")
    stopped = train(family, tmp_path / "run", *flags, fault=fault, processes=2)
    assert stopped.code == 0 and stopped.output.count("Stopped after step") == 1, stopped.output
    assert train(family, tmp_path / "run", *flags, processes=2).code == 0
    assert differences(everything(runs[family, "two"]), everything(tmp_path / "run")) == []


def nan_in_the_fifth_step() -> None:
    def strike(_: PhaseTrainer, micro_batches: list[dict[str, torch.Tensor]], *__: object) -> None:
        micro_batches[0]["pixel_values"].fill_(float("nan"))

    before_calls(PhaseTrainer, "accumulate", [5], strike)


def test_nonfinite_step_is_skipped_by_all_processes_together(tmp_path: Path) -> None:
    """Only one process sees the loss that is not finite. If it alone skipped the step, the weights would diverge."""
    fault = Fault(patch=nan_in_the_fifth_step, rank=1)
    run = train("vae", tmp_path, *TWO, "--on_nonfinite", "skip", fault=fault, processes=2)
    assert run.code == 0, run.output
    assert json.loads((tmp_path / "results.json").read_text())["skipped_steps"] == 1
    assert all(value is not None for line in metrics(tmp_path) for value in line.values())


def record_buffers(folder: Path) -> None:
    evaluate = loop.evaluate

    def patched(objective: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        found = evaluate(objective, model, *args, **kwargs)
        sums = {name: buffer.double().sum().item() for name, buffer in model.named_buffers()}
        with open(folder / f"buffers-{os.environ['RANK']}", "a") as file:
            file.write(json.dumps(sums) + "\n")
        return found

    loop.evaluate = patched


def test_all_processes_measure_with_the_running_averages_of_the_main_one(tmp_path: Path) -> None:
    """Batch normalization has its own in each process; only the main process's are saved, for a resumed run to use."""
    run = train("gan", tmp_path / "run", *TWO, fault=Fault(patch=partial(record_buffers, tmp_path)), processes=2)
    assert run.code == 0, run.output
    one, other = ((tmp_path / f"buffers-{rank}").read_text().splitlines() for rank in range(2))
    assert one == other and len(one) == 8 and len(set(one)) == 8 and "running_mean" in one[0]


def fail_to_write(error: Exception) -> None:
    """The second checkpoint's JSON cannot be written."""

    class FaultyDisk(storage.Disk):
        def write_json(self, path: Path, content: Any) -> None:
            if path.parent.name == ".step-000008":
                raise error
            super().write_json(path, content)

    storage.disk = FaultyDisk()


def end_with_the_same_words(error: Exception, words: str, folder: Path) -> str:
    """Lets the main process fail to write, and returns what both processes printed."""
    fault = Fault(patch=partial(fail_to_write, error), rank=0)
    run = train("vae", folder, *TWO, fault=fault, processes=2, timeout=30)
    assert [process.exitcode for process in run.processes] == [1, 1]
    assert len(re.findall(rf"^.*{words}", run.output, re.MULTILINE)) >= 2, run.output
    assert "step-000004" in [path.name for path in (folder / "checkpoints").iterdir()]
    assert train("vae", folder, *TWO, processes=2).code == 0
    return run.output


def test_full_disk_of_the_main_process_ends_all_with_the_same_words(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    assert "Traceback" not in end_with_the_same_words(error, "step 8 could not be written", tmp_path)


def test_any_exception_of_the_main_process_reaches_all(tmp_path: Path) -> None:
    """One that nobody expects. Not forwarded, it would leave the other process waiting forever."""
    words = "Object of type set is not JSON serializable"
    end_with_the_same_words(TypeError(words), words, tmp_path)


def test_unusable_folder_is_refused_by_all_processes(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    run = train("vae", tmp_path, *TWO, processes=2)
    assert [process.exitcode for process in run.processes] == [1, 1]
    assert run.output.count("thesis.tex") == 2 and "Traceback" not in run.output, run.output


@pytest.mark.parametrize("family", ["autoencoder", "vae"])
def test_run_goes_on_with_fewer_processes_and_the_same_examples_a_step(
    family: str, runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    flags = flags_of(family, "two")
    assert train(family, tmp_path, *flags, fault=Fault(signal.SIGTERM, at_step=5), processes=2).code == 0
    run = train(family, tmp_path, *flags)
    assert run.code == 0 and re.search("2 micro-.* instead of 1", run.output), run.output
    for expected, found in zip(numbers(runs[family, "two"]), numbers(tmp_path), strict=True):
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6)


@pytest.mark.slow
def test_accelerate_launch_shards_and_ends_with_status_0(tmp_path: Path) -> None:
    """gloo sometimes aborts a process that exits after all its work is done. In full: HFGEN_LAUNCHES=20.

    Without shards, test_nodes.py looks at the status of the launcher.
    """
    launch = ["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "--mixed_precision", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "--main_process_port", str(free_port()),
               "training/train_gpt.py", *COMMON, *OWN["gpt"], "--max_train_steps", "2"]  # fmt: skip
    command += ["--dataset_name", str(text_file())]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for number in range(int(os.environ.get("HFGEN_LAUNCHES", "1"))):
        folder = tmp_path / str(number)
        done = subprocess.run([*command, "--output_dir", folder], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads((folder / "results.json").read_text())["processes"] == 2
        (last,) = (folder / "checkpoints").iterdir()
        assert len(list(last.glob("model.shard-*"))) == 2


def test_signal_to_the_launcher_alone_stops_the_training(tmp_path: Path) -> None:
    """`accelerate launch` dies of SIGTERM and leaves its only process behind, which would train on unnoticed."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1",
               "training/train_vae.py", *COMMON, *OWN["vae"], "--output_dir", str(tmp_path / "run"),
               "--max_train_steps", "1000000"]  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
        launcher.terminate()
        launcher.wait(30)
    wait_until(lambda: "Stopped after step" in (tmp_path / "log").read_text())
    assert "--output_dir" in resume_command((tmp_path / "log").read_text())
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
