"""The classes of transformers that compute what a GPTForCausalLM computes, and the way there and back.

    native = to_native(model)                   # an ApertusForCausalLM, for hfgen's default shape
    native.save_pretrained("my-gpt")            # AutoModelForCausalLM.from_pretrained("my-gpt"): no custom code
    model = from_native("my-gpt")               # or the model itself, or a name on the Hub

Which class it is follows from the config:

| feed-forward | normalized queries and keys | positions, norm | class |
|---|---|---|---|
| plain | yes | rotary, RMSNorm, no biases | Apertus |
| plain | no | rotary, RMSNorm | Arcee |
| gated | yes | rotary, RMSNorm, no biases | Qwen3 |
| gated | no | rotary, RMSNorm | Llama |
| plain | no | learned, LayerNorm, biases | GPT-2 |

All but GPT-2 have this project's names of weights, except for two norms of Apertus, so a conversion copies them as
they are. What a class of transformers lacks and only training uses, the dropout of the embeddings and of the residual
stream, is lost on the way there (but not in GPT-2).
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..models.modeling_gpt import ROPE_TYPES, GPTConfig, GPTForCausalLM
from .gpt2 import config_from_gpt2, from_gpt2, obstacles_to_gpt2, to_gpt2, unmet
from .weights import take_over


# Fields that have one name and one meaning in GPTConfig and in the configs of all of transformers' rotary models here.
_SAME_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "hidden_act",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_dropout",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


@dataclass(frozen=True)
class Layout:
    """A rotary model of transformers and the GPTConfigs that it can express.

    Attributes:
        title: what people call it.
        model_type: of its config.
        mlp_type, qk_norm: what it fixes of a GPTConfig.
        bias_fields: fields of its config that together are `use_bias`; if it has none, there are no biases.
        bias_free_fields: fields of its config that must be False.
        divides_width: whether num_attention_heads must divide hidden_size.
        renamed: modules by our name and by its own.
    """

    title: str
    model_type: str
    mlp_type: str
    qk_norm: bool
    bias_fields: tuple[str, ...] = ()
    bias_free_fields: tuple[str, ...] = ()
    divides_width: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)

    def obstacles(self, config: GPTConfig) -> list[str]:
        """The fields of a config that this layout cannot express, each with what it must be and what it is."""
        required = {
            "position_embedding": "rotary",
            "norm_type": "rmsnorm",
            "mlp_type": self.mlp_type,
            "qk_norm": self.qk_norm,
            **({} if self.bias_fields else {"use_bias": False}),
        }
        problems = unmet(config, required)
        if self.divides_width and config.hidden_size % config.num_attention_heads:
            problems.append(
                f"num_attention_heads must divide hidden_size {config.hidden_size}, got {config.num_attention_heads}"
            )
        return problems

    def to_config(self, config: GPTConfig) -> PreTrainedConfig:
        """The config of transformers for one of ours without obstacles."""
        return AutoConfig.for_model(
            self.model_type,
            **{name: copy.deepcopy(getattr(config, name)) for name in _SAME_FIELDS},
            rms_norm_eps=float(config.norm_eps),
            initializer_range=float(config.initializer_range),
            **dict.fromkeys(self.bias_fields, config.use_bias),
        )

    def from_config(self, config: PreTrainedConfig) -> GPTConfig:
        """The inverse; raises ValueError if GPTConfig cannot express the config, naming every obstacle."""
        if problems := self._obstacles_here(config):
            raise ValueError(f"GPTConfig cannot express this {self.title}: " + "; ".join(problems) + ".")
        # Older configs of Apertus have no head_dim.
        fields: dict[str, Any] = {name: copy.deepcopy(getattr(config, name, None)) for name in _SAME_FIELDS}
        try:
            return GPTConfig(
                **fields,
                mlp_type=self.mlp_type,
                qk_norm=self.qk_norm,
                use_bias=any(getattr(config, name) for name in self.bias_fields),
                norm_eps=config.rms_norm_eps,
                initializer_range=config.initializer_range,
            )
        except StrictDataclassError as error:
            raise ValueError(f"GPTConfig cannot express this {self.title}: {error.__cause__ or error}") from None

    def _obstacles_here(self, config: PreTrainedConfig) -> list[str]:
        """What of a config of transformers GPTConfig cannot express."""
        problems = [f"{name} must be False, got True" for name in self.bias_free_fields if getattr(config, name)]
        if len({bool(getattr(config, name)) for name in self.bias_fields}) > 1:
            given = " and ".join(f"{name}={getattr(config, name)}" for name in self.bias_fields)
            problems.append(f"{' and '.join(self.bias_fields)} must be equal, got {given}")
        if kinds := {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}:
            problems.append(f"layer_types must all be 'full_attention', got {', '.join(sorted(kinds))}")
        rope_type = (config.rope_parameters or {}).get("rope_type", "default")
        if rope_type not in ROPE_TYPES:
            problems.append(f"rope_type must be one of {', '.join(ROPE_TYPES)}, got {rope_type!r}")
        return problems

    def names_there(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by the layout's names, given those by ours."""
        return {_renamed(name, self.renamed): tensor for name, tensor in state_dict.items()}

    def names_here(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `names_there`."""
        ours = {theirs: name for name, theirs in self.renamed.items()}
        return {_renamed(name, ours): tensor for name, tensor in state_dict.items()}


_BIASES = ("attention_bias", "mlp_bias")
LAYOUTS = (
    Layout("Apertus", "apertus", "plain", qk_norm=True, bias_free_fields=("attention_bias",),
           renamed={"input_layernorm": "attention_layernorm", "post_attention_layernorm": "feedforward_layernorm"}),
    Layout("Arcee", "arcee", "plain", qk_norm=False, bias_fields=_BIASES),
    Layout("Qwen3", "qwen3", "gated", qk_norm=True, bias_free_fields=("attention_bias",)),
    Layout("Llama", "llama", "gated", qk_norm=False, bias_fields=_BIASES, divides_width=True),
)  # fmt: skip
GPT2 = "gpt2"
NATIVE_TYPES = (*(layout.model_type for layout in LAYOUTS), GPT2)


def to_native(model: GPTForCausalLM) -> PreTrainedModel:
    """The model of transformers itself that computes the same logits; the inverse of `from_native`.

    Returns:
        A new model with copies of the weights; dtype, device, mode and generation config are those of the original.

    Raises:
        ValueError: no class of transformers can express the model; names, for each, the fields that stand in its way.
    """
    layout = find_layout(model.config)
    if layout is None:
        return to_gpt2(model)
    native = AutoModelForCausalLM.from_config(layout.to_config(model.config))
    return take_over(native, model, layout.names_there(model.state_dict()))


def from_native(model_or_name: PreTrainedModel | str | os.PathLike[str]) -> GPTForCausalLM:
    """The GPTForCausalLM that computes the same logits as an Apertus, Arcee, GPT-2, Llama or Qwen3.

    Args:
        model_or_name: the model with its output layer, or what `AutoModelForCausalLM.from_pretrained` takes: a folder
            or a Hub id. No code that comes with it is run.

    Returns:
        A new model with copies of the weights; dtype, device, mode and generation config are those of the original.

    Raises:
        ValueError: it is another model, or has settings that GPTConfig cannot express; names every one.
    """
    from transformers import GPT2LMHeadModel

    source = model_or_name
    if not isinstance(source, PreTrainedModel):
        source = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False)
    if isinstance(source, GPT2LMHeadModel):
        return from_gpt2(source)
    model_type = source.config.model_type
    layout = next((layout for layout in LAYOUTS if layout.model_type == model_type), None)
    if layout is None or "lm_head.weight" not in source.state_dict():
        raise ValueError(
            f"model_or_name must be a causal language model of a type among {', '.join(NATIVE_TYPES)}, got a "
            f"{type(source).__name__} of type {model_type!r}. Others compute what GPTForCausalLM does not."
        )
    model = GPTForCausalLM(layout.from_config(source.config))
    return take_over(model, source, layout.names_here(source.state_dict()))


def find_layout(config: GPTConfig) -> Layout | None:
    """The layout that expresses a config; None stands for GPT-2.

    Raises:
        ValueError: none does.
    """
    obstacles = {layout.title: layout.obstacles(config) for layout in LAYOUTS} | {"GPT-2": obstacles_to_gpt2(config)}
    fitting = [title for title, problems in obstacles.items() if not problems]
    if fitting:
        return next((layout for layout in LAYOUTS if layout.title in fitting), None)
    fewest = min(map(len, obstacles.values()))
    nearest = [f"For {title}, {'; '.join(problems)}." for title, problems in obstacles.items()
               if len(problems) <= fewest + 1]  # fmt: skip
    raise ValueError(f"No class of transformers can express this model. {' '.join(nearest)}")


def config_from_native(config: PreTrainedConfig) -> GPTConfig:
    """Ours for a config of `NATIVE_TYPES`; raises ValueError if there is none."""
    if config.model_type == GPT2:
        gpt2_config: Any = config
        return config_from_gpt2(gpt2_config)
    layout = next(layout for layout in LAYOUTS if layout.model_type == config.model_type)
    return layout.from_config(config)


def config_in_words_of_hfgen(config: dict[str, Any]) -> dict[str, Any]:
    """The config.json that hfgen's own layout would have, for one of `NATIVE_TYPES`."""
    return config_from_native(AutoConfig.for_model(**config)).to_dict()


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    return ".".join(modules.get(part, part) for part in name.split("."))
