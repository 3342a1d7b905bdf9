"""The output folder: whether it can be used, what a new run deletes, and how files appear in it only when complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..config.flags import Arguments, as_recipe, without_surroundings
from ..durable_files import flush, write_json


FOLDERS_OF_A_RUN = ("checkpoints", "samples", "plots", "logs", ".staging")
FILES_OF_A_RUN = (
    "metrics.jsonl", ".metrics.jsonl", "results.json", ".results.json", "README.md", "config.json",
    "model.safetensors", "model.safetensors.index.json", "generation_config.json", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip


def is_finished(output_dir: Path, arguments: Arguments) -> bool:
    """True if the folder holds the results of this very command, wherever and however it was run."""
    settings = (read_results(output_dir).get("arguments", {}), json.loads(json.dumps(as_recipe(arguments))))
    before, now = (without_surroundings(values, arguments) for values in settings)
    return before == now


def read_results(output_dir: Path) -> dict[str, Any]:
    """Returns the content of results.json; empty if there is none that can be read."""
    try:
        content = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_output_dir(output_dir: Path, overwrite: bool, has_checkpoints: bool) -> None:
    """Refuses a folder with content that is not a run of hfgen, or a run that cannot be resumed.

    Raises:
        ValueError: says what was found and what to do.
    """
    taken = next((path for path in (output_dir, *output_dir.parents) if path.exists() and not path.is_dir()), None)
    if taken is not None:
        raise ValueError(
            f"--output_dir must be a folder, got {output_dir}, where {taken} is a file. Give another name."
        )
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    is_run = (output_dir / "checkpoints").is_dir() or (output_dir / "metrics.jsonl").is_file()
    if not is_run:
        found = ", ".join(sorted(path.name for path in output_dir.iterdir())[:5])
        raise ValueError(
            f"--output_dir must be empty or a run of hfgen, got {output_dir}, which holds {found}. Give another "
            "folder, or empty this one."
        )
    has_weights = (output_dir / "model.safetensors").exists() or (output_dir / "results.json").exists()
    if has_weights and not overwrite and not has_checkpoints:
        raise ValueError(
            f"--output_dir {output_dir} holds a run without a checkpoint to resume from. Give another folder, or "
            "--overwrite_output_dir to start over."
        )


def prepare_output_dir(output_dir: Path, overwrite: bool) -> None:
    """Creates the folder; with overwrite, deletes what an earlier run left, and nothing else."""
    if overwrite and output_dir.is_dir():
        for name in FOLDERS_OF_A_RUN:
            shutil.rmtree(output_dir / name, ignore_errors=True)
        patterns = ("modeling_*.py", "model-*-of-*.safetensors")
        shards_and_code = (path for pattern in patterns for path in output_dir.glob(pattern))
        for path in (*(output_dir / name for name in FILES_OF_A_RUN), *shards_and_code):
            path.unlink(missing_ok=True)
    (output_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    # A checkpoint is as safe from a power cut as the names of the folders that lead to it.
    with suppress(OSError):
        flush(output_dir)
        flush(output_dir.resolve().parent)


@contextmanager
def save_staged(output_dir: Path) -> Iterator[Path]:
    """Yields a folder to write to, whose files are moved to output_dir once all of them are complete."""
    staging = output_dir / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in sorted(staging.iterdir()):
            os.replace(path, output_dir / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_results(output_dir: Path, results: dict[str, Any]) -> None:
    """Replaces results.json in one step."""
    temporary = output_dir / ".results.json"
    write_json(temporary, results)
    os.replace(temporary, output_dir / "results.json")


def write_model_folder(model: PreTrainedModel, output_dir: Path, save_extras: Callable[[Path], object]) -> None:
    """Writes the model, and what belongs beside it, into the folder: all of it or nothing.

    Args:
        model: in evaluation mode.
        output_dir: of the run.
        save_extras: writes image processor or tokenizer into a folder.
    """
    with save_staged(output_dir) as staging:
        model.save_pretrained(staging, max_shard_size="1GB")
        save_extras(staging)
