"""Models and tokenizers of karpathy/nanoGPT to hfgen's.

    model = from_nanogpt("ckpt.pt")
    tokenizer = tokenizer_from_nanogpt("meta.pkl")  # of the data of a nanoGPT that reads characters

No code in a file is run: of a pickle, which nanoGPT writes, only tensors, numbers, text and collections of them are
read.
"""

import os
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.modeling_gpt import GPTConfig, GPTForCausalLM
from .gpt2 import layer_number, split_state_dict


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
    model.load_state_dict(split_state_dict(state_dict, conv1d=False))
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
        num_hidden_layers=1 + max(layer_number(name) for name in state_dict),
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
