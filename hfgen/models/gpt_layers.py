"""The layers of a GPT, from the smallest up: norms, rotary positions, attention, feed-forward layer, block.

They are built from the fields of a `GPTConfig`, which is in the file of the model, modeling_gpt.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def _adds_to_residual(linear: nn.Linear) -> nn.Linear:
    """Marks a layer whose output is added to the residual stream: `_init_weights` makes its weights smaller."""
    linear.adds_to_residual = True  # type: ignore[assignment]
    return linear


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a matrix product of x: autocast's where it is enabled, else that of x."""
    device_type = x.device.type
    # The meta device, for one, has no autocast, and asking it is an error.
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return x.dtype


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype to add up in: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (https://arxiv.org/abs/2104.09864, equation 34): turns each pair (x[i], x[i + head_dim/2]) by
    its position times the pair's frequency, so that the score of a query and a key depends only on their distance.

    Args:
        x: (batch, heads, length, head_dim).
        cos, sin: (batch or 1, 1, length, head_dim), from `GPTRotaryEmbedding`.
    """
    # Equal to the usual cos * x + sin * cat(-x2, x1): the sign is in sin. roll() takes half the time of that cat().
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def _repeat_heads(x: Tensor, times: int) -> Tensor:
    """(batch, heads, length, head_dim) -> (batch, heads * times, length, head_dim), each head `times` in a row."""
    return x if times == 1 else x.repeat_interleave(times, dim=1)


def _eager_attention(
    module: "GPTAttention",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention spelled out: softmax(query key^T * scaling + mask) value.

    Args:
        query: (batch, heads, length, head_dim).
        key, value: (batch, key/value heads, past + length, head_dim).
        attention_mask: added to the scores; (batch, 1, length, past + length), 0 to attend and very negative not to.

    Returns:
        The output, (batch, length, heads, head_dim), and the weights, (batch, heads, length, past + length).
    """
    key = _repeat_heads(key, module.num_key_value_groups)
    value = _repeat_heads(value, module.num_key_value_groups)
    scores = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1).to(value.dtype)  # softmax adds up in float32 whatever its dtype
    output = F.dropout(weights, dropout, module.training) @ value
    return output.transpose(1, 2).contiguous(), weights


class GPTRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> the same."""
        weight = self.weight.to(x.dtype)
        if x.device.type != "cpu":
            return F.rms_norm(x, x.shape[-1:], weight, self.eps)
        # CPUs have no fused kernel; there this equivalent is a third faster, forward and backward together.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_at_least_float32(x.dtype))
        return x * torch.rsqrt(norm.square() / x.shape[-1] + self.eps).to(x.dtype) * weight


def build_norm(config: Any, size: int) -> nn.Module:
    """The norm named by `config.norm_type`, over a last dimension of `size`."""
    if config.norm_type == "layernorm":
        return nn.LayerNorm(size, eps=config.norm_eps, bias=config.use_bias)
    return GPTRMSNorm(size, eps=config.norm_eps)


class GPTRotaryEmbedding(nn.Module):
    """Tables of cosines and sines for `rotate`.

    The frequencies are recomputed in each forward pass. They are only a few numbers, and a buffer would be lost when
    transformers builds the model on the meta device, and rounded when the model is cast to bfloat16.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def frequencies(self, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, float]:
        """Radians per position of each pair, (head_dim / 2,), and a factor for the tables (1 unless rescaled).

        `dtype` is that of the default type's; transformers computes the others in float32.
        """
        rope = self.config.rope_parameters or {}
        if rope["rope_type"] != "default":
            return ROPE_INIT_FUNCTIONS[rope["rope_type"]](self.config, device)
        pairs = torch.arange(0, self.config.head_dim, 2, dtype=dtype, device=device)
        return rope["rope_theta"] ** (-pairs / self.config.head_dim), 1.0

    @torch.no_grad()
    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(batch or 1, length) -> cosines and sines, each (batch or 1, 1, length, head_dim)."""
        precision = _at_least_float32(dtype)
        frequencies, scale = self.frequencies(position_ids.device, precision)
        angles = position_ids[:, None, :, None].to(precision) * frequencies
        cos, sin = angles.cos() * scale, angles.sin() * scale
        return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


class GPTAttention(nn.Module):
    """Causal multi-head self-attention; keys and values may have fewer heads than queries."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True  # read by the attention functions of transformers

        query_size = config.num_attention_heads * self.head_dim
        key_value_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.use_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.use_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.use_bias)
        self.o_proj = _adds_to_residual(nn.Linear(query_size, config.hidden_size, bias=config.use_bias))
        self.q_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, length, hidden_size) -> the same, and the attention weights if the backend returns them."""
        batch_and_length = hidden_states.shape[:-1]
        per_head = (*batch_and_length, -1, self.head_dim)  # -1: under tensor parallelism a process has fewer heads
        dtype = compute_dtype(hidden_states)
        hidden_states = hidden_states.to(dtype)  # once; autocast would cast it three times

        # Under autocast some norms return float32.
        query = self.q_norm(self.q_proj(hidden_states).view(per_head)).to(dtype).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_states).view(per_head)).to(dtype).transpose(1, 2)
        value = self.v_proj(hidden_states).view(per_head).transpose(1, 2)
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if cache is not None:
            # Continuous batching keeps one cache for many texts, and reads and changes the arguments of attention.
            key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager_attention)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.o_proj(output.reshape(*batch_and_length, -1)), weights


class GPTMLP(nn.Module):
    """Feed-forward layer: down(act(up(x))), or down(act(gate(x)) * up(x)) if gated."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        narrow, wide = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(narrow, wide, bias=config.use_bias) if config.mlp_type == "gated" else None
        self.up_proj = nn.Linear(narrow, wide, bias=config.use_bias)
        self.down_proj = _adds_to_residual(nn.Linear(wide, narrow, bias=config.use_bias))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, hidden_size) -> the same."""
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(x)))
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class GPTDecoderLayer(GradientCheckpointingLayer):
    """One block: x = x + attention(norm(x)); x = x + mlp(norm(x))."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = build_norm(config, config.hidden_size)
        self.self_attn = GPTAttention(config, layer_idx)
        self.post_attention_layernorm = build_norm(config, config.hidden_size)
        self.mlp = GPTMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """(batch, length, hidden_size) -> the same; the keyword arguments are those of `GPTAttention.forward`."""
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))
