"""GPT-2's layout to GPTForCausalLM, and back.

model = from_gpt2("openai-community/gpt2")      # or a GPT2LMHeadModel; the logits stay the same
gpt2 = to_gpt2(model)                           # for engines that only know GPT-2
"""

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..models.modeling_gpt import GPTConfig, GPTForCausalLM
from .weights import take_over


if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2LMHeadModel

# Names of whole modules, from GPT-2's (and nanoGPT's) to ours. The {} stands for the layer number.
_MODULE_NAMES = {
    "transformer.wte": "model.embed_tokens",
    "transformer.wpe": "model.embed_positions",
    "transformer.h.{}.ln_1": "model.layers.{}.input_layernorm",
    "transformer.h.{}.attn.c_proj": "model.layers.{}.self_attn.o_proj",
    "transformer.h.{}.ln_2": "model.layers.{}.post_attention_layernorm",
    "transformer.h.{}.mlp.c_fc": "model.layers.{}.mlp.up_proj",
    "transformer.h.{}.mlp.c_proj": "model.layers.{}.mlp.down_proj",
    "transformer.ln_f": "model.norm",
    "lm_head": "lm_head",
}
# Queries, keys and values are one layer there and three here.
_FUSED_ATTENTION = "transformer.h.{}.attn.c_attn"
_SPLIT_ATTENTION = tuple(f"model.layers.{{}}.self_attn.{name}_proj" for name in "qkv")
# Layers that GPT-2 stores as Conv1D, whose weights are the transpose of nn.Linear's.
_CONV1D_WEIGHT = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
# Causal masks in old checkpoints.
_IGNORED = re.compile(r"\.attn\.(bias|masked_bias)$")


def from_gpt2(model_or_name: "GPT2LMHeadModel | str | os.PathLike[str]") -> GPTForCausalLM:
    """The GPTForCausalLM that computes the same logits as a GPT-2.

    Args:
        model_or_name: a GPT2LMHeadModel, or what `GPT2LMHeadModel.from_pretrained` takes: a folder or a Hub id.

    Returns:
        A new model with copies of the weights; dtype, device, mode and generation config are those of the original.

    Raises:
        ValueError: naming every setting of the GPT-2 that GPTConfig cannot express.
    """
    from transformers import GPT2LMHeadModel

    source = model_or_name
    if not isinstance(source, GPT2LMHeadModel):
        source = GPT2LMHeadModel.from_pretrained(source)
    model = GPTForCausalLM(config_from_gpt2(source.config))
    return take_over(model, source, split_state_dict(source.state_dict(), conv1d=True))


def to_gpt2(model: GPTForCausalLM) -> "GPT2LMHeadModel":
    """The GPT2LMHeadModel that computes the same logits; the inverse of `from_gpt2`.

    Returns:
        A new model with copies of the weights; dtype, device, mode and generation config are those of the original.

    Raises:
        ValueError: naming every field of the model's config that GPT-2 cannot express.
    """
    from transformers import GPT2LMHeadModel

    return take_over(GPT2LMHeadModel(_config_to_gpt2(model.config)), model, _fuse_state_dict(model.state_dict()))


def config_from_gpt2(config: "GPT2Config") -> GPTConfig:
    """The GPTConfig of a GPT2Config; raises a ValueError that names every setting it cannot express."""
    # reorder_and_upcast_attn is not among them: it only affects the precision of half-precision attention.
    required = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    problems = unmet(config, required)
    if problems:
        raise ValueError("GPTConfig cannot express this GPT-2: " + "; ".join(problems) + ".")
    return GPTConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=config.n_inner,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        max_position_embeddings=config.n_positions,
        hidden_act=config.activation_function,
        norm_type="layernorm",
        norm_eps=config.layer_norm_epsilon,
        qk_norm=False,
        position_embedding="learned",
        use_bias=True,
        tie_word_embeddings=config.tie_word_embeddings,
        attention_dropout=config.attn_pdrop,
        hidden_dropout=config.resid_pdrop,
        embedding_dropout=config.embd_pdrop,
        initializer_range=config.initializer_range,
        use_cache=config.use_cache,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )


