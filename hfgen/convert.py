"""Converts weights of other GPT layouts to GPTForCausalLM, and back.

    model = from_gpt2("openai-community/gpt2")      # or a GPT2LMHeadModel; the logits stay the same
    gpt2 = to_gpt2(model)                           # for engines that only know GPT-2
    model = from_nanogpt("ckpt.pt")                 # of karpathy/nanoGPT
    tokenizer = tokenizer_from_nanogpt("meta.pkl")  # of the data of a nanoGPT that reads characters

Each returns a new model that computes the same logits, or raises a ValueError that names every obstacle. No code in a
file is run: of a pickle, which nanoGPT writes, only tensors, numbers, text and collections of them are read.
"""

import copy
import os
import pickletools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .models.modeling_gpt import GPTConfig, GPTForCausalLM


if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

Converted = TypeVar("Converted", bound=PreTrainedModel)

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
    model = GPTForCausalLM(_config_from_gpt2(source.config))
    return _take_over(model, source, _split_state_dict(source.state_dict(), conv1d=True))


def to_gpt2(model: GPTForCausalLM) -> "GPT2LMHeadModel":
    """The GPT2LMHeadModel that computes the same logits; the inverse of `from_gpt2`.

    Returns:
        A new model with copies of the weights; dtype, device, mode and generation config are those of the original.

    Raises:
        ValueError: naming every field of the model's config that GPT-2 cannot express.
    """
    from transformers import GPT2LMHeadModel

    return _take_over(GPT2LMHeadModel(_config_to_gpt2(model.config)), model, _fuse_state_dict(model.state_dict()))


def from_nanogpt(
    state_dict_or_path: Mapping[str, Any] | str | os.PathLike[str],
    num_attention_heads: int | None = None,
    hidden_act: str = "gelu",
) -> GPTForCausalLM:
    """The GPTForCausalLM that computes the same logits as a model of karpathy/nanoGPT.

    Args:
        state_dict_or_path: the path of nanoGPT's `ckpt.pt`, or of a safetensors file with the model's state dict; or
            what such a file holds, the checkpoint or the state dict.
        num_attention_heads: `n_head`, which a checkpoint holds and the weights alone do not reveal. None: the
            checkpoint's.
        hidden_act: "gelu", or "gelu_new" for models from before March 2023.

    Returns:
        A new model with copies of the weights, in evaluation mode. Its dropout probabilities are the checkpoint's,
        and `generate` ends at its context by default.

    Raises:
        ValueError: the file cannot be read without running code in it, the state dict is not nanoGPT's, or
            num_attention_heads is missing, is not the checkpoint's or does not divide the width.
    """
    checkpoint = state_dict_or_path
    if isinstance(checkpoint, (str, os.PathLike)):
        checkpoint = _read_checkpoint(Path(checkpoint))
    weights, arguments = checkpoint.get("model", checkpoint), checkpoint.get("model_args", {})
    # torch.compile prefixes every name, and a file may hold the tied embedding under only one of its two names.
    state_dict = {name.removeprefix("_orig_mod."): tensor for name, tensor in weights.items()}
    tied = ("transformer.wte.weight", "lm_head.weight")
    for name, other in (tied, tied[::-1]):
        if name not in state_dict and other in state_dict:
            state_dict[name] = state_dict[other]
    config = _config_from_nanogpt(state_dict, arguments, num_attention_heads, hidden_act)
    model = GPTForCausalLM(config).to(dtype=state_dict["transformer.wte.weight"].dtype)  # type: ignore[call-arg]
    model.load_state_dict(_split_state_dict(state_dict, conv1d=False))
    model.generation_config.max_length = config.max_position_embeddings
    return model.eval()


def tokenizer_from_nanogpt(path: str | os.PathLike[str]) -> "PreTrainedTokenizerFast":
    """The tokenizer of a nanoGPT that reads characters. (Others read GPT-2's tokens: `openai-community/gpt2`.)

    It has a token for each character of the training text and no other, as the model has; what else a text holds is
    left out.

    Args:
        path: `meta.pkl`, which nanoGPT writes beside the data, as in `data/shakespeare_char`.

    Raises:
        ValueError: the file is not nanoGPT's.
    """
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    meta = _read_plain_pickle(Path(path))
    characters = meta.get("itos") if isinstance(meta, dict) else None
    if (
        not isinstance(characters, dict)
        or {*characters} != {*range(len(characters))}
        or {type(character) for character in characters.values()} != {str}
    ):
        raise ValueError(
            f'{path} must hold the characters of nanoGPT\'s data by number, under "itos", got no such thing. Name the '
            "meta.pkl that prepare.py wrote."
        )
    backend = Tokenizer(models.BPE(vocab={character: id for id, character in characters.items()}, merges=[]))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    """What torch.save wrote, or a safetensors file; raises ValueError if neither, or if it would run code."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with open(path, "rb") as file:
        is_of_torch = file.read(2) == b"PK"  # a zip archive
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True) if is_of_torch else load_file(path)
    except (SafetensorError, RuntimeError) as error:
        problem = str(error)
    except Exception:  # UnpicklingError, from a module that no file of hfgen imports
        problem = "it holds other things, to read which would run code"
    raise ValueError(
        "state_dict_or_path must be a file that torch.save wrote, with nothing but tensors, numbers and text in it, "
        f"or a safetensors file, got {path}: {problem}. Save the state dict alone, where you trust the file: "
        'torch.save({"model": model.state_dict(), "model_args": model_args}, "ckpt.pt").'
    )


def _read_plain_pickle(path: Path) -> Any:
    """What a pickle of numbers, text and dictionaries holds. Whatever would import or call something is refused, so
    that this runs nothing.

    Raises:
        ValueError: there is anything else in the file.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "BININT" | "BININT1" | "BININT2" | "BINUNICODE" | "SHORT_BINUNICODE":
                    stack.append(argument)
                case "EMPTY_DICT":
                    stack.append({})
                case "MARK":
                    marks.append(len(stack))
                case "SETITEM" | "SETITEMS":
                    start = marks.pop() if opcode.name == "SETITEMS" else len(stack) - 2
                    items, stack = stack[start:], stack[:start]
                    stack[-1].update(zip(items[::2], items[1::2], strict=True))
                case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                    memo[len(memo) if argument is None else int(argument)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[int(argument or 0)])
                case "STOP":
                    return stack.pop()
                case _:
                    raise ValueError(f"it does {opcode.name}")
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        problem = str(error)
    raise ValueError(
        f"{path} must be a pickle of numbers, text and dictionaries alone, got something else: {problem}. Name the "
        "meta.pkl that nanoGPT's prepare.py wrote."
    )


