"""Models whose every weight matters, and a batch that shows it."""

from typing import TypeVar

import torch
from torch import Tensor, nn


Module = TypeVar("Module", bound=nn.Module)


def randomized(model: Module) -> Module:
    """The model with norms and biases, which start at 1 and 0, made random too, as all of its weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def left_padded_batch() -> dict[str, Tensor]:
    """Three sequences of 12, 9 and 1 tokens, with the positions that generate() would count for them."""
    input_ids = torch.randint(1, 60, (3, 12), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, :3] = 0
    attention_mask[2, :11] = 0
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask, "position_ids": positions}
