"""Training state on disk: safetensors and JSON, complete or not there at all.

A checkpoint is written to a temporary folder, flushed and renamed; only then are old ones deleted. Its manifest holds
the size and SHA-256 of every file, so that damage is found before anything is loaded.

The main process writes everything except tensors that are sharded over processes: each process writes its own rows,
`model.shard-00001-of-00004.safetensors`, to the same folder. They are read back as whole tensors, so that any number
of processes can continue from them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from .. import durable_files
from ..distributed.fsdp import rows_held
from ..distributed.processes import Processes


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"
REPLACED = ".replaced"
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another run; the message names the file and what is wrong with it."""


class Disk:
    """Every operation by which a save changes the disk. Tests replace `disk` to let an operation fail."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def save_tensors(self, tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None) -> None:
        save_file(tensors, path, metadata)

    def write_json(self, path: Path, content: Any) -> None:
        durable_files.write_json(path, content)

    def flush(self, path: Path) -> None:
        durable_files.flush(path)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def delete_file(self, path: Path) -> None:
        path.unlink()

    def delete_folder(self, path: Path) -> None:
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                self.delete_folder(entry)
            else:
                self.delete_file(entry)
        path.rmdir()


disk = Disk()


@dataclass
class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint under one heading, such as "model"; each is read when it is asked for.

    Attributes:
        shapes, dtypes: of the whole tensors, by name.
        pieces: name -> (file, first row) of each part, in order; one part if the tensor was not sharded.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    pieces: dict[str, list[tuple[Path, int]]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        """Reads a whole tensor.

        Raises:
            KeyError: there is none of that name.
            CheckpointError: its file cannot be read, or parts of it are missing.
        """
        parts = [_read_tensor(file, name) for file, _ in self.pieces[name]]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if tuple(tensor.shape) != self.shapes[name]:
            raise CheckpointError(
                f"{self.pieces[name][0][0].parent} is damaged: {name!r} must have shape {self.shapes[name]}, got "
                f"{tuple(tensor.shape)}."
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)

    def broadcast(self, processes: Processes) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, tensor) in every process, although only the main one reads them. Collective call."""
        for name in self:
            read = partial(self.__getitem__, name)
            yield name, processes.broadcast_tensor(read, self.shapes[name], self.dtypes[name])


