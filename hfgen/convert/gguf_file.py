"""A GPT as one GGUF file, for llama.cpp, Ollama, LM Studio and whatever else is built on llama.cpp.

    write_gguf("my-gpt", "my-gpt.gguf")         # hfgen convert my-gpt my-gpt.gguf;  pip install 'hfgen[gguf]'

    llama-completion -m my-gpt.gguf -p "The " -n 200
    ollama create my-gpt -f Modelfile           # a Modelfile of one line: FROM ./my-gpt.gguf

The architecture is that of the native layout (`native.py`), and llama.cpp has fewer settings of it than transformers:

| layout | activation | in llama.cpp |
|---|---|---|
| Apertus | relu2 | xIELU (https://arxiv.org/abs/2411.13010) with the constants that make it a squared ReLU |
| Apertus | xielu | xIELU with the model's own constants |
| Arcee | relu2 | the same |
| Qwen3, Llama | silu | the same |
| GPT-2 | gelu_new | the same |

Weights keep their precision (float32, float16 or bfloat16), vectors become float32; `llama-quantize` makes the file
smaller. `gguf_tokenizer.py` has what becomes of the tokenizer. The file is read back and compared before it appears.
"""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..models.modeling_gpt import GPTConfig, GPTForCausalLM
from .folders import load_gpt
from .gguf_tokenizer import add_tokenizer
from .native import GPT2, find_layout


if TYPE_CHECKING:
    from gguf import GGUFWriter

# Modules from our names to those of llama.cpp. The {} stands for the layer's number.
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.embed_positions": "position_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
    "model.layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "model.layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "model.layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "model.layers.{}.self_attn.o_proj": "blk.{}.attn_output",
    "model.layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
    "model.layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
    "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
    "model.layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "model.layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "model.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
}
_ACTIVATIONS = {
    "apertus": ("relu2", "xielu"),
    "arcee": ("relu2",),
    "qwen3": ("silu", "swish"),
    "llama": ("silu", "swish"),
    GPT2: ("gelu_new", "gelu_pytorch_tanh"),
}
# Architectures whose rotary positions turn neighbors, not halves of a head: queries and keys are rearranged for them.
_TURN_NEIGHBORS = ("llama", "arcee")
_XIELU = ("alpha_p", "alpha_n", "beta", "eps")
# alpha_p and alpha_n go through a softplus: 1 and 0 come out, so that x² is left above 0 and nothing below.
_SQUARED_RELU = {"alpha_p": math.log(math.expm1(1)), "alpha_n": -100.0, "beta": 0.0, "eps": -1e-6}


