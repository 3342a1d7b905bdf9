"""GPTs of a few thousand weights in the architectures that the fields of the config make, and inputs for them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from hfgen.models.modeling_gpt import GPTConfig, GPTForCausalLM


MODERN: dict[str, object] = {}
GPT2_SHAPE: dict[str, object] = {
    "position_embedding": "learned",
    "norm_type": "layernorm",
    "qk_norm": False,
    "hidden_act": "gelu_new",
    "use_bias": True,
    "tie_word_embeddings": True,
}
LLAMA_SHAPE: dict[str, object] = {
    "mlp_type": "gated",
    "hidden_act": "silu",
    "qk_norm": False,
    "num_key_value_heads": 2,
}
SHAPES = pytest.mark.parametrize("shape", [MODERN, GPT2_SHAPE, LLAMA_SHAPE], ids=["modern", "gpt2", "llama"])


def tiny_config(**fields: object) -> GPTConfig:
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 48}
    return GPTConfig(**{**sizes, "initializer_range": 0.2, **fields})


def tiny_model(**fields: object) -> GPTForCausalLM:
    """In evaluation mode, with weights large enough for attention to matter; norms and biases are random too."""
    torch.manual_seed(0)
    return randomized(GPTForCausalLM(tiny_config(**fields)).eval())


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def random_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(seed))


def left_padded(rows: list[Tensor]) -> dict[str, Tensor]:
    """A batch of sequences of unlike lengths, padded on the left with token 0."""
    length = max(len(row) for row in rows)
    return {
        "input_ids": torch.stack([F.pad(row, (length - len(row), 0)) for row in rows]),
        "attention_mask": torch.stack([F.pad(torch.ones_like(row), (length - len(row), 0)) for row in rows]),
    }


def positions_without_padding(attention_mask: Tensor) -> Tensor:
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)
