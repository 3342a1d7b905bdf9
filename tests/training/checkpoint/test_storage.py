"""Checkpoints are whole or absent, and damage is always found."""

from __future__ import annotations

import errno
import json
import logging
import random
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.runs import faulty_disk
from training.checkpoint import storage
from training.checkpoint.storage import CheckpointError, latest, load, save
from training.distributed.processes import Processes
from training.durable_files import write_json


def tensors(step: int) -> dict[str, dict[str, Tensor]]:
    return {"model": {"weight": torch.full((40, 40), float(step)), "bias": torch.arange(7)}, "optimizer-model": {}}


def write(folder: Path, step: int, keep: int | None = 2) -> Path:
    return save(folder, step, {"progress": {"step": step}}, tensors(step), keep, Processes())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    found = load(write(tmp_path, 3))
    assert found.state == {"format": 1, "step": 3, "progress": {"step": 3}}
    assert set(found.tensors) == {"model", "optimizer-model"}
    assert all(torch.equal(found.tensors["model"][name], value) for name, value in tensors(3)["model"].items())


def test_what_is_loaded_is_not_tied_to_the_file(tmp_path: Path) -> None:
    """safetensors returns views of the mapped file, and a resumed optimizer writes to its state."""
    path = write(tmp_path, 3)
    loaded = load(path).tensors["model"]["weight"]
    with open(path / "model.safetensors", "r+b") as file:
        file.write(bytes(path.joinpath("model.safetensors").stat().st_size))
    assert torch.equal(loaded, tensors(3)["model"]["weight"])


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    assert {file.suffix for file in write(tmp_path, 1).iterdir()} == {".json", ".safetensors"}


def test_newest_checkpoints_are_kept_and_all_without_a_limit(tmp_path: Path) -> None:
    for step in (5, 999_999, 1_000_000, 1_000_001):
        write(tmp_path / "two", step)
        write(tmp_path / "all", step, keep=None)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["step-1000000", "step-1000001"]
    assert len(list((tmp_path / "all").iterdir())) == 4
    assert latest(tmp_path / "all").state["step"] == 1_000_001


class PowerCut(BaseException):
    """Not caught by any `except` of the code under test."""


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), PowerCut()])
@pytest.mark.parametrize("replaced", [False, True], ids=["new step", "same step again"])
def test_save_that_fails_anywhere_keeps_the_previous_checkpoint(
    error: BaseException, replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in count(1):
        folder = tmp_path / str(call)
        write(folder, 1), write(folder, 2)
        step = 2 if replaced else 3

        def strike() -> None:
            raise error

        with monkeypatch.context() as patch:
            disk = faulty_disk(call, strike)
            patch.setattr(storage, "disk", disk)
            try:
                write(folder, step)
            except CheckpointError as failure:
                message = str(failure)
                assert "No space left" in message and str(folder) in message and "step-000002" in message
            except PowerCut:
                pass
        if disk.operations < call:  # all of them have failed once
            break
        found = latest(folder)
        assert found is not None and found.state["step"] in (2, step), call
        value = float(found.state["step"])
        assert bool((found.tensors["model"]["weight"] == value).all())
        write(folder, 4)  # the next save works and removes what was left
        assert {path.name for path in folder.iterdir()} <= {f"step-00000{n}" for n in (1, 2, 3, 4)}
        assert latest(folder).state["step"] == 4
    assert call > 20


def test_old_checkpoints_are_deleted_only_when_the_new_one_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, keep=1)
    renamed: list[tuple[str, bool]] = []

    class WatchedDisk(storage.Disk):
        def rename(self, source: Path, target: Path) -> None:
            renamed.append((source.name, (tmp_path / "step-000001").exists()))
            super().rename(source, target)

    monkeypatch.setattr(storage, "disk", WatchedDisk())
    write(tmp_path, 2, keep=1)
    assert renamed == [(".step-000002", True), ("step-000001", True)]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


def test_checkpoint_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    for file in path.iterdir():
        whole = file.read_bytes()
        for size in {*range(0, len(whole), 1024), *range(max(0, len(whole) - 9), len(whole))}:
            file.write_bytes(whole[:size])
            with pytest.raises(CheckpointError, match=file.name):
                load(path)
        file.write_bytes(whole)
    load(path)


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    rng = random.Random(0)
    for file in path.iterdir():
        whole = file.read_bytes()
        bits = range(8 * len(whole))
        for bit in bits if file.name == "manifest.json" else rng.sample(bits, min(300, len(bits))):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=str(path)):
                load(path)
        file.write_bytes(whole)
    load(path)


def test_missing_and_added_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    for file in list(path.iterdir()):
        file.rename(tmp_path / "aside")
        with pytest.raises(CheckpointError, match=file.name):
            load(path)
        (tmp_path / "aside").rename(file)
    (path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
        load(path)


def test_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    write_json(path / "manifest.json", {**manifest, "format": 2})
    with pytest.raises(CheckpointError, match="release"):
        load(path)


def test_missing_checkpoint_is_reported_with_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"no checkpoint .*step-000009.* step-000001"):
        load(tmp_path / "step-000009")


def test_latest_skips_damaged_ones_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 1), write(tmp_path, 2)
    (tmp_path / "step-000002" / "state.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path).state["step"] == 1
    assert "step-000002" in caplog.text and "state.json" in caplog.text
    assert latest(tmp_path / "nowhere") is None
