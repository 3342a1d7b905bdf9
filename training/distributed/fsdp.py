"""Weights, gradients and optimizer states spread over the processes, for models that do not fit on one device.

FSDP2, asked for as everywhere: `accelerate launch --use_fsdp --fsdp_version 2 training/train_gpt.py ...`. accelerate
reads its flags; torch's `fully_shard` does the work. accelerate's own preparation is not used, since it ignores the
flags on a CPU, where nothing of it could be tested, and looks for the parameters inside the one optimizer it knows.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from .processes import Processes


Model = TypeVar("Model", bound=PreTrainedModel)


def sharding_asked_for() -> FullyShardedDataParallelPlugin | None:
    """The flags of `accelerate launch --use_fsdp`, taken out of accelerate's own hands; None without them.

    Raises:
        ValueError: version 1 was asked for.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"--use_fsdp asks for FSDP version {plugin.fsdp_version}, and hfgen shards with version 2: add "
            "--fsdp_version 2 to accelerate launch."
        )
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    return plugin


def shard(
    model: PreTrainedModel, plugin: FullyShardedDataParallelPlugin, device: torch.device, precision: str
) -> None:
    """Spreads a model's weights over all processes, in place: each keeps its rows of every tensor.

    A layer's weights are brought together just before they are needed. The layers are those that the model names as
    `_no_split_modules`; embeddings and head go with the model itself.

    Args:
        model: on any device; its shards are moved to `device`.
        plugin: accelerate's flags: whether to gather weights anew in the backward pass, and whether to keep shards in
            the memory of the host.
        device: of this process.
        precision: "no", or "bf16" to gather and compute in bf16 with gradients added up in fp32.

    Raises:
        ValueError: the model names no layers, or the precision is fp16.
    """
    if not model._no_split_modules:
        raise ValueError(
            f"{type(model).__name__} cannot be sharded (--use_fsdp), and need not be, small as it is: leave the flag "
            "out for plain data parallelism."
        )
    if precision == "fp16":
        raise ValueError("--use_fsdp trains in bf16 or fp32, got --mixed_precision fp16. Use bf16.")
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if precision == "bf16" else MixedPrecisionPolicy()
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "mp_policy": policy,
        "reshard_after_forward": bool(plugin.reshard_after_forward),
        "offload_policy": plugin.cpu_offload,
    }
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, **options)
    fully_shard(model, **options)


def is_sharded(model: nn.Module) -> bool:
    """Whether its weights are spread over processes."""
    return isinstance(model, FSDPModule)


def gather_model(model: Model, model_class: type[Model], processes: Processes) -> Model | None:
    """An ordinary copy of a sharded model, on the main process; None on the others, which have to call this too."""
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
    """First row and number of rows of a tensor that this process holds; rows are dealt out as torch.chunk does.

    Raises:
        ValueError: it is spread in another way than FSDP2 spreads weights.
    """
    if tuple(tensor.placements) != (Shard(0),):
        raise ValueError(f"tensor: expected rows spread over processes, got placements {tensor.placements}")
    mesh = tensor.device_mesh
    size = -(-tensor.shape[0] // mesh.size())
    first = min(mesh.get_local_rank() * size, tensor.shape[0])
    return first, min(size, tensor.shape[0] - first)


def laid_out_like(value: Tensor, like: Tensor) -> Tensor:
    """A tensor's numbers in the memory layout and, where `like` is spread over processes, in the shards of another."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once: safetensors has no shared tensors. Shards where a model is spread."""
    return dict([*model.named_parameters(), *model.named_buffers()])
