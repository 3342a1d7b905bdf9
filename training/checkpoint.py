"""Training state on disk: safetensors and JSON, complete or not there at all.

A checkpoint is written to a temporary folder, flushed to the disk, and renamed; only then are old ones deleted. Its
manifest holds size and SHA-256 of every file, so that damage is found before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"
REPLACED = ".replaced"
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another run; the message names the file and what is wrong with it."""


@dataclass
class Checkpoint:
    """What was read back.

    Attributes:
        path: its folder.
        state: the JSON part.
        tensors: file name without suffix -> tensor name -> tensor.
    """

    path: Path
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def save(
    folder: Path, step: int, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]], keep: int | None
) -> Path:
    """Writes `folder/step-XXXXXX`, and only then deletes what is no longer needed.

    Checkpoints of later steps go too: they belong to a branch that was left by going back to an earlier one.

    Args:
        folder: holds all checkpoints of a run.
        step: names the checkpoint.
        state: anything JSON can hold.
        tensors: file name without suffix -> tensor name -> tensor.
        keep: checkpoints to keep, the newest ones; None for all.

    Raises:
        CheckpointError: the disk is full or not writable. Earlier checkpoints are untouched.
    """
    target = folder / f"step-{step:06d}"
    temporary = folder / f".{target.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".step-*"):
            shutil.rmtree(left_over)
        temporary.mkdir()
        _write(temporary, {"format": FORMAT, "step": step, **state}, tensors)
        if target.exists():  # set aside, where `latest` finds it should the next line not be reached
            os.rename(target, target.with_suffix(REPLACED))
        os.rename(temporary, target)
        _fsync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {folder}: {error}. Earlier ones are "
            f"untouched: {_listed(folder)}. Make room or make the folder writable, then run the same command again."
        ) from error
    kept = [path for path in _all(folder) if _step(path) <= step and not path.suffix]
    for old in set(_all(folder)) - set(kept if keep is None else kept[-keep:]):
        _delete(old)
    return target


def _write(folder: Path, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
    """All files of a checkpoint, the manifest last, flushed to the disk."""
    for name, group in tensors.items():
        path = folder / f"{name}.safetensors"
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}, path)
        _fsync(path)
    write_json(folder / STATE, state)
    files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})
    _fsync(folder)


def _delete(path: Path) -> None:
    """Takes a checkpoint away in one step, so that a kill leaves none that is half deleted."""
    hidden = path.with_name(f".{path.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        os.rename(path, hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        logger.warning("The old checkpoint %s could not be deleted: %s", path, error)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint after verifying every file of it.

    Raises:
        CheckpointError: names the first file that is missing, damaged or not understood.
    """
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint {path}. Existing ones: {_listed(path.parent)}.")
    verify(path)
    state = _read_json(path / STATE)
    _check_format(path / STATE, state)
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as content:
                tensors[file.stem] = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    return Checkpoint(path, state, tensors)


def verify(path: Path) -> None:
    """Compares every file with the manifest.

    Raises:
        CheckpointError: names the first file that is missing, damaged or not listed.
    """
    try:
        _verify(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _verify(path: Path) -> None:
    manifest = _read_json(path / MANIFEST)
    # Nothing vouches for the manifest itself, but there is only one way to write what it says.
    if (path / MANIFEST).read_bytes() != _to_json(manifest).encode():
        raise CheckpointError(f"{path / MANIFEST} is damaged: it is not as it was written.")
    _check_format(path / MANIFEST, manifest)
    files = manifest.get("files")
    if not isinstance(files, dict) or STATE not in files:
        raise CheckpointError(f"{path / MANIFEST} is damaged: it does not list {STATE}.")
    for name, expected in files.items():
        file = path / name
        if Path(name).name != name or not isinstance(expected, dict):
            raise CheckpointError(f"{path / MANIFEST} is damaged: the entry {name!r} is not a file of this folder.")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing.")
        size = file.stat().st_size
        if size != expected.get("size"):
            raise CheckpointError(f"{file} is damaged: it has {size} bytes instead of {expected.get('size')}.")
        if _sha256(file) != expected.get("sha256"):
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in {MANIFEST}.")
    extra = {file.name for file in path.iterdir()} - set(files) - {MANIFEST}
    if extra:
        raise CheckpointError(f"{path / min(extra)} does not belong to this checkpoint: {MANIFEST} does not list it.")


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None. Damaged ones are skipped with a warning."""
    for path in reversed(_all(folder)):
        try:
            return load(path)
        except CheckpointError as error:
            logger.warning("Skipping a checkpoint: %s", error)
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """State of an optimizer as named tensors, `parameter:entry`.

    Args:
        optimizer: its states must be tensors, as those of AdamW and Muon are.
        names: id of a parameter -> its name.
    """
    return {
        f"{names[id(parameter)]}:{entry}": value
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[int, str], tensors: dict[str, Tensor]
) -> None:
    """The inverse of [`optimizer_tensors`].

    Raises:
        CheckpointError: a tensor belongs to no parameter of this optimizer, or has another shape.
    """
    parameters = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition(":")
        if name not in parameters:
            raise CheckpointError(f"The optimizer state {key!r} belongs to no parameter of this model.")
        if value.ndim and value.shape != parameters[name].shape:
            raise CheckpointError(
                f"The optimizer state {key!r} has shape {tuple(value.shape)}, its parameter "
                f"{tuple(parameters[name].shape)}."
            )
        if value.ndim:
            # In the parameter's own memory layout: fused kernels walk through both in the order of memory.
            value = torch.empty_like(parameters[name], dtype=value.dtype).copy_(value)
        states.setdefault(name, {})[entry] = value
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    optimizer.load_state_dict(
        {
            "state": {i: states[name] for i, name in enumerate(order) if name in states},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )


def write_json(path: Path, content: Any) -> None:
    """Writes JSON and flushes it to the disk. NaN and infinity, which JSON does not know, are refused."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(_to_json(content))
        file.flush()
        os.fsync(file.fileno())


def _to_json(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _check_format(path: Path, content: dict[str, Any]) -> None:
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {content.get('format')!r}, and this release of hfgen reads format {FORMAT}. Resume "
            "with the release that wrote it."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object, got {type(content).__name__}.")
    return content


def exist(folder: Path) -> bool:
    """Whether there are checkpoints, whole or damaged."""
    return bool(_all(folder))


def _all(folder: Path) -> list[Path]:
    """Checkpoints, oldest first; one that was set aside comes before the one that replaces it."""
    paths = [
        path for path in folder.glob("step-*") if path.name.removeprefix("step-").removesuffix(REPLACED).isdigit()
    ]
    return sorted(paths, key=lambda path: (_step(path), not path.suffix))


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _listed(folder: Path) -> str:
    return ", ".join(path.name for path in _all(folder)) or "none"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    """Flushes a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
