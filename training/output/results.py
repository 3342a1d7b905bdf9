"""What results.json and the model card say about a run."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..config.flags import Arguments, as_recipe, recipe_of
from ..data.feeds.batches import GlobalBatch
from ..hardware.choices import Choices
from ..hardware.probe import instruction_limits, processor_name
from ..objective import Metrics
from ..progress import Progress


def describe_run(
    model: PreTrainedModel,
    dataset: dict[str, Any],
    metrics: Metrics,
    progress: Progress,
    global_batch: GlobalBatch,
    arguments: Arguments,
    choices: Choices,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Returns the content of results.json: the model, the data, the metrics, the training, the machine, the command.

    Args:
        model: the published one.
        dataset: its name, revision and split.
        metrics: of the last evaluation; one that is missing is null, and has its reason beside it.
        progress: at the end of the training, or so far.
        global_batch: gives the number of examples per step.
        arguments: of the run.
        choices: of precision, kernels and threads.
        accelerator: gives device and number of processes.
    """
    compute = progress.compute_seconds / progress.seconds if progress.seconds else 1.0
    return {
        "model_type": model.config.model_type,
        **dataset,
        "metrics": metrics.by_name(),
        "metrics_missing": metrics.missing,
        "metrics_details": metrics.details,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": progress.step,
        "skipped_steps": progress.skipped_steps,
        "examples_seen": progress.step * global_batch.size,
        "seconds_trained": round(progress.seconds, 1),
        "seconds_wall": round(progress.wall_seconds, 1),
        "seconds_other": {name: round(seconds, 1) for name, seconds in progress.other_seconds.items()},
        "share_outside_compute": round(max(0.0, 1 - compute), 4),
        "mixed_precision": choices.mixed_precision,
        "choices": choices.to_json(),
        **describe_machine(accelerator.num_processes, accelerator.device),
        "command": arguments.command,
        "arguments": as_recipe(arguments),
        "recipe": recipe_of(arguments),
    }


def describe_machine(processes: int, device: torch.device) -> dict[str, Any]:
    """Returns the hardware, the number of processes, and the versions of the libraries."""
    limits = ", ".join(f"{name}={value}" for name, value in instruction_limits().items())
    hardware = f"{torch.get_num_threads()} threads of {processor_name()}{limits and f', limited by {limits}'}"
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    packages = ("torch", "transformers", "accelerate", "datasets")
    return {
        "hardware": hardware,
        "processes": processes,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
