"""."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data.batches import GlobalBatch
from ..progress import Progress


def describe_results(
    progress: Progress, global_batch: GlobalBatch, seconds_evaluated: float, accelerator: Accelerator
) -> dict[str, Any]:
    """How long and on what the model was trained, as results.json and the card give it."""
    busy = progress.compute_seconds / progress.seconds if progress.seconds else 1.0
    return {
        "steps": progress.step,
        "skipped_steps": progress.skipped_steps,
        "examples_seen": progress.step * global_batch.size,
        "seconds_trained": round(progress.seconds, 1),
        "seconds_evaluated": round(seconds_evaluated, 1),
        "share_outside_compute": round(max(0.0, 1 - busy), 4),
        "mixed_precision": accelerator.mixed_precision,
        **describe_machine(accelerator.num_processes, accelerator.device),
    }


def describe_machine(processes: int, device: torch.device) -> dict[str, Any]:
    """Hardware and versions, as results.json and the card give them."""
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


def describe_run(model, dataset, metrics, progress, global_batch, seconds_evaluated, arguments, accelerator):
    from ..config.flags import as_recipe
    from .metrics_log import json_numbers

    return {
        "model_type": model.config.model_type,
        **dataset,
        "metrics": json_numbers(metrics),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        **describe_results(progress, global_batch, seconds_evaluated, accelerator),
        "command": arguments.command,
        "arguments": as_recipe(arguments),
    }