def obstacles_to_gpt2(config: GPTConfig) -> list[str]:
    """The fields of a config that GPT-2 cannot express, each with what it must be and what it is."""
    required = {
        "position_embedding": "learned",
        "norm_type": "layernorm",
        "mlp_type": "plain",
        "qk_norm": False,
        "use_bias": True,
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
    }
    return unmet(config, required)


def unmet(config: PreTrainedConfig, required: Mapping[str, Any]) -> list[str]:
    """The fields of a config without the values required of them, each with what it must be and what it is."""
    return [
        f"{name} must be {expected!r}, got {getattr(config, name)!r}"
        for name, expected in required.items()
        if getattr(config, name) != expected
    ]


def _config_to_gpt2(config: GPTConfig) -> "GPT2Config":
    """The GPT2Config of a GPTConfig; raises a ValueError that names every field it cannot express."""
    from transformers import GPT2Config

    problems = obstacles_to_gpt2(config)
    if problems:
        raise ValueError("GPT-2 cannot express this model: " + "; ".join(problems) + ".")
    return GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.max_position_embeddings,
        n_embd=config.hidden_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        n_inner=config.intermediate_size,
        activation_function=config.hidden_act,
        resid_pdrop=config.hidden_dropout,
        embd_pdrop=config.embedding_dropout,
        attn_pdrop=config.attention_dropout,
        layer_norm_epsilon=float(config.norm_eps),
        initializer_range=float(config.initializer_range),
        use_cache=config.use_cache,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        tie_word_embeddings=config.tie_word_embeddings,
    )


def layer_number(name: str) -> int:
    """The layer of a GPT-2 weight; -1 outside of layers."""
    found = re.match(r"transformer\.h\.(\d+)\.", name)
    return int(found[1]) if found else -1


def split_state_dict(state_dict: Mapping[str, Tensor], conv1d: bool) -> dict[str, Tensor]:
    """Converts a state dict from GPT-2's layout to ours: renames, and separates queries, keys and values.

    Args:
        state_dict: with GPT-2's names.
        conv1d: its linear layers are Conv1D, (in, out), as in transformers, not nn.Linear, (out, in).
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if _IGNORED.search(name):
            continue
        if conv1d and _CONV1D_WEIGHT.search(name):
            tensor = tensor.T
        module, _, kind = name.rpartition(".")
        layer = layer_number(name)
        pattern = re.sub(r"\.h\.\d+\.", ".h.{}.", module)
        targets = _SPLIT_ATTENTION if pattern == _FUSED_ATTENTION else (_MODULE_NAMES.get(pattern, module),)
        for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
            ours[f"{target.format(layer)}.{kind}"] = part
    return ours


def _fuse_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in our layout to transformers' GPT-2, Conv1D and fused attention (`split_state_dict` undone)."""
    theirs: dict[str, Tensor] = {}
    names = {target: pattern for pattern, target in _MODULE_NAMES.items()}
    for name, tensor in state_dict.items():
        module, _, kind = name.rpartition(".")
        layer = re.search(r"\.layers\.(\d+)\.", name)
        pattern = re.sub(r"\.layers\.\d+\.", ".layers.{}.", module)
        number = layer[1] if layer else ""
        if pattern in _SPLIT_ATTENTION[1:]:
            continue  # joined with the queries
        if pattern == _SPLIT_ATTENTION[0]:
            tensor = torch.cat([state_dict[f"{part.format(number)}.{kind}"] for part in _SPLIT_ATTENTION])
        gpt2_module = _FUSED_ATTENTION if pattern == _SPLIT_ATTENTION[0] else names[pattern]
        gpt2_name = f"{gpt2_module.format(number)}.{kind}"
        theirs[gpt2_name] = tensor.T if _CONV1D_WEIGHT.search(gpt2_name) else tensor
    return theirs
