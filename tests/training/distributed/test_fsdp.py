"""FSDP2: a GPT whose weights are spread over two processes trains, stops, resumes and is published like any other.

Whole trainings on the CPU over gloo, with torch's own sharding: what a GPU adds is NCCL and its kernels.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.runs import SHARDED, Fault, Run, differences, everything, metrics, train
from training.checkpoint import storage as checkpoint
from training.checkpoint.storage import CheckpointError, load


# Without dropout, which draws from the generator of each process; 8 examples a step, as with one process.
TWO = ["--attention_dropout", 0, "--hidden_dropout", 0, "--embedding_dropout", 0, "--per_device_train_batch_size", 2]
# Numbers of rows that two processes cannot share evenly; a gradient that is clipped; AdamW, which computes in fp32.
UNEVEN = ["--vocab_size", 301, "--intermediate_size", 65, "--max_grad_norm", 1, "--optimizer", "adamw"]


def sharded(folder: Path, *flags: object, fault: Fault | None = None) -> Run:
    return train("gpt", folder, *TWO, *UNEVEN, *flags, processes=2, environment=SHARDED, fault=fault)


def numbers(folder: Path) -> list[Any]:
    return [pytest.approx({k: v for k, v in line.items() if v is not None}, rel=1e-4) for line in metrics(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("sharded") / "run"
    run = sharded(folder)
    assert run.code == 0, run.output
    return folder


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sharded_training_equals_data_parallel_training(optimizer: str, whole: Path, tmp_path: Path) -> None:
    flags = ["--optimizer", optimizer]
    if optimizer != "adamw":
        whole = tmp_path / "sharded"
        assert sharded(whole, *flags).code == 0
    assert train("gpt", tmp_path / "plain", *TWO, *UNEVEN, *flags, processes=2).code == 0
    assert metrics(tmp_path / "plain") == numbers(whole)


def test_weights_are_spread_over_the_processes_and_published_whole(whole: Path) -> None:
    last = whole / "checkpoints" / "step-000012"
    parts = [load_file(last / f"model.shard-0000{rank}-of-00002.safetensors") for rank in range(2)]
    rows = [part["model.embed_tokens.weight"].shape for part in parts]
    assert rows == [(151, 16), (150, 16)]
    published, average = load_file(whole / "model.safetensors"), load(last).tensors["average"]
    assert set(published) <= set(average)
    assert all(torch.equal(average[name], value) for name, value in published.items())


def test_sharded_run_resumes_to_the_bit_when_only_one_process_gets_the_signal(whole: Path, tmp_path: Path) -> None:
    stopped = sharded(tmp_path / "run", fault=Fault(signal.SIGTERM, at_step=6, rank=1))
    assert stopped.code == 0 and stopped.output.count("To go on") == 1, stopped.output
    assert sharded(tmp_path / "run").code == 0
    assert differences(everything(whole), everything(tmp_path / "run")) == []


@pytest.mark.parametrize("first", ["sharded", "plain"])
def test_run_goes_on_with_another_number_of_processes(first: str, whole: Path, tmp_path: Path) -> None:
    """A sharded checkpoint in a single process, or the other way round: the same examples a step, the same losses."""
    if first == "sharded":
        sharded(tmp_path / "run", fault=Fault(signal.SIGTERM, at_step=6))
        after = train("gpt", tmp_path / "run", *TWO, *UNEVEN)
        assert "4 micro-steps a step instead of 2" in after.output
    else:
        train("gpt", tmp_path / "run", *TWO, *UNEVEN, "--gradient_accumulation_steps", 4,
              fault=Fault(signal.SIGTERM, at_step=6))  # fmt: skip
        after = sharded(tmp_path / "run")
    assert after.code == 0, after.output
    assert metrics(tmp_path / "run") == numbers(whole)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["examples_seen"] == 96


def test_write_that_fails_in_one_process_stops_all_and_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    full = """
from training.checkpoint import storage as checkpoint
write, calls = checkpoint._write_tensors, 0
def patched(*args):
    global calls
    calls += 1
    if calls == 2:
        raise OSError(28, "No space left on device")
    return write(*args)
checkpoint._write_tensors = patched
"""
    run = sharded(tmp_path, fault=Fault(code=full, rank=1))
    assert run.code == 1 and "Traceback" not in run.output, run.output
    assert "step 8 could not be written" in run.output and "No space left" in run.output
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]
    assert sharded(tmp_path).code == 0


def test_disk_that_a_process_does_not_see_is_told(tmp_path: Path) -> None:
    elsewhere = """
from pathlib import Path
from training.checkpoint import storage as checkpoint
write = checkpoint._write_tensors
checkpoint._write_tensors = lambda folder, *args: write(Path("/nowhere") / folder.name, *args)
"""
    run = sharded(tmp_path, fault=Fault(code=elsewhere, rank=1))
    assert run.code == 1 and "process 1 does not see this folder" in run.output and "Traceback" not in run.output
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_gradient_that_is_not_finite_is_left_out_by_the_kernels_of_sharded_weights(tmp_path: Path) -> None:
    code = """
import torch
from training import step as phases
phases.looks_later = lambda *_: True
accumulate, calls = phases.PhaseTrainer._accumulate, 0
def patched(self, batches, rngs):
    global calls
    calls += 1
    values = accumulate(self, batches, rngs)
    if calls == 7 and torch.distributed.get_rank() == 1:
        for parameter in self.module.parameters():
            parameter.grad.to_local().fill_(float("inf"))
    return values
phases.PhaseTrainer._accumulate = patched
"""
    run = sharded(tmp_path, "--logging_steps", 1000, "--eval_steps", 1000, fault=Fault(code=code))
    assert run.code == 1 and "Step 7, phase 'model'" in run.output, run.output
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]


@pytest.mark.parametrize(
    ("family", "environment", "flags", "named"),
    [
        ("vae", {}, [], "VAEModel cannot be sharded"),
        ("gpt", {"FSDP_VERSION": "1"}, [], "--fsdp_version 2"),
    ],
)
def test_what_cannot_be_sharded_is_told(
    family: str, environment: dict[str, str], flags: list[object], named: str, tmp_path: Path
) -> None:
    run = train(family, tmp_path / "run", *flags, processes=2, environment={**SHARDED, **environment})
    assert run.code == 1 and named in run.output and "Traceback" not in run.output, run.output
    assert not (tmp_path / "run").exists()


def test_shards_are_joined_in_order_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {}, {"model": {"bias": torch.arange(3)}}, None)
    weight = torch.randn(5, 2)
    for rank, rows in enumerate((slice(0, 3), slice(3, 5))):
        name = f"model.shard-0000{rank}-of-00002.safetensors"
        metadata = {"rows": json.dumps({"weight": [rows.start, 5, 2]})}
        save_file({"weight": weight[rows].contiguous()}, path / name, metadata)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {file.name: checkpoint._entry(file) for file in sorted(path.iterdir())
                         if file.name != "manifest.json"}  # fmt: skip
    checkpoint.write_json(path / "manifest.json", manifest)
    found = load(path).tensors["model"]
    assert set(found) == {"weight", "bias"} and found.shapes["weight"] == (5, 2)
    assert torch.equal(found["weight"], weight) and torch.equal(found["bias"], torch.arange(3))

    (path / "model.shard-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.shard-00001-of-00002\.safetensors is missing"):
        load(path)
    del manifest["files"]["model.shard-00001-of-00002.safetensors"]
    checkpoint.write_json(path / "manifest.json", manifest)
    with pytest.raises(CheckpointError, match=r"shape \(3, 2\) instead of \(5, 2\)"):
        load(path).tensors["model"]["weight"]
