"""FSDP2: a GPT that is sharded over two processes trains, stops, resumes and is published like any other.

Whole trainings on the CPU over gloo, with torch's own sharding: what a GPU adds is NCCL and its kernels.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.runs import (
    NO_DROPOUT,
    SHARDED,
    Fault,
    Run,
    before_calls,
    differences,
    everything,
    metrics,
    shared_run,
    start,
    train,
)
from training.checkpoint import storage
from training.checkpoint.storage import CheckpointError, load
from training.distributed.processes import Processes
from training.durable_files import write_json
from training.step import PhaseTrainer


# 8 examples per step, as with one process.
TWO = [*NO_DROPOUT, "--per_device_train_batch_size", 2]
# Numbers of rows that two processes cannot share evenly; a gradient that is clipped; AdamW, which computes in fp32.
UNEVEN = ["--vocab_size", 301, "--intermediate_size", 65, "--max_grad_norm", 1, "--optimizer", "adamw"]


def sharded(folder: Path | list[Path], *flags: object, **how: Any) -> Run:
    return train("gpt", folder, *TWO, *UNEVEN, *flags, processes=2, environment=SHARDED, **how)


def numbers(folder: Path) -> list[Any]:
    return [pytest.approx({k: v for k, v in line.items() if v is not None}, rel=1e-4) for line in metrics(folder)]


@pytest.fixture(scope="module")
def whole() -> Path:
    """A sharded run that nothing interrupted."""
    return shared_run("gpt", *TWO, *UNEVEN, processes=2, sharded=True).folder


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sharded_training_equals_data_parallel_training(optimizer: str, tmp_path: Path) -> None:
    flags = [*TWO, *UNEVEN, *(["--optimizer", optimizer] if optimizer != "adamw" else [])]
    plain = start("gpt", tmp_path, *flags, processes=2)
    shards = shared_run("gpt", *flags, processes=2, sharded=True).folder
    assert plain.wait().code == 0
    assert metrics(tmp_path) == numbers(shards)


def test_weights_are_sharded_over_the_processes_and_published_whole(whole: Path) -> None:
    last = whole / "checkpoints" / "step-000012"
    parts = [load_file(last / f"model.shard-0000{rank}-of-00002.safetensors") for rank in range(2)]
    rows = [part["model.embed_tokens.weight"].shape for part in parts]
    assert rows == [(151, 16), (150, 16)]
    published, average = load_file(whole / "model.safetensors"), load(last).tensors["average"]
    assert set(published) <= set(average)
    assert all(torch.equal(average[name], value) for name, value in published.items())


def test_sharded_run_resumes_to_the_bit_when_only_one_process_gets_the_signal(whole: Path, tmp_path: Path) -> None:
    stopped = sharded(tmp_path / "run", fault=Fault(signal.SIGTERM, at_step=6, rank=1))
    assert stopped.code == 0 and stopped.output.count("Stopped after step 7") == 1, stopped.output
    assert sharded(tmp_path / "run").code == 0
    assert differences(everything(whole), everything(tmp_path / "run")) == []


@pytest.mark.parametrize("first", ["sharded", "plain"])
def test_run_goes_on_with_another_number_of_processes(first: str, whole: Path, tmp_path: Path) -> None:
    """A sharded checkpoint in a single process, or the reverse: the same examples per step, the same losses."""
    if first == "sharded":
        sharded(tmp_path / "run", fault=Fault(signal.SIGTERM, at_step=6))
        after = train("gpt", tmp_path / "run", *TWO, *UNEVEN)
        assert re.search("4 micro-.* instead of 2", after.output), after.output
    else:
        train("gpt", tmp_path / "run", *TWO, *UNEVEN, "--gradient_accumulation_steps", 4,
              fault=Fault(signal.SIGTERM, at_step=6))  # fmt: skip
        after = sharded(tmp_path / "run")
    assert after.code == 0, after.output
    assert metrics(tmp_path / "run") == numbers(whole)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["examples_seen"] == 96


def fail_to_write(error: Exception) -> None:
    """The second checkpoint's tensors cannot be written."""

    class FaultyDisk(storage.Disk):
        def save_tensors(self, tensors: dict[str, torch.Tensor], path: Path, metadata: Any) -> None:
            if path.parent.name == ".step-000008":
                raise error
            super().save_tensors(tensors, path, metadata)

    storage.disk = FaultyDisk()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "step 8 could not be written.*No space left"),
        # One that nobody expects. Not forwarded, it would leave the other process waiting forever.
        (TypeError("expected a tensor"), "expected a tensor"),
    ],
)
def test_write_that_fails_in_one_process_stops_all_and_keeps_the_previous_checkpoint(
    error: Exception, words: str, tmp_path: Path
) -> None:
    run = sharded(tmp_path, fault=Fault(patch=partial(fail_to_write, error), rank=1), timeout=30)
    assert [process.exitcode for process in run.processes] == [1, 1]
    assert len(re.findall(rf"^.*{words}", run.output, re.MULTILINE)) >= 2, run.output
    assert isinstance(error, TypeError) or "Traceback" not in run.output, run.output
    assert "step-000004" in [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sharded(tmp_path).code == 0


def test_disk_that_a_process_does_not_see_is_reported(tmp_path: Path) -> None:
    run = sharded([tmp_path / "here", tmp_path / "there"])
    assert run.code == 1 and "process 1 does not see this folder" in run.output and "Traceback" not in run.output
    assert list((tmp_path / "here" / "checkpoints").iterdir()) == []


def infinite_gradient_in_one_shard() -> None:
    def strike(trainer: PhaseTrainer, *_: object) -> None:
        for parameter in trainer.module.parameters():
            parameter.grad.to_local().fill_(float("inf"))

    before_calls(PhaseTrainer, "update", [7], strike)


def test_nonfinite_gradient_in_one_shard_stops_all_processes(tmp_path: Path) -> None:
    run = sharded(tmp_path, fault=Fault(patch=infinite_gradient_in_one_shard, rank=1))
    assert [process.exitcode for process in run.processes] == [1, 1]
    assert run.output.count("Step 7, phase 'model'") == 2, run.output
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]


