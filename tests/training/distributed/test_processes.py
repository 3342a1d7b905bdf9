"""Several processes compute what one process computes, and end well."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runs import COMMON, FAMILIES, OWN, ROOT, Fault, differences, everything, metrics, train


# 37 examples for evaluation in batches of 8: the last batch is not full, and no two processes have as many.
ONE = ["--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 1]
TWO = ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 1]
OTHER_FLAGS = {
    # Dropout draws from the generator of the process: it alone does not belong to the example.
    "gpt": ["--attention_dropout", 0, "--hidden_dropout", 0, "--embedding_dropout", 0],
    "gan": ["--logging_steps", 1],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Each family: one process, one that accumulates, and two, at the same global batch."""
    folders = {}
    for family in FAMILIES:
        own = OTHER_FLAGS.get(family, [])
        for kind, flags, processes in (("one", ONE, 1), ("accumulated", COMMON[:4], 1), ("two", TWO, 2)):
            folder = tmp_path_factory.mktemp(kind) / family
            run = train(family, folder, *flags, *own, processes=processes)
            assert run.code == 0, run.output
            folders[family, kind] = folder
    return folders


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "step"} for line in metrics(folder)]


@pytest.mark.parametrize("kind", ["accumulated", "two"])
@pytest.mark.parametrize("family", ["autoencoder", "vae", "gpt"])
def test_losses_equal_those_of_one_process(family: str, kind: str, runs: dict[tuple[str, str], Path]) -> None:
    one, other = numbers(runs[family, "one"]), numbers(runs[family, kind])
    assert len(one) == len(other) == 7
    for expected, found in zip(one, other):
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("kind", ["accumulated", "two"])
def test_gan_equals_one_process_but_for_batch_normalisation(kind: str, runs: dict[tuple[str, str], Path]) -> None:
    """The generator normalises over the examples that a process has at once, so its images differ a little.

    In the first step, whose learning rate is 0, the losses agree to the size of that difference.
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
    """Also with fewer batches than processes: with 3 examples the second one has none."""
    flags = ["--max_eval_samples", examples, "--max_train_steps", 2]
    assert train("vae", tmp_path / "one", *ONE, *flags).code == 0
    run = train("vae", tmp_path / "two", *TWO, *flags, processes=2)
    assert run.code == 0, run.output
    assert numbers(tmp_path / "two")[-1] == pytest.approx(numbers(tmp_path / "one")[-1], rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_resume_to_the_bit_when_only_one_gets_the_signal(
    family: str, runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    fault = Fault(signal.SIGTERM, at_step=6, rank=1)
    flags = [*TWO, *OTHER_FLAGS.get(family, [])]
    stopped = train(family, tmp_path / "run", *flags, fault=fault, processes=2)
    assert stopped.code == 0 and stopped.output.count("To go on") == 1, stopped.output
    assert train(family, tmp_path / "run", *flags, processes=2).code == 0
    assert differences(everything(runs[family, "two"]), everything(tmp_path / "run")) == []


def test_nonfinite_step_is_skipped_by_all_processes_together(tmp_path: Path) -> None:
    """Only one process sees the loss that is not finite; were it alone to skip, the weights would part for ever."""
    code = """
from training import step as phases
accumulate, calls = phases.PhaseTrainer._accumulate, 0
def patched(self, batches, rngs):
    global calls
    calls += 1
    if calls == 5:
        batches[0]["pixel_values"].fill_(float("nan"))
    return accumulate(self, batches, rngs)
phases.PhaseTrainer._accumulate = patched
"""
    run = train("vae", tmp_path, *TWO, "--on_nonfinite", "skip", fault=Fault(code=code, rank=1), processes=2)
    assert run.code == 0, run.output
    assert json.loads((tmp_path / "results.json").read_text())["skipped_steps"] == 1
    assert all(value is not None for line in metrics(tmp_path) for value in line.values())


TELL_BUFFERS = """
import json, os
from pathlib import Path
from training import loop
evaluate = loop.evaluate
def patched(objective, model, *args, **kwargs):
    found = evaluate(objective, model, *args, **kwargs)
    sums = {name: buffer.double().sum().item() for name, buffer in model.named_buffers()}
    with open(f"FOLDER/buffers-{os.environ['RANK']}", "a") as file:
        file.write(json.dumps(sums) + "\\n")
    return found