@dataclass
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: its folder.
        state: the JSON part.
        tensors: heading -> tensor name -> tensor, which is read when it is asked for.
    """

    path: Path
    state: dict[str, Any]
    tensors: dict[str, StoredTensors]


def save(
    folder: Path,
    step: int,
    state: dict[str, Any],
    tensors: dict[str, dict[str, Tensor]],
    keep: int | None,
    processes: Processes,
) -> Path:
    """Writes `folder/step-XXXXXX`, and only then deletes what is no longer needed. Collective call.

    Checkpoints of later steps are deleted too: they belong to a branch that was abandoned when the run went back to an
    earlier checkpoint.

    Args:
        folder: holds all checkpoints of a run. Only the main process needs to see it, unless tensors are sharded.
        step: names the checkpoint.
        state: anything JSON can hold; that of the main process is written.
        tensors: heading -> tensor name -> tensor, which may be sharded by rows.
        keep: number of newest checkpoints to keep; None keeps all.
        processes: those of the run.

    Raises:
        CheckpointError: the disk is full or not writable. Earlier checkpoints are untouched.
    """
    target = folder / f"step-{step:06d}"
    temporary = folder / f".{target.name}"
    try:
        processes.on_main(_make_room, folder, temporary)
        files: dict[str, Any] = {}
        for part in processes.on_all(_write_tensors, temporary, tensors, processes):
            files |= part
        processes.on_main(_complete, temporary, target, {"format": FORMAT, "step": step, **state}, files)
    except OSError as error:
        if processes.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {folder}: {error}. Earlier ones are "
            f"untouched: {_listed(folder)}. Make room or make the folder writable, then run the same command again."
        ) from error
    processes.on_main(_prune, folder, step, keep)
    return target


def _make_room(folder: Path, temporary: Path) -> None:
    disk.make_folder(folder)
    for left_over in folder.glob(".step-*"):
        disk.delete_folder(left_over)
    disk.make_folder(temporary)


def _write_tensors(folder: Path, tensors: dict[str, dict[str, Tensor]], processes: Processes) -> dict[str, Any]:
    """Writes this process's part of the tensors and returns the entries of its files in the manifest."""
    files: dict[str, Any] = {}
    for heading, group in tensors.items():
        if processes.is_main:
            whole = {name: _on_host(value) for name, value in group.items() if not isinstance(value, DTensor)}
            files |= _write_file(folder / f"{heading}.safetensors", whole, None)
        sharded = {name: value for name, value in group.items() if isinstance(value, DTensor)}
        if sharded:
            if not folder.is_dir():
                raise OSError(f"process {processes.rank} does not see this folder; sharded runs need a shared disk")
            name = f"{heading}.shard-{processes.rank:05d}-of-{processes.count:05d}.safetensors"
            rows = {name: [rows_held(value)[0], *value.shape] for name, value in sharded.items()}
            parts = {name: _on_host(value.to_local()) for name, value in sharded.items()}
            files |= _write_file(folder / name, parts, {"rows": json.dumps(rows)})
    return files


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _write_file(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        disk.save_tensors(tensors, path, metadata)
    except SafetensorError as error:  # a full disk, among others
        raise OSError(str(error)) from error
    disk.flush(path)
    return {path.name: _manifest_entry(path)}


def _manifest_entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _complete(temporary: Path, target: Path, state: dict[str, Any], files: dict[str, Any]) -> None:
    """Adds state and manifest, flushes, and gives the folder its name."""
    for name, entry in files.items():
        if not (temporary / name).is_file() or (temporary / name).stat().st_size != entry["size"]:
            raise OSError(f"the main process does not see {name} as it was written; sharded runs need a shared disk")
    disk.write_json(temporary / STATE, state)
    entries = {**files, STATE: _manifest_entry(temporary / STATE)}
    disk.write_json(temporary / MANIFEST, {"format": FORMAT, "files": dict(sorted(entries.items()))})
    disk.flush(temporary)
    if target.exists():  # set aside, where `latest` finds it should the next line not be reached
        disk.rename(target, target.with_suffix(REPLACED))
    disk.rename(temporary, target)
    disk.flush(target.parent)


def _prune(folder: Path, step: int, keep: int | None) -> None:
    kept = [path for path in _all(folder) if _step(path) <= step and not path.suffix]
    for old in set(_all(folder)) - set(kept if keep is None else kept[-keep:]):
        # Renamed first, so that a kill leaves no checkpoint that is half deleted.
        hidden = old.with_name(f".{old.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        try:
            disk.rename(old, hidden)
            disk.delete_folder(hidden)
        except OSError as error:
            logger.warning("The old checkpoint %s could not be deleted: %s", old, error)


def load(path: Path) -> Checkpoint:
    """Verifies a checkpoint and lists what it holds; tensors are read later, when they are asked for.

    Raises:
        CheckpointError: names the first file that is missing, damaged or not understood.
    """
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint {path}. Existing ones: {_listed(path.parent)}.")
    verify(path)
    state = _read_json(path / STATE)
    _check_format(path / STATE, state)
    tensors: dict[str, StoredTensors] = {}
    for file in sorted(path.glob("*.safetensors")):
        _index(file, tensors.setdefault(file.stem.partition(".shard-")[0], StoredTensors()))
    return Checkpoint(path, state, tensors)


def _index(file: Path, stored: StoredTensors) -> None:
    """Notes which tensors, or rows of tensors, a file holds."""
    try:
        with safe_open(file, framework="pt") as content:
            rows = json.loads((content.metadata() or {}).get("rows", "{}"))
            for name in content.keys():  # noqa: SIM118
                first, *shape = rows.get(name, (0, *content.get_slice(name).get_shape()))
                stored.shapes[name] = tuple(shape)
                # safetensors slices report their dtype as a string, and scalars cannot be sliced.
                sample = content.get_slice(name)[:0] if shape else content.get_tensor(name)
                stored.dtypes[name] = sample.dtype
                stored.pieces.setdefault(name, []).append((file, first))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _read_tensor(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, framework="pt") as content:
            # A copy: the tensor itself lies in the mapped file, which is soon pruned, and an optimizer writes to it.
            return content.get_tensor(name).clone()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


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
    # The manifest has no checksum, so it must be byte-identical to its canonical form.
    if (path / MANIFEST).read_bytes() != durable_files.to_json(manifest).encode():
        raise CheckpointError(f"{path / MANIFEST} is damaged: it is not in its canonical form.")
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
            raise CheckpointError(f"{file} is damaged: it must have {expected.get('size')} bytes, got {size}.")
        if _sha256(file) != expected.get("sha256"):
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in {MANIFEST}.")
    extra = {file.name for file in path.iterdir()} - set(files) - {MANIFEST}
    if extra:
        raise CheckpointError(f"{path / min(extra)} does not belong to this checkpoint: {MANIFEST} does not list it.")


def latest(folder: Path) -> Checkpoint | None:
    """Returns the newest checkpoint that is whole, or None. Damaged ones are skipped with a warning."""
    for path in reversed(_all(folder)):
        try:
            return load(path)
        except CheckpointError as error:
            logger.warning("Skipping a checkpoint: %s", error)
    return None


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
    """True if there are checkpoints, whole or damaged."""
    return bool(_all(folder))


def _all(folder: Path) -> list[Path]:
    """Returns all checkpoints, oldest first; one that was set aside comes before its replacement."""
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