@pytest.mark.parametrize(
    ("family", "environment", "flags", "named"),
    [
        ("vae", {}, [], "--use_fsdp"),
        ("gpt", {"FSDP_VERSION": "1"}, [], "--fsdp_version 2"),
    ],
)
def test_what_cannot_be_sharded_is_reported(
    family: str, environment: dict[str, str], flags: list[object], named: str, tmp_path: Path
) -> None:
    run = train(family, tmp_path / "run", *flags, processes=2, environment={**SHARDED, **environment})
    assert run.code == 1 and named in run.output and "Traceback" not in run.output, run.output
    assert not (tmp_path / "run").exists()


def test_shards_are_joined_in_order_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = storage.save(tmp_path, 1, {}, {"model": {"bias": torch.arange(3)}}, None, Processes())
    weight = torch.randn(5, 2)
    for rank, rows in enumerate((slice(0, 3), slice(3, 5))):
        name = f"model.shard-0000{rank}-of-00002.safetensors"
        metadata = {"rows": json.dumps({"weight": [rows.start, 5, 2]})}
        save_file({"weight": weight[rows].contiguous()}, path / name, metadata)
    manifest = json.loads((path / "manifest.json").read_text())
    for file in path.glob("*.safetensors"):
        entry = {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        manifest["files"][file.name] = entry
    write_json(path / "manifest.json", manifest)
    found = load(path).tensors["model"]
    assert set(found) == {"weight", "bias"} and found.shapes["weight"] == (5, 2)
    assert torch.equal(found["weight"], weight) and torch.equal(found["bias"], torch.arange(3))

    (path / "model.shard-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.shard-00001-of-00002\.safetensors is missing"):
        load(path)
    del manifest["files"]["model.shard-00001-of-00002.safetensors"]
    write_json(path / "manifest.json", manifest)
    with pytest.raises(CheckpointError, match=r"shape .*\(3, 2\)"):
        load(path).tensors["model"]["weight"]
