"""What is installed on a machine, and what it is fast at: what `hfgen doctor` reports."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict
from typing import Any

import torch
from huggingface_hub import get_token
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE

from ...models import GPTConfig, GPTForCausalLM, VAEConfig, VAEModel
from .installation import extras, import_training, installed_versions, missing_requirements


PACKAGES = ["hfgen", "torch", "transformers", "huggingface_hub", "safetensors", "accelerate", "datasets"]


def diagnose() -> dict[str, Any]:
    """Everything but a recipe.

    Returns:
        "packages": name -> version or None; "missing": what hfgen cannot do without; "extras": name -> what is
        missing; "machine", "hub" and "choices" in words and numbers. "choices" holds what a training of images and of
        text would choose here, or why that is not known.
    """
    return {
        "python": platform.python_version(),
        "packages": installed_versions(PACKAGES),
        "missing": missing_requirements(),
        "extras": {extra.name: extra.missing for extra in extras()},
        "machine": _machine(),
        "hub": {"endpoint": ENDPOINT, "logged_in": get_token() is not None, "cache": HF_HUB_CACHE},
        "choices": _choices(),
    }


def _machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cache = HF_HUB_CACHE
    while not os.path.isdir(cache):
        cache = os.path.dirname(cache)
    return {
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "gpus": gpus,
        "free_disk_bytes": shutil.disk_usage(cache).free,
    }


def _memory() -> int | None:
    """Bytes of the machine's memory; None where the system does not say."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PAGE_SIZE" in names and "SC_PHYS_PAGES" in names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _choices() -> dict[str, Any]:
    """What a training would choose by its measurement of a tenth of a second, for images and for text."""
    try:
        flags = import_training("config.flags")
        choices, probe = import_training("hardware.choices"), import_training("hardware.probe")
    except (ImportError, ValueError) as error:
        return {"unknown": f"{error}. Run: pip install 'hfgen[training]'"}
    run = flags.RunArguments(output_dir="")
    with torch.device("meta"):  # only their sizes are asked for
        models = {"images": VAEModel(VAEConfig()), "text": GPTForCausalLM(GPTConfig())}
    found: dict[str, Any] = {name: asdict(choices.choose(run, model)) for name, model in models.items()}
    return {"processor": probe.processor_name(), **found}
