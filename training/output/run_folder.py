"""The output folder: whether a run may use it, what a new run clears away, and how files appear in it whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..config.flags import Arguments, recipe_of
from ..durable_files import flush, write_json


# Everything that a run leaves; nothing else is ever deleted.
FOLDERS_OF_A_RUN = ("checkpoints", "samples", "plots", "logs", ".staging", ".push")
FILES_OF_A_RUN = (
    "metrics.jsonl", ".metrics.jsonl", "results.json", ".results.json", "README.md", "config.json",
    "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors", "modeling_*.py",
    "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json",
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
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    is_run = (output_dir / "checkpoints").is_dir() or (output_dir / "metrics.jsonl").is_file()
    if not is_run:
        found = ", ".join(sorted(path.name for path in output_dir.iterdir())[:5])
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


def prepare_output_dir(output_dir: Path, overwrite: bool) -> None:
    """Creates the folder. With `overwrite`, deletes what an earlier run left, and nothing else."""
    if overwrite and output_dir.is_dir():
        for name in FOLDERS_OF_A_RUN:
            shutil.rmtree(output_dir / name, ignore_errors=True)
        for path in [path for pattern in FILES_OF_A_RUN for path in output_dir.glob(pattern)]:
            path.unlink()
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
        for path in sorted(staging.iterdir()):
            os.replace(path, output_dir / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_results(output_dir: Path, results: dict[str, Any]) -> None:
    """Writes results.json. After an interruption, the folder holds all of it or the one before."""
    temporary = output_dir / ".results.json"
    write_json(temporary, results)
    os.replace(temporary, output_dir / "results.json")
