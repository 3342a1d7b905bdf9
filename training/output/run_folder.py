"""The output folder: whether a run may use it, what a new run clears away, and how files appear in it whole."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from transformers import PreTrainedModel

from hfgen.model_folder import LoadError, code_files, code_of_model
from hfgen.pipelines.repository_files import NAMES as DIFFUSERS_FILES
from hfgen.pipelines.repository_files import write_diffusers_files

from ..config.flags import Arguments, recipe_of
from ..durable_files import flush, write_json


try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder are not kept apart
    fcntl = None  # type: ignore[assignment]


logger = logging.getLogger(__name__)
LOCK = ".lock"
# Everything that a run leaves; nothing else is ever deleted.
FOLDERS_OF_A_RUN = ("checkpoints", "samples", "plots", "logs", ".staging", ".push", ".film")
FILES_OF_A_RUN = (
    "metrics.jsonl", ".metrics.jsonl", "results.json", ".results.json", "report.html", ".report.html", "README.md",
    "notebook.ipynb", "config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors",
    "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", *DIFFUSERS_FILES,
)  # fmt: skip


def is_finished(output_dir: Path, arguments: Arguments) -> bool:
    """True if the folder holds the results of this very command, apart from flags that change no result."""
    return read_results(output_dir).get("recipe") == json.loads(json.dumps(recipe_of(arguments)))


def read_results(output_dir: Path) -> dict[str, Any]:
    """Returns the content of results.json; empty if it is missing or cannot be read."""
    try:
        content = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_measured(output_dir: Path, step: int) -> bool:
    """True if the folder holds the results of the model after this step, and no metric is missing."""
    results = read_results(output_dir)
    return results.get("steps") == step and not results.get("metrics_missing")


def check_output_dir(output_dir: Path, overwrite: bool, has_checkpoints: bool) -> None:
    """Refuses a folder that is not empty and not a run that can be resumed or overwritten.

    Args:
        output_dir: may be missing.
        overwrite: --overwrite_output_dir.
        has_checkpoints: whether the folder holds checkpoints, damaged ones included.

    Raises:
        ValueError: says what was found and what to do.
    """
    taken = next((path for path in (output_dir, *output_dir.parents) if path.exists() and not path.is_dir()), None)
    if taken is not None:
        raise ValueError(f"--output_dir must be a folder, got {output_dir}, and {taken} is a file. Give another name.")
    if not _content(output_dir):
        return
    is_run = (output_dir / "checkpoints").is_dir() or (output_dir / "metrics.jsonl").is_file()
    if not is_run:
        found = ", ".join(_content(output_dir)[:5])
        raise ValueError(
            f"--output_dir must be empty or hold a run of hfgen, got {output_dir}, which holds {found}. Give another "
            "folder, or empty this one."
        )
    has_weights = (output_dir / "model.safetensors").exists() or (output_dir / "results.json").exists()
    if has_weights and not overwrite and not has_checkpoints:
        raise ValueError(
            f"--output_dir {output_dir} holds a run without a checkpoint to resume from. Give another folder, or use "
            "--overwrite_output_dir to start over."
        )


class FolderLock:
    """Keeps other runs out of an output folder. It is released when this object is gone.

    The kernel holds it for this process. It ends with the process, in whatever way that ends, and workers that outlive
    the process do not inherit it, as they would inherit a lock of flock.

    Args:
        output_dir: to be locked by `acquire`, which only the main process of a run may call.

    Attributes:
        is_acquired: whether `acquire` was called and raised no error. Some file systems have no locks.
    """

    def __init__(self, output_dir: Path):
        self.output_dir, self.is_acquired = output_dir, False

    def acquire(self) -> None:
        """Locks the folder, which must exist, unless this object has already done so.

        Raises:
            ValueError: another run holds the lock.
        """
        if self.is_acquired:
            return
        file = _lock(self.output_dir)
        if file is not None:
            weakref.finalize(self, _release, self.output_dir / LOCK, file)
        self.is_acquired = True


def _lock(output_dir: Path) -> TextIO | None:
    """Returns the locked file, or None if there are no locks; raises ValueError if another process holds it."""
    path = output_dir / LOCK
    while fcntl is not None:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - to close it is to give up the lock
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning("%s cannot be locked, so a second run in it would not be refused: %s", path, error)
                _release(path, file)
                return None
            file.seek(0)
            raise ValueError(
                f"--output_dir {output_dir} is in use by another run ({file.read() or 'just started'}). Wait for its "
                f"end, stop it, or give another folder. If its machine has died, delete {path}."
            ) from None
        if _is_at(path, file):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
    return None


def _is_at(path: Path, file: TextIO) -> bool:
    """False if the last holder of the lock has deleted the file after it was opened here."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _release(path: Path, file: TextIO) -> None:
    with suppress(OSError):  # a folder that can no longer be written to, or is gone
        path.unlink()
    file.close()