def _take_over(model: Converted, source: PreTrainedModel, state_dict: Mapping[str, Tensor]) -> Converted:
    """Copies the weights to a new model, and everything about the source that is not in its config."""
    model.to(device=source.device, dtype=source.dtype)  # type: ignore[call-arg]  # an artifact of a wrapper
    model.load_state_dict(state_dict)
    model.set_attn_implementation(source.config._attn_implementation)
    model.generation_config = copy.deepcopy(source.generation_config)
    return model.train(source.training)


def _config_from_gpt2(config: "GPT2Config") -> GPTConfig:
    """The GPTConfig of a GPT2Config; raises a ValueError that names every setting it cannot express."""
    # reorder_and_upcast_attn is not among them: it only affects the precision of half-precision attention.
    required = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    problems = [
        f"{name} must be {expected}, got {getattr(config, name)}"
        for name, expected in required.items()
        if getattr(config, name) != expected
    ]
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


def _config_to_gpt2(config: GPTConfig) -> "GPT2Config":
    """The GPT2Config of a GPTConfig; raises a ValueError that names every field it cannot express."""
    from transformers import GPT2Config

    required = {
        "position_embedding": "learned",
        "norm_type": "layernorm",
        "mlp_type": "plain",
        "qk_norm": False,
        "use_bias": True,
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
    }
    problems = [
        f"{name} must be {expected!r}, got {getattr(config, name)!r}"
        for name, expected in required.items()
        if getattr(config, name) != expected
    ]
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


def _config_from_nanogpt(
    state_dict: Mapping[str, Tensor], arguments: Mapping[str, Any], num_attention_heads: int | None, hidden_act: str
) -> GPTConfig:
    """The GPTConfig implied by the shapes in a nanoGPT state dict and by the arguments in its checkpoint, if it has
    any; raises ValueError if the dict is not nanoGPT's."""
    needed = ("transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight")
    if missing := [name for name in needed if name not in state_dict]:
        raise ValueError(
            f"state_dict_or_path must have the names of nanoGPT, got a state dict without {', '.join(missing)}. Pass "
            "its ckpt.pt, or the state dict of its model."
        )
    embeddings, positions, wide = (state_dict[name] for name in needed)
    dropout = arguments.get("dropout", 0.0)
    return GPTConfig(
        vocab_size=embeddings.shape[0],
        hidden_size=embeddings.shape[1],
        intermediate_size=wide.shape[0],
        num_hidden_layers=1 + max(_layer_number(name) for name in state_dict),
        num_attention_heads=_heads_of_nanogpt(arguments, num_attention_heads),
        max_position_embeddings=positions.shape[0],
        hidden_act=hidden_act,
        norm_type="layernorm",
        norm_eps=1e-5,
        qk_norm=False,
        position_embedding="learned",
        use_bias="transformer.ln_f.bias" in state_dict,
        tie_word_embeddings=torch.equal(state_dict["lm_head.weight"], embeddings),
        attention_dropout=dropout,
        hidden_dropout=dropout,
        embedding_dropout=dropout,
    )


def _heads_of_nanogpt(arguments: Mapping[str, Any], given: int | None) -> int:
    stored = arguments.get("n_head")
    heads = stored if given is None else given
    if heads is None:
        raise ValueError(
            "num_attention_heads must be the model's n_head, got None, and there are no model_args that would tell. "
            "Look it up in the configuration of its training: nanoGPT's own models have 6 or 12."
        )
    if stored not in (None, heads):
        raise ValueError(f"num_attention_heads must be {stored}, the checkpoint's n_head, got {heads}. Leave it out.")
    return int(heads)


def _layer_number(name: str) -> int:
    """The layer of a GPT-2 weight; -1 outside of layers."""
    found = re.match(r"transformer\.h\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _split_state_dict(state_dict: Mapping[str, Tensor], conv1d: bool) -> dict[str, Tensor]:
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
        layer = _layer_number(name)
        pattern = re.sub(r"\.h\.\d+\.", ".h.{}.", module)
        targets = _SPLIT_ATTENTION if pattern == _FUSED_ATTENTION else (_MODULE_NAMES.get(pattern, module),)
        for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
            ours[f"{target.format(layer)}.{kind}"] = part
    return ours


def _fuse_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in our layout to transformers' GPT-2, Conv1D and fused attention (`_split_state_dict` undone)."""
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
