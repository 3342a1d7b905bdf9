"""FSDP2: weights, gradients and optimizer states sharded over the processes, for models too large for one device.

It is requested as everywhere, `accelerate launch --use_fsdp --fsdp_version 2 training/train_gpt.py ...`. accelerate
reads its flags; torch's `fully_shard` does the work. accelerate's own preparation is not used because it ignores the
flags on a CPU, where nothing of it could be tested, and looks for the parameters inside the one optimizer it knows.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from . import launcher
from .processes import Processes


Model = TypeVar("Model", bound=PreTrainedModel)


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """Returns accelerate's FSDP plugin and hides the request from accelerate; None if FSDP was not requested.

    Raises:
        ValueError: version 1 was requested.
    """
    if not launcher.asks_for_fsdp():
        return None
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"--fsdp_version must be 2, got {plugin.fsdp_version}. Add --fsdp_version 2 to accelerate launch."
        )
    launcher.hide_fsdp_request()
    return plugin


def shard(model: PreTrainedModel, plugin: FullyShardedDataParallelPlugin, accelerator: Accelerator) -> None:
    """Shards a model over all processes, in place: each keeps its rows of every tensor.

    A layer's weights are gathered just before they are needed. The layers are those that the model names in
    `_no_split_modules`; embeddings and head belong to the model itself. In bf16, weights are gathered and used in bf16
    and gradients are reduced in fp32.

    Args:
        model: on any device; its shards are moved to the accelerator's.
        plugin: accelerate's flags: whether to gather weights again in the backward pass, and whether to keep shards in
            the memory of the host.
        accelerator: knows device and precision.

    Raises:
        ValueError: the model names no layers, or the precision is fp16.
    """
    if not model._no_split_modules:
        raise ValueError(
            f"{type(model).__name__} does not support --use_fsdp and is too small to need it. Leave the flag out for "
            "plain data parallelism."
        )
    if accelerator.mixed_precision == "fp16":
        raise ValueError("--mixed_precision must be bf16 or no with --use_fsdp, got fp16. Use bf16.")
    is_bf16 = accelerator.mixed_precision == "bf16"
    options: dict[str, Any] = {
        "mesh": init_device_mesh(accelerator.device.type, (torch.distributed.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if is_bf16 else MixedPrecisionPolicy(),
        "reshard_after_forward": bool(plugin.reshard_after_forward),
        "offload_policy": plugin.cpu_offload,
    }
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, **options)
    fully_shard(model, **options)


def is_sharded(model: nn.Module) -> bool:
    """True if the model's weights are sharded over processes."""
    return isinstance(model, FSDPModule)


def whole_model(model: Model, model_class: type[Model], processes: Processes) -> Model | None:
    """Returns an ordinary model on the main process, where files are written, and None elsewhere. Collective call.

    A model that is not sharded is returned itself, not a copy.
    """
    if not is_sharded(model):
        return model if processes.is_main else None
    whole = None
    if processes.is_main:
        with torch.device("meta"):
            whole = model_class(model.config)
        whole.to_empty(device=model.device)
        whole.tie_weights()
        whole.generation_config = model.generation_config
    targets = named_tensors(whole) if whole is not None else {}
    with torch.no_grad():
        for name, tensor in named_tensors(model).items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if whole is not None:
                targets[name].copy_(full)
    return whole


def rows_held(tensor: DTensor) -> tuple[int, int]:
    """Returns the first row and the number of rows of a tensor that this process holds.

    Rows are dealt out as by torch.chunk.

    Raises:
        ValueError: the tensor is sharded in another way than FSDP2 shards weights.
    """
    if tuple(tensor.placements) != (Shard(0),):
        raise ValueError(f"tensor must be sharded by rows, got placements {tensor.placements}.")
    mesh = tensor.device_mesh
    size = -(-tensor.shape[0] // mesh.size())
    first = min(mesh.get_local_rank() * size, tensor.shape[0])
    return first, min(size, tensor.shape[0] - first)


def laid_out_like(value: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor's values in the memory layout of another, and sharded like it if it is sharded."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers by name, each once, because safetensors does not store shared tensors.

    A sharded model gives its shards.
    """
    return dict([*model.named_parameters(), *model.named_buffers()])
