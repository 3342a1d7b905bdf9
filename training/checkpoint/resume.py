"""Which checkpoint a run resumes from, and whether it fits."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from hfgen.hub import fetch_checkpoint

from ..config.flags import MEASURED, Arguments, RunArguments, as_recipe, before_they_existed, on_resume
from ..data.feeds.batches import GlobalBatch
from ..distributed.processes import Processes
from . import storage
from .storage import Checkpoint, CheckpointError


logger = logging.getLogger(__name__)

# Written by the library, by the class itself, or from a measurement: no setting of a run.
NOT_SETTINGS = {"transformers_version", "auto_map", "architectures", "_name_or_path", "dtype", *MEASURED}


def find_checkpoint(output_dir: Path, wanted: str | None) -> Checkpoint | None:
    """Returns the checkpoint to resume from, or None to start from the first step.

    Args:
        output_dir: of the run.
        wanted: --resume_from_checkpoint: a folder, OWNER/NAME[@REVISION] on the Hub, "latest", or None.

    Raises:
        CheckpointError: the requested checkpoint does not exist or is damaged, or all of them are.
    """
    if wanted is not None and wanted != "latest":
        return storage.load(fetch_checkpoint(wanted) if _names_a_repository(wanted) else Path(wanted))
    folder = output_dir / "checkpoints"
    found = storage.latest(folder)
    if found is None and storage.exist(folder):
        raise CheckpointError(
            f"Every checkpoint in {folder} is damaged, as reported above. Use --overwrite_output_dir to start over."
        )
    if found is None and wanted == "latest":
        raise CheckpointError(f"There is no checkpoint to resume from in {folder}.")
    return found


def accumulation_steps(run: RunArguments, checkpoint: Checkpoint | None, processes: Processes) -> int:
    """Returns the number of micro-batches per step: --gradient_accumulation_steps, or as many as keep the number of
    examples per step if a run resumes with another number of processes."""
    steps = run.gradient_accumulation_steps
    if checkpoint is None or checkpoint.state.get("processes", processes.count) == processes.count:
        return steps
    examples = checkpoint.state["examples_a_step"]
    needed, rest = divmod(examples, run.per_device_train_batch_size * processes.count)
    if rest or not needed or needed == steps:
        return steps
    before = checkpoint.state["processes"]
    logger.warning(
        "Resuming with %d processes instead of %d, and with %d micro-batches per step instead of %d: a step still has "
        "%d examples.", processes.count, before, needed, steps, examples,
    )  # fmt: skip
    return needed


def check_same_run(
    checkpoint: Checkpoint, config: dict[str, Any], arguments: Arguments, examples_per_step: int
) -> None:
    """Refuses a checkpoint of another model, or with other settings that decide what the run computes.

    What a changed flag means is declared on the flag itself (`on_resume`).

    Args:
        checkpoint: the one to resume from.
        config: of the model that is to be trained, as `to_dict` returns it.
        arguments: of this run.
        examples_per_step: global batch size; with another one, the position in the data has another meaning.

    Raises:
        CheckpointError: lists every difference.
    """
    config, saved_config = json.loads(json.dumps(config)), checkpoint.state["config"]
    if saved_config.get("model_type") != config["model_type"]:
        raise CheckpointError(
            f"{checkpoint.path} is a checkpoint of a {saved_config.get('model_type')} model, and this script trains "
            f"{config['model_type']}. Resume with the script that wrote it, or give another --output_dir."
        )
    meaning, settings, saved = on_resume(arguments), as_recipe(arguments), checkpoint.state["arguments"]
    # A flag that is newer than the checkpoint was off, unless it declares what runs did before it.
    off = {name: value for name, value in settings.items() if value in (False, 0)}
    saved = {**off, **before_they_existed(arguments), **saved}
    differences = [
        *_differences("config ", saved_config, config, sorted({*config, *saved_config} - NOT_SETTINGS)),
        *_differences("--", saved, settings, [name for name, rule in meaning.items() if rule == "refuse"]),
    ]
    if bool(saved.get("ema_decay")) != bool(settings.get("ema_decay")):  # one has an average, the other has none
        differences += _differences("--", saved, settings, ["ema_decay"])
    if checkpoint.state["examples_a_step"] != examples_per_step:
        differences.append(
            f"examples per step (--per_device_train_batch_size x --gradient_accumulation_steps x processes): "
            f"{checkpoint.state['examples_a_step']} before, {examples_per_step} now"
        )
    if differences:
        raise CheckpointError(
            f"{checkpoint.path} is a checkpoint of another run. {'; '.join(differences)}. Repeat the run's own "
            "command to resume it, or give another --output_dir."
        )
    warned = sorted(name for name in {*settings, *saved} - {*config} if meaning.get(name, "warn") == "warn")
    changed = _differences("--", saved, settings, warned)
    if changed:
        logger.warning("Resuming with other settings than before: %s.", "; ".join(changed))


def feed_state_of(checkpoint: Checkpoint, arguments: Arguments, global_batch: GlobalBatch) -> dict[str, Any] | None:
    """Returns where this process was in the training examples; None if it follows from the step.

    Raises:
        CheckpointError: the stream was read by another number of processes or workers, which decides what each reads.
    """
    if not arguments.data.streaming:
        return None
    states = checkpoint.state.get("feed")
    if states is None:
        raise CheckpointError(
            f"{checkpoint.path} does not say where in the stream the run was: an earlier release of hfgen wrote it. "
            "Resume with that release, or give another --output_dir."
        )
    before = len(states), states[0]["workers"]
    now = global_batch.processes, arguments.data.dataloader_num_workers or 0
    if before != now:
        raise CheckpointError(
            f"{checkpoint.path} is of a run whose stream was read by {before[0]} process(es) with {before[1]} "
            f"dataloader worker(s) each, and now there are {now[0]} with {now[1]}: the examples would come in another "
            f"order. Use {before[0]} process(es) and --dataloader_num_workers {before[1]}, or give another "
            "--output_dir."
        )
    return states[global_batch.rank]


def _differences(prefix: str, before: dict[str, Any], now: dict[str, Any], names: list[str]) -> list[str]:
    return [
        f"{prefix}{name}: {before.get(name)!r} before, {now.get(name)!r} now"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _names_a_repository(wanted: str) -> bool:
    """True if a text that may be a path reads as OWNER/NAME[@REVISION]. If a folder OWNER exists, it is a path."""
    is_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@.+)?", wanted) is not None
    return is_id and not Path(wanted).is_dir() and not Path(wanted).parent.is_dir()