def _content(output_dir: Path) -> list[str]:
    """The sorted names in the folder, which may be missing. A lock is no content: a killed run leaves it behind."""
    return sorted({path.name for path in output_dir.iterdir()} - {LOCK}) if output_dir.is_dir() else []


def lock_if_in_use(output_dir: Path, lock: FolderLock) -> None:
    """Locks a folder that holds a run. Another one is left as it is until the run is known to be possible.

    Raises:
        ValueError: another run holds the lock.
    """
    if _content(output_dir):
        lock.acquire()


def prepare_output_dir(output_dir: Path, overwrite: bool, lock: FolderLock) -> None:
    """Creates and locks the folder. With `overwrite`, deletes what an earlier run left, and nothing else.

    Raises:
        ValueError: another run has begun in the folder.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if not lock.is_acquired:
        lock.acquire()
        if _content(output_dir):
            raise ValueError(
                f"--output_dir {output_dir} was empty when this run started, and now holds another run. Give another "
                "folder, or run the same command again."
            )
    if overwrite and output_dir.is_dir():
        for name in FOLDERS_OF_A_RUN:
            shutil.rmtree(output_dir / name, ignore_errors=True)
        found = {path for pattern in FILES_OF_A_RUN for path in output_dir.glob(pattern)}
        for path in found | {path for file in output_dir.glob("modeling_*.py") for path in code_files(file)}:
            path.unlink(missing_ok=True)
            if path.parent != output_dir:
                with suppress(OSError):  # it holds files that are not the run's
                    path.parent.rmdir()
    (output_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    # A checkpoint is as safe from a power cut as the names of the folders that lead to it.
    with suppress(OSError):
        flush(output_dir)
        flush(output_dir.resolve().parent)


def write_model_folder(model: PreTrainedModel, output_dir: Path, save_extras: Callable[[Path], object]) -> None:
    """Saves the model and what belongs beside it. Files are written elsewhere first and moved when all are complete.

    Args:
        model: in evaluation mode.
        output_dir: an existing folder.
        save_extras: (folder) -> writes the image processor or tokenizer.
    """
    staging = output_dir / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        model.save_pretrained(staging, max_shard_size="1GB")
        save_extras(staging)
        write_diffusers_files(staging)
        earlier: list[Path] = []
        with suppress(LoadError):  # there is none yet, or its config is damaged
            earlier = code_of_model(output_dir)
        for path in sorted(path for path in staging.rglob("*") if path.is_file()):
            target = output_dir / path.relative_to(staging)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
        # A model in a native layout has no code, and that of an earlier one would seem to be its own.
        for path in {*earlier} - {*code_of_model(output_dir)}:
            path.unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_results(output_dir: Path, results: dict[str, Any]) -> None:
    """Writes results.json. After an interruption, the folder holds all of it or the one before."""
    temporary = output_dir / ".results.json"
    write_json(temporary, results)
    os.replace(temporary, output_dir / "results.json")
