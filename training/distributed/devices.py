"""What a run computes on, and how: devices, threads and precision, and the model laid out for them."""

from __future__ import annotations

import os
import warnings

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
from accelerate.utils import ProjectConfiguration
from torch import nn
from transformers import PreTrainedModel

from ..config.flags import RunArguments
from .fsdp import shard


def build_accelerator(run: RunArguments) -> Accelerator:
    """accelerate, set up as the flags say.

    Raises:
        ValueError: the device cannot compute in the precision that was asked for, or a tracker has no such name.
    """
    if run.cpu_threads or was_left_one_thread():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(run.cpu_threads or max(1, available_cores() // processes))
    precision = run.mixed_precision
    if precision == "auto":
        precision = "bf16" if multiplies_bf16() else "no"
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("--mixed_precision fp16 needs a GPU, and there is none. Use bf16 or no.")
    if torch.cuda.is_available():
        # TF32 products where fp32 is left: the tensor cores' speed, with the range of fp32.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not run.full_determinism
    if run.full_determinism:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    trackers = [name for name in run.report_to if name != "none"]
    # accelerate passes the option by the name that it has had before torch 2.13.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # Every process has the same buffers, except batch normalisation's, whose running averages may differ a little:
    # sending them around in each forward pass would also break a second forward pass before the backward one.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(
        mixed_precision=precision,
        log_with="all" if "all" in trackers else trackers or None,
        project_config=ProjectConfiguration(run.output_dir, logging_dir=os.path.join(run.output_dir or "", "logs")),
        kwargs_handlers=[ddp],
    )


def was_left_one_thread() -> bool:
    """Whether `accelerate launch` set a single thread, as it does unless told otherwise: half of a laptop or less."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def multiplies_bf16() -> bool:
    """Whether the device has instructions for bf16 matrix products; emulated ones would be slower than fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return False
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(has_tiles and has_tiles())


def prepare_model(model: PreTrainedModel, run: RunArguments, device: torch.device) -> PreTrainedModel:
    """The model on its device, laid out and set up as the flags say.

    Raises:
        ValueError: the architecture cannot recompute activations.
    """
    network: nn.Module = model  # transformers wraps `to` in a way that hides its signature
    if run.channels_last and model.main_input_name != "input_ids":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    network.to(device).train()
    return model


def prepare_sharded(
    model: PreTrainedModel,
    copied: PreTrainedModel | None,
    run: RunArguments,
    accelerator: Accelerator,
    sharding: FullyShardedDataParallelPlugin,
) -> None:
    """Spreads a model over the processes, and its copy likewise.

    Raises:
        ValueError: the model or the precision will not do.
    """
    for each in (model, copied):
        if each is not None:
            shard(prepare_model(each, run, torch.device("cpu")), sharding, accelerator.device,
                  accelerator.mixed_precision)  # fmt: skip
