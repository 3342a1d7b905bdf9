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
from .choices import Choices


def build_accelerator(run: RunArguments, choices: Choices) -> Accelerator:
    """Builds accelerate's `Accelerator` from flags and choices, and sets torch's threads and kernels accordingly.

    Raises:
        ValueError: a tracker is unknown.
    """
    torch.set_num_threads(choices.cpu_threads)
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
        mixed_precision=choices.mixed_precision,
        log_with="all" if "all" in trackers else trackers or None,
        project_config=ProjectConfiguration(run.output_dir, logging_dir=os.path.join(run.output_dir, "logs")),
        kwargs_handlers=[ddp],
        # Steps accumulate by themselves. From the environment, accelerate would divide every loss once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def prepare_model(model: PreTrainedModel, run: RunArguments, choices: Choices, device: torch.device) -> None:
    """Moves a model to its device, in place, with the memory layout and checkpointing that the flags ask for.

    Raises:
        ValueError: the architecture does not support gradient checkpointing.
    """
    network: nn.Module = model  # transformers wraps `to` in a way that hides its signature
    if choices.attn_implementation is not None:
        model.set_attn_implementation(choices.attn_implementation)
    if choices.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    network.to(device).train()
