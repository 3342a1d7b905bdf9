"""From a run to its checkpoints and back: which one to go on from, whether it fits, what is saved and restored."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfgen.hub import fetch_checkpoint

from ..config.flags import Arguments, as_recipe
from ..data.batches import GlobalBatch
from ..distributed.fsdp import laid_out_like, named_tensors
from ..distributed.processes import Processes
from ..optim import EMA
from ..progress import Progress
from ..step import PhaseTrainer
from . import storage
from .storage import Checkpoint, CheckpointError, StoredTensors


logger = logging.getLogger(__name__)


# Settings that decide which examples a step sees or what is saved: with others it is another run.
FIXED = (
    "seed", "dataset_name", "dataset_config_name", "dataset_revision", "train_split", "image_column", "label_column",
    "text_column", "streaming", "shuffle_buffer_size", "max_train_samples", "optimizer",
)  # fmt: skip


# Settings that change nothing in the weights; all others may be changed on a resume, which is told.
# dataloader_num_workers is one of them where the data is not streamed, and [`feed_state`] checks it where it is.
FREE = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "max_train_steps", "num_train_epochs",
    "max_train_seconds", "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size",
    "eval_split", "max_eval_samples", "in_memory", "dataloader_num_workers", "eval_steps", "logging_steps",
    "sample_steps", "checkpointing_steps", "checkpoints_total_limit", "on_nonfinite", "report_to", "disable_tqdm",
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "nll_samples", "quality_samples",
    "sample_length", "sample_temperature", "model_name_or_path",
}  # fmt: skip


def find_checkpoint(output_dir: Path, wanted: str | None) -> Checkpoint | None:
    """The checkpoint to go on from, or None to start anew.

    Raises:
        CheckpointError: the one that was asked for is not there or is damaged, or all of them are.
    """
    if wanted is not None and wanted != "latest":
        return storage.load(fetch_checkpoint(wanted) if _names_a_repository(wanted) else Path(wanted))
    folder = output_dir / "checkpoints"
    found = storage.latest(folder)
    if found is None and storage.exist(folder):
        raise CheckpointError(
            f"Every checkpoint in {folder} is damaged, as reported above. Use --overwrite_output_dir to start anew."
        )
    if found is None and wanted == "latest":
        raise CheckpointError(f"There is no checkpoint to resume from in {folder}.")
    return found


def check_same_run(found: Checkpoint, config: dict[str, Any], arguments: Arguments, examples_a_step: int) -> None:
    """Refuses a checkpoint of another model or with other settings that decide what the run computes.

    Args:
        found: the checkpoint.
        config: of the model that is to be trained, as `to_dict` gives it.
        arguments: of this run.
        examples_a_step: global batch size; with another one, the position in the data has another meaning.

    Raises:
        CheckpointError: lists every difference.
    """
    config, saved_config = json.loads(json.dumps(config)), found.state["config"]
    if saved_config.get("model_type") != config["model_type"]:
        raise CheckpointError(
            f"{found.path} is a checkpoint of a {saved_config.get('model_type')} model, and this script trains "
            f"{config['model_type']}. Resume with the script that wrote it, or give another --output_dir."
        )
    not_settings = {"transformers_version", "auto_map", "architectures", "_name_or_path", "dtype"}
    settings, saved = as_recipe(arguments), found.state["arguments"]
    differences = [
        *_differences("config ", saved_config, config, sorted({*config, *saved_config} - not_settings)),
        *_differences("--", saved, settings, [name for name in FIXED if name in settings]),
    ]
    if bool(saved.get("ema_decay")) != bool(settings.get("ema_decay")):  # one has an average, the other has none
        differences += _differences("--", saved, settings, ["ema_decay"])
    if found.state["examples_a_step"] != examples_a_step:
        differences.append(
            f"examples a step (--per_device_train_batch_size x --gradient_accumulation_steps x processes): "
            f"{found.state['examples_a_step']} before, {examples_a_step} now"
        )
    if differences:
        raise CheckpointError(
            f"{found.path} is a checkpoint of another run. {'; '.join(differences)}. Repeat the run's own command to "
            "resume it, or give another --output_dir."
        )
    others = sorted({*settings, *saved} - {*FIXED, *FREE, *config})
    changed = _differences("--", saved, settings, others)
    if changed:
        logger.warning("Going on with other settings than before: %s.", "; ".join(changed))


def feed_state(found: Checkpoint, arguments: Arguments, global_batch: GlobalBatch) -> dict[str, Any] | None:
    """Where this process was in the training examples; None if the step alone tells.

    Raises:
        CheckpointError: other processes or workers read the stream, which decides what each of them reads.
    """
    if not arguments.data.streaming:
        return None
    states = found.state.get("feed")
    if states is None:
        raise CheckpointError(
            f"{found.path} does not tell where in the stream the run was: an earlier release of hfgen wrote it. Go on "
            "with that release, or give another --output_dir."
        )
    before = len(states), states[0]["workers"]
    now = global_batch.processes, arguments.data.dataloader_num_workers or 0
    if before != now:
        raise CheckpointError(
            f"{found.path} is of a run whose stream was read by {before[0]} process(es) with {before[1]} dataloader "
            f"worker(s) each, and now there are {now[0]} with {now[1]}: the examples would come in another order. Use "
            f"{before[0]} process(es) and --dataloader_num_workers {before[1]}, or give another --output_dir."
        )
    return states[global_batch.rank]


def _differences(prefix: str, before: dict[str, Any], now: dict[str, Any], names: list[str]) -> list[str]:
    return [
        f"{prefix}{name}: {before.get(name)!r} before, {now.get(name)!r} now"
        for name in names
        if before.get(name) != now.get(name)
    ]


def training_tensors(model: PreTrainedModel, average: EMA | None, trainers: list[PhaseTrainer]
                     ) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """Weights, their moving average and optimizer states, by the name of the file that holds them."""
    tensors = {"model": named_tensors(model)}
    if average is not None:
        tensors["average"] = named_tensors(average.published())
    for trainer in trainers:
        state = storage.optimizer_tensors(trainer.bare_optimizer, trainer.names)
        tensors[f"optimizer-{trainer.phase.name}"] = state
    return tensors


def restore(found: Checkpoint, model: PreTrainedModel, average: EMA | None, trainers: list[PhaseTrainer],
            processes: Processes) -> Progress:  # fmt: skip
    """Puts a checkpoint's tensors back. The main process reads them and hands them to the others.

    Raises:
        CheckpointError: tensors are missing, too many, or of another shape; nothing was changed then.
    """
    targets = {"model": named_tensors(model)}
    if average is not None:
        targets["average"] = named_tensors(average.model)
    stored = {heading: found.tensors.get(heading, StoredTensors()) for heading in targets}
    for heading, tensors in targets.items():
        shapes = stored[heading].shapes
        expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        wrong = [name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name)]
        if wrong:
            raise CheckpointError(
                f"{found.path / heading}.safetensors does not fit the model: {', '.join(sorted(wrong)[:5])}."
            )
    states = {trainer: found.tensors.get(f"optimizer-{trainer.phase.name}", StoredTensors()) for trainer in trainers}
    for trainer, state in states.items():
        storage.check_optimizer_tensors(trainer.bare_optimizer, trainer.names, state.shapes)

    for trainer, state in states.items():
        tensors_of_state = read_tensors(state, processes)
        storage.load_optimizer_tensors(trainer.bare_optimizer, trainer.names, tensors_of_state)
    with torch.no_grad():
        for heading, tensors in targets.items():
            for name, tensor in read_tensors(stored[heading], processes):
                tensors[name].copy_(laid_out_like(tensor, tensors[name]))
    return Progress(**found.state["progress"])


def read_tensors(stored: StoredTensors, processes: Processes) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor), one after the other, in every process, though the main one alone reads them."""
    for name in stored:
        yield (
            name,
            processes.broadcast_tensor(partial(stored.__getitem__, name), stored.shapes[name], stored.dtypes[name]),
        )


def _names_a_repository(wanted: str) -> bool:
    """Whether a text that may be a path reads as OWNER/NAME[@REVISION]. Where a folder OWNER exists, it is a path."""
    is_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@.+)?", wanted) is not None
    return is_id and not Path(wanted).is_dir() and not Path(wanted).parent.is_dir()
