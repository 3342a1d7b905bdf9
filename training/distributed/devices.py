"""Devices, threads and precision of a run, and the model laid out for them."""

from __future__ import annotations

import os
import warnings

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from torch import nn
from transformers import PreTrainedModel

from ..config.flags import RunArguments
from . import launcher


def build_accelerator(run: RunArguments) -> Accelerator:
    """Builds accelerate's `Accelerator` from the flags, and sets torch's threads and kernels accordingly.

    Raises:
        ValueError: the device does not support the requested precision, or a tracker is unknown.
    """
    if run.cpu_threads or launcher.defaulted_to_one_thread():
        torch.set_num_threads(run.cpu_threads or max(1, launcher.available_cores() // launcher.local_processes()))
    precision = run.mixed_precision
    if precision == "auto":
        precision = "bf16" if multiplies_bf16() else "no"
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("--mixed_precision fp16 needs a GPU, and there is none. Use bf16 or no.")
    if torch.cuda.is_available():
        # TF32 for the products that stay in fp32: the speed of tensor cores with the range of fp32.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not run.full_determinism
    if run.full_determinism:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    trackers = [name for name in run.report_to if name != "none"]
    # accelerate still uses the name that is deprecated in torch 2.13.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # Buffers are equal in every process, except for batch normalization's running averages, which may differ a little.
    # Broadcasting them in each forward pass would also break a second forward pass before the backward pass.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(
        mixed_precision=precision,
        log_with="all" if "all" in trackers else trackers or None,
        project_config=ProjectConfiguration(run.output_dir, logging_dir=os.path.join(run.output_dir, "logs")),
        kwargs_handlers=[ddp],
        # Steps accumulate by themselves. From the environment, accelerate would divide every loss once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def prepare_model(model: PreTrainedModel, run: RunArguments, device: torch.device) -> None:
    """Moves a model to its device, in place, with the memory layout and checkpointing that the flags ask for.

    Raises:
        ValueError: the architecture does not support gradient checkpointing.
    """
    network: nn.Module = model  # transformers wraps `to` in a way that hides its signature
    if run.channels_last and model.main_input_name != "input_ids":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    network.to(device).train()


def multiplies_bf16() -> bool:
    """True if the device has instructions for bf16 matrix products; emulated ones would be slower than fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return False
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(has_tiles and has_tiles())