def write_gguf(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> str:
    """Writes the model and the tokenizer of a folder as a GGUF file, which appears only once it is whole.

    Args:
        folder: of a GPT in any of the layouts, with its tokenizer. No code in it is run.
        target: the new file.

    Returns:
        The architecture that llama.cpp runs it with.

    Raises:
        ValueError: llama.cpp cannot express the model or the tokenizer (names what stands in the way), the target
            exists, or the package `gguf` is missing.
    """
    folder, target = Path(folder), Path(target)
    if target.exists() or not target.resolve().parent.is_dir():
        raise ValueError(f"OUT must be a new file in a folder that exists, got {str(target)!r}. Name another one.")
    try:
        import gguf
    except ImportError:
        raise ValueError("GGUF files need gguf, which is not installed. Run: pip install 'hfgen[gguf]'") from None
    from transformers import AutoTokenizer

    model = load_gpt(folder)
    architecture = find_architecture(model.config)
    temporary = target.with_name(f".{target.name}.part")
    try:
        writer = gguf.GGUFWriter(temporary, architecture)
        _add_settings(writer, model, folder.resolve().name)
        if architecture == "apertus":
            _add_xielu(writer, model)
        add_tokenizer(writer, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), model.config.vocab_size)
        tensors = gguf_tensors(model, architecture)
        for name, tensor in tensors.items():
            kind = _kind(gguf, tensor)
            writer.add_tensor(name, gguf.quants.quantize(_as_float32(tensor), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _compare(read_tensors(temporary), tensors)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return architecture


def find_architecture(config: GPTConfig) -> str:
    """The architecture of llama.cpp that computes what a model of this config computes.

    Raises:
        ValueError: there is none; names every field that stands in its way.
    """
    layout = find_layout(config)
    architecture = GPT2 if layout is None else layout.model_type
    known = _ACTIVATIONS[architecture]
    problems = []
    if config.hidden_act not in known:
        problems.append(f"hidden_act must be one of {', '.join(known)}, got {config.hidden_act!r}")
    if config.use_bias and architecture != GPT2:
        problems.append("use_bias must be False, got True")
    if (rope_type := (config.rope_parameters or {}).get("rope_type", "default")) != "default":
        problems.append(f"rope_type in rope_parameters must be 'default', got {rope_type!r}")
    if problems:
        raise ValueError(
            f"The architecture {architecture} of llama.cpp cannot express this model: {'; '.join(problems)}. For "
            "published models of other settings, use llama.cpp's own converter on a native folder."
        )
    return architecture


def gguf_tensors(model: GPTForCausalLM, architecture: str) -> dict[str, Tensor]:
    """The weights of a model by llama.cpp's names and in its order of rows. An output layer that is tied to the
    embedding is left out."""
    config, weights = model.config, dict(model.state_dict())
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    found = {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        if module.endswith(".act_fn"):
            continue  # among the settings
        number = next((part for part in module.split(".") if part.isdecimal()), "")
        pattern = module.replace(f".{number}.", ".{}.") if number else module
        if architecture in _TURN_NEIGHBORS and pattern.endswith(("q_proj", "k_proj")):
            tensor = _neighbors(tensor, config.head_dim)
        found[f"{_NAMES[pattern].format(number)}.{kind}"] = tensor.detach()
    return _fused(found, config.num_hidden_layers) if architecture == GPT2 else found


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a GGUF file in float32, by their names there, in the shapes that torch has."""
    import gguf

    return {
        tensor.name: torch.from_numpy(
            np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        ).reshape(*reversed(tensor.shape.tolist()))
        for tensor in gguf.GGUFReader(path).tensors
    }


def _neighbors(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of a head in the order 0, d/2, 1, d/2 + 1, ...: what was turned as halves is then turned as neighbors."""
    return weight.reshape(-1, 2, head_dim // 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def _fused(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """With queries, keys and values as one layer, which GPT-2 has."""
    for layer in range(num_layers):
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"blk.{layer}.attn_{part}.{kind}") for part in "qkv"]
            tensors[f"blk.{layer}.attn_qkv.{kind}"] = torch.cat(parts)
    return tensors


def _add_settings(writer: "GGUFWriter", model: GPTForCausalLM, name: str) -> None:
    config, generation = model.config, model.generation_config
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type({torch.float16: 1, torch.bfloat16: 32}.get(model.dtype, 0))
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    if config.norm_type == "layernorm":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.rope_parameters is not None:
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if generation.temperature is not None or not generation.do_sample:
        writer.add_sampling_temp(float(generation.temperature or 0) if generation.do_sample else 0.0)


def _add_xielu(writer: "GGUFWriter", model: GPTForCausalLM) -> None:
    """The constants of the activation, of every layer."""
    weights = model.state_dict()
    for name in _XIELU:
        values = [
            float(weights.get(f"model.layers.{layer}.mlp.act_fn.{name}", torch.tensor(_SQUARED_RELU[name])))
            for layer in range(model.config.num_hidden_layers)
        ]
        getattr(writer, f"add_xielu_{name}")(values)


def _kind(gguf: Any, tensor: Tensor) -> Any:
    """How a tensor is stored."""
    types = gguf.GGMLQuantizationType
    if tensor.ndim < 2:
        return types.F32
    return {torch.float16: types.F16, torch.bfloat16: types.BF16}.get(tensor.dtype, types.F32)


def _as_float32(tensor: Tensor) -> np.ndarray:
    return tensor.to("cpu", torch.float32).contiguous().numpy()


def _compare(written: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Raises OSError unless a file holds these tensors, each bit of them."""
    wrong = [name for name in {*written, *tensors} if name not in written or name not in tensors
             or not torch.equal(written[name], tensors[name].to("cpu", torch.float32))]  # fmt: skip
    if wrong:
        raise OSError(f"The file that was written holds other values of {', '.join(sorted(wrong)[:5])}. Try again.")
