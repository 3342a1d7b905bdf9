"""What results.json and the card say of a run: metrics, length, data, settings and the machine."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..config.flags import Arguments, as_recipe, without_surroundings
from ..data.batches import GlobalBatch
from ..progress import Progress
from .metrics_log import json_numbers


def describe_run(
    model: PreTrainedModel,
    about: dict[str, Any],
    progress: Progress,
    global_batch: GlobalBatch,
    arguments: Arguments,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Returns the content of results.json.

    Args:
        model: the one that is published.
        about: the data as it describes itself, `metrics` and `seconds_evaluated`.
        progress, global_batch, arguments, accelerator: of the run.
    """
    settings = as_recipe(arguments)
    busy = progress.compute_seconds / progress.seconds if progress.seconds else 1.0
    return {
        "model_type": model.config.model_type,
        **about,
        "metrics": json_numbers(about["metrics"]),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": progress.step,
        "skipped_steps": progress.skipped_steps,
        "examples_seen": progress.step * global_batch.size,
        "seconds_trained": round(progress.seconds, 1),
        "share_outside_compute": round(max(0.0, 1 - busy), 4),
        "mixed_precision": accelerator.mixed_precision,
        **describe_machine(global_batch.processes, accelerator.device),
        "command": arguments.command,
        "arguments": settings,
        "recipe": without_surroundings(settings, arguments),
    }


def describe_machine(processes: int, device: torch.device) -> dict[str, Any]:
    """Returns hardware and versions."""
    hardware = f"{torch.get_num_threads()} threads of {_processor()}"
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    packages = ("torch", "transformers", "accelerate", "datasets")
    return {
        "hardware": hardware,
        "processes": processes,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