loop.evaluate = patched
"""


def test_all_processes_measure_with_the_running_averages_of_the_main_one(tmp_path: Path) -> None:
    """Each has its own of batch normalisation; only the main process's are saved, and a resumed run has no others."""
    fault = Fault(code=TELL_BUFFERS.replace("FOLDER", str(tmp_path)))
    run = train("gan", tmp_path / "run", *TWO, fault=fault, processes=2)
    assert run.code == 0, run.output
    one, other = ((tmp_path / f"buffers-{rank}").read_text().splitlines() for rank in range(2))
    assert one == other and len(one) == 4 and len(set(one)) == 4 and "running_mean" in one[0]


FULL_DISK = """
import torch
from training.checkpoint import storage as checkpoint
complete, calls = checkpoint._complete, 0
def patched(*args):
    global calls
    calls += 1
    if calls == 2:
        raise OSError(28, "No space left on device")
    return complete(*args)
checkpoint._complete = patched
"""


def test_full_disk_of_the_main_process_ends_all_with_the_same_words(tmp_path: Path) -> None:
    run = train("vae", tmp_path, *TWO, fault=Fault(code=FULL_DISK), processes=2)
    assert [process.exitcode for process in run.processes] == [1, 1]
    assert run.output.count("step 8 could not be written") == 2 and "Traceback" not in run.output, run.output
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]


def test_folder_that_will_not_do_is_refused_by_all_processes(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    run = train("vae", tmp_path, *TWO, processes=2)
    assert [process.exitcode for process in run.processes] == [1, 1]
    assert run.output.count("thesis.tex") == 2 and "Traceback" not in run.output, run.output


@pytest.mark.parametrize("family", ["autoencoder", "vae"])
def test_run_goes_on_with_fewer_processes_and_the_same_examples_a_step(
    family: str, runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    assert train(family, tmp_path, *TWO, fault=Fault(signal.SIGTERM, at_step=5), processes=2).code == 0
    run = train(family, tmp_path, *TWO)
    assert run.code == 0 and "2 micro-steps a step instead of 1" in run.output, run.output
    for expected, found in zip(numbers(runs[family, "two"]), numbers(tmp_path), strict=True):
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("family", "launch"),
    [
        ("vae", "--multi_gpu --num_processes 2 --mixed_precision no"),
        ("gpt", "--use_fsdp --fsdp_version 2 --num_processes 2 --mixed_precision no"),
    ],
)
def test_accelerate_launch_ends_with_status_0(family: str, launch: str, tmp_path: Path) -> None:
    """gloo sometimes aborts a process that exits after all its work is done. In full: HFGEN_LAUNCHES=20."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch.split(), "--main_process_port", str(port),
               f"training/train_{family}.py", *COMMON, *OWN[family], "--max_train_steps", "2"]  # fmt: skip
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for number in range(int(os.environ.get("HFGEN_LAUNCHES", "1"))):
        output_dir = tmp_path / str(number)
        done = subprocess.run(
            [*command, "--output_dir", str(output_dir)], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert json.loads((output_dir / "results.json").read_text())["processes"] == 2
        (last,) = (output_dir / "checkpoints").iterdir()
        assert len(list(last.glob("model.shard-*"))) == (2 if "fsdp" in launch else 0)


def test_signal_to_the_launcher_alone_stops_the_training(tmp_path: Path) -> None:
    """`accelerate launch` dies of SIGTERM and leaves its one process behind, which would train on unseen."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1",
               "training/train_vae.py", *COMMON, *OWN["vae"], "--output_dir", str(tmp_path / "run"),
               "--max_train_steps", "1000000"]  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
        launcher.terminate()
        launcher.wait(30)
    wait_until(lambda: "To go on" in (tmp_path / "log").read_text())
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
