"""GPT: a decoder-only transformer that reads tokens and predicts the next one.

    config = GPTConfig(vocab_size=65, max_position_embeddings=256)
    model = GPTForCausalLM(config)
    loss = model(input_ids, labels=input_ids).loss          # nats per token; the shift by one happens inside
    text = model.sample(tokenizer, "Once", max_new_tokens=1000)     # of any length
    output = model.generate(input_ids, max_new_tokens=100)  # ids: sampling, beam search, ... of transformers

The defaults are the modern recipe: rotary positions, RMSNorm before each block, normalized queries and keys, squared
ReLU, no biases. Other settings of the same fields give GPT-2 (learned positions, LayerNorm, biases, GELU, tied
embeddings) or Llama's architecture (gated SiLU, fewer key/value heads).

The configuration and the model are here. The layers are in gpt_layers.py, `sample` is in text_sampling.py, and what
makes `generate` fast is in gpt_generation.py and gpt_step.py. All of them travel to the Hub with the weights, so they
need only torch and transformers.

Sources: the transformer, https://arxiv.org/abs/1706.03762; GPT-2, "Language Models are Unsupervised Multitask
Learners" (Radford et al., 2019); rotary positions, https://arxiv.org/abs/2104.09864; RMSNorm,
https://arxiv.org/abs/1910.07467; query-key normalization, https://arxiv.org/abs/2010.04245; squared ReLU,
https://arxiv.org/abs/2109.08668; gated feed-forward, https://arxiv.org/abs/2002.05202; grouped key/value heads,
https://arxiv.org/abs/2305.13245.
"""

import math
import os
from typing import TYPE_CHECKING, Any

import torch
import transformers


# Without this, an older transformers would complain about some name that is imported below.
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18):
    raise ImportError(
        f"This model needs transformers 5.18 or newer, found {transformers.__version__}. "
        'Run: pip install --upgrade "transformers>=5.18,<6"'
    )

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .cache_name import CACHE, either_cache, named_cache
from .gpt_generation import GPTGenerationMixin
from .gpt_layers import GPTAttention, GPTDecoderLayer, GPTRMSNorm, GPTRotaryEmbedding, build_norm, compute_dtype
from .gpt_step import GPTStep
from .text_sampling import TextSamplingMixin


MLP_TYPES = ("plain", "gated")
NORM_TYPES = ("rmsnorm", "layernorm")
POSITION_EMBEDDINGS = ("rotary", "learned")
# Other types that transformers has ("dynamic", "longrope") change their frequencies with the length of the input.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

if TYPE_CHECKING:
    FilledIn = Any  # a size that may be None on input, and is always a number afterwards
else:
    FilledIn = int | None


def _as_in_json(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's, and tuples as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_as_in_json(element) for element in value]
    if isinstance(value, dict):
        return {key: _as_in_json(element) for key, element in value.items()}
    return value


def _takes_values_of_numpy(config_class: type["GPTConfig"]) -> type["GPTConfig"]:
    """A decorator on top of @strict, which would refuse such values before any method of the class sees them."""
    set_checked = config_class.__setattr__

    def __setattr__(self: "GPTConfig", name: str, value: Any) -> None:
        set_checked(self, name, _as_in_json(value) if name in self.__dataclass_fields__ else value)

    config_class.__setattr__ = __setattr__  # type: ignore[method-assign, assignment]
    return config_class


@_takes_values_of_numpy
@strict
class GPTConfig(PreTrainedConfig):
    """The shape of a GPT. A field left at None is filled in from the others. Numbers of numpy and tuples are fine.

    Args:
        vocab_size: number of tokens that the model knows.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward layer. None: 4 * hidden_size for a plain one, 8/3 * hidden_size
            rounded up to a multiple of 32 for a gated one, which has about as many weights.
        num_hidden_layers: number of transformer blocks.
        num_attention_heads: number of attention heads.
        num_key_value_heads: number of heads of keys and values, each shared by a group of query heads. None:
            num_attention_heads.
        head_dim: width of a head. None: hidden_size / num_attention_heads.
        max_position_embeddings: longest sequence, in tokens, that the model is built for. Learned positions end
            there, and a longer input raises ValueError; rotary ones continue past it, with falling quality.
        hidden_act: activation of the feed-forward layer, by its name in transformers ("relu2" is squared ReLU).
        mlp_type: "plain", down(act(up(x))), or "gated", down(act(gate(x)) * up(x)).
        norm_type: "rmsnorm" or "layernorm".
        norm_eps: number added to the variance inside each norm.
        qk_norm: normalize queries and keys over the width of a head before attention.
        position_embedding: "rotary" (relative) or "learned" (absolute, as GPT-2).
        rope_parameters: parameters of rotary positions, {"rope_type": ..., "rope_theta": ...} as everywhere in
            transformers 5; a plain `rope_theta=10000.0` works too. None: the default type.
        use_bias: biases in all linear layers of the blocks and in LayerNorm.
        tie_word_embeddings: use the token embedding as the output layer, too.
        attention_dropout: dropout probability on attention weights.
        hidden_dropout: dropout probability on what a block adds to the residual stream.
        embedding_dropout: dropout probability on the embeddings.
        initializer_range: standard deviation of the initial weights.
        use_cache: return the key/value cache in evaluation mode. In training mode it is returned only on request.
        bos_token_id: token that starts a text.
        eos_token_id: token or tokens that end a text.
        pad_token_id: token that pads the shorter texts of a batch.

    Raises:
        ValueError: a value is out of range; names every such field.
    """

    model_type = "hfgen_gpt"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 256
    hidden_size: int = 256
    intermediate_size: FilledIn = None
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: FilledIn = None
    head_dim: FilledIn = None
    max_position_embeddings: int = 256
    hidden_act: str = "relu2"
    mlp_type: str = "plain"
    norm_type: str = "rmsnorm"
    norm_eps: float | int = 1e-6
    qk_norm: bool = True
    position_embedding: str = "rotary"
    rope_parameters: dict | None = None
    use_bias: bool = False
    tie_word_embeddings: bool = False
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    initializer_range: float | int = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = _default_intermediate_size(self.hidden_size, self.mlp_type)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**_as_in_json(kwargs))  # merges rope_theta into rope_parameters
        if self.position_embedding == "learned":
            self.rope_parameters = None
        self.base_model_tp_plan = self._tensor_parallel_plan()  # type: ignore[misc]
        # @strict calls the validators as well, but wraps their ValueError in an error that is not a ValueError.
        self.validate_architecture()

    def _tensor_parallel_plan(self) -> dict[str, str]:
        """The class's plan without the layers this configuration lacks, about which transformers would warn."""
        absent = ["gate_proj"] if self.mlp_type == "plain" else []
        absent += [] if self.qk_norm else ["q_norm", "k_norm"]
        return {k: v for k, v in type(self).base_model_tp_plan.items() if k.rpartition(".")[2] not in absent}

    def validate_architecture(self) -> None:
        """Raises a ValueError that lists all problems at once."""
        problems = [
            *self._sizes_that_are_not_positive(),
            *self._unknown_choices(),
            *self._probabilities_out_of_range(),
            *self._heads_that_do_not_fit(),
        ]
        if problems:
            raise ValueError("GPTConfig: " + "; ".join(problems) + ".")

    def _sizes_that_are_not_positive(self) -> list[str]:
        names = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "norm_eps",
        )
        values = {name: getattr(self, name) for name in names}
        return [
            f"{name} must be above 0, got {value}"
            for name, value in values.items()
            if not (value is None or value > 0)
        ]

    def _unknown_choices(self) -> list[str]:
        choices: dict[str, tuple[str, ...]] = {
            "mlp_type": MLP_TYPES,
            "norm_type": NORM_TYPES,
            "position_embedding": POSITION_EMBEDDINGS,
            "hidden_act": tuple(ACT2FN),
        }
        problems = [
            f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
            for name, known in choices.items()
            if getattr(self, name) not in known
        ]
        rope = self.rope_parameters or {}
        if rope.get("rope_type", "default") not in ROPE_TYPES:
            problems.append(
                f"rope_type in rope_parameters must be one of {', '.join(ROPE_TYPES)}, got {rope['rope_type']!r}"
            )
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            factor = rope["partial_rotary_factor"]
            problems.append(f"partial_rotary_factor in rope_parameters must be 1 (all of a head turns), got {factor}")
        return problems

    def _probabilities_out_of_range(self) -> list[str]:
        names = ("attention_dropout", "hidden_dropout", "embedding_dropout", "initializer_range")
        wrong = {name: getattr(self, name) for name in names if not 0 <= getattr(self, name) < 1}
        return [f"{name} must be at least 0 and below 1, got {value}" for name, value in wrong.items()]

    def _heads_that_do_not_fit(self) -> list[str]:
        heads, key_value_heads, head_dim = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        if min(heads, key_value_heads or 0, head_dim or 0) <= 0:
            return []  # reported among the sizes
        problems = []
        width = self.hidden_size
        if head_dim == width // heads and width % heads:
            problems.append(f"num_attention_heads must divide hidden_size {width}, got {heads}")
        if heads % key_value_heads:
            problems.append(f"num_key_value_heads must divide num_attention_heads {heads}, got {key_value_heads}")
        if self.position_embedding == "rotary" and head_dim % 2:
            problems.append(f"head_dim must be even for rotary positions, got {head_dim}")
        return problems

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves as transformers does, and names this file's classes in `auto_map`, so that AutoConfig, AutoModel and
        AutoModelForCausalLM all load the folder with `trust_remote_code=True`."""
        # save_pretrained records only the saved class in auto_map; add the others.
        self.auto_map = {**_auto_map_of_this_file(), **(getattr(self, "auto_map", None) or {})}
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def _auto_map_of_this_file() -> dict[str, str]:
    """The class of this file that each Auto class of transformers loads."""
    file_name = __name__.rpartition(".")[2]
    return {
        "AutoConfig": f"{file_name}.GPTConfig",
        "AutoModel": f"{file_name}.GPTModel",
        "AutoModelForCausalLM": f"{file_name}.GPTForCausalLM",
    }


def _default_intermediate_size(hidden_size: int, mlp_type: str) -> int:
    """Three matrices of 8/3 times the width (gated) hold as many weights as two of 4 times the width (plain)."""
    if mlp_type == "gated":
        return 32 * math.ceil(8 * hidden_size / 3 / 32)
    return 4 * hidden_size


# ------------------------------------------------------------------------------------------------------------ model


class GPTPreTrainedModel(PreTrainedModel):
    """What both models share: initial weights, and what transformers may do with the modules."""

    config_class = GPTConfig
    config: GPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPTDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GPTDecoderLayer, "attentions": GPTAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights. Those of the 2L layers of L blocks that add up in the residual stream are smaller, so that
        it keeps its scale at any depth (GPT-2, section 2.3). `init` skips weights that were loaded."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            if getattr(module, "adds_to_residual", False):
                std = std / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, (nn.LayerNorm, GPTRMSNorm)):
            init.ones_(module.weight)
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            init.zeros_(bias)


class GPTModel(GPTPreTrainedModel):
    """Token ids in, hidden states out: the transformer without its output layer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.rotary_emb = GPTRotaryEmbedding(config)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList([GPTDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = build_norm(config, config.hidden_size)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the transformer.

        Args:
            input_ids: (batch, length), token ids.
            attention_mask: (batch, past + length), 1 for a token and 0 for padding, or a mask of four dimensions in
                the form of the attention backend. None: no padding.
            position_ids: (batch or 1, length). None: counted from the end of the cache, padding included, as
                everywhere in transformers; `generate` passes positions without padding, which matters if learned.
            past_key_values, cache: two names of the cache of earlier keys and values; this call appends its own.
            inputs_embeds: (batch, length, hidden_size), in place of input_ids.
            use_cache: return the cache. None: `config.use_cache` in evaluation mode; False in training mode, and in
                torch.export, which knows no caches.
            output_hidden_states, output_attentions: return those of every layer (attentions: eager attention only).

        Returns:
            last_hidden_state (batch, length, hidden_size), the cache (named cache since transformers 5.24, before
            that past_key_values) and, on request, hidden_states and attentions.

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds, a position past the last learned one, or a
                cache under both names.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Exactly one of input_ids and inputs_embeds must be given, got both or neither.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not torch.compiler.is_exporting()
        cache = either_cache(cache, past_key_values)
        if self.training and any(layer.gradient_checkpointing for layer in self.layers):
            use_cache, cache = False, None  # the second pass through a layer would add its keys and values again
        elif use_cache and cache is None:
            cache = DynamicCache(config=self.config)

        mask = self._attention_mask(inputs_embeds, attention_mask, position_ids, cache)
        if position_ids is None:
            past_length = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + past_length

        position_embeddings = None
        if self.config.position_embedding == "learned":
            inputs_embeds = inputs_embeds + self.learned_positions(position_ids)
        else:
            position_embeddings = self.rotary_emb(position_ids, dtype=compute_dtype(inputs_embeds))

        hidden_states = self.dropout(inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                cache=cache,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), **named_cache(cache if use_cache else None)
        )

    def _attention_mask(
        self, embeds: Tensor, attention_mask: Any, position_ids: Tensor | None, cache: Cache | None
    ) -> Any:
        """The mask in the form of the attention backend; None if the backend needs none for causal attention."""
        is_plain = attention_mask is None and position_ids is None and cache is None
        if is_plain and self.config._attn_implementation == "sdpa":
            # create_causal_mask returns None too, except under torch.compile: there it builds a mask, with which sdpa
            # is slower.
            return None
        return create_causal_mask(
            config=self.config,
            inputs_embeds=embeds[..., :0].to(compute_dtype(embeds)),  # only dtype, device and length matter
            attention_mask=None if embeds.is_meta else attention_mask,  # its values are looked at, and meta has none
            position_ids=position_ids,
            **named_cache(cache),
        )

    def learned_positions(self, position_ids: Tensor) -> Tensor:
        """(batch or 1, length) -> (batch or 1, length, hidden_size)."""
        known = self.config.max_position_embeddings
        # On a GPU an index out of range kills the process, so this check is worth a host sync.
        has_values = not (torch.compiler.is_compiling() or position_ids.is_meta)
        if has_values and (last := int(position_ids.max())) >= known:
            raise ValueError(
                f"position_ids must be below {known}, the number of learned positions "
                f"(config.max_position_embeddings), got {last}. Shorten the input, generate fewer tokens, or train "
                'a model with position_embedding="rotary", which has no such limit.'
            )
        return self.embed_positions(position_ids)


class GPTForCausalLM(GPTPreTrainedModel, TextSamplingMixin, GPTGenerationMixin, GenerationMixin):
    """GPT with its output layer: predicts the next token, and writes text with `sample` or `generate`.

    To train in bfloat16 on a CPU, pass `attn_implementation="eager"`: torch's sdpa is slow there in the backward pass
    (at a length of 64 it takes four times as long as eager attention, a third of the whole step).
    """

    step_class = GPTStep
    step_modules = (GPTModel,)
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.model = GPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predicts, at every position, the token that comes next. The arguments of `GPTModel.forward`, and:

        Args:
            labels: (batch, length), the token ids themselves (the shift by one happens inside), -100 for tokens to
                ignore. Gives the loss: cross-entropy in nats, averaged over the tokens that count, or their sum
                divided by `num_items_in_batch` if that is passed, for gradient accumulation.
            logits_to_keep: number of positions at the end to compute logits for (0: all), or their indices.

        Returns:
            loss (with labels), logits (batch, positions kept, vocab_size), the cache (as `GPTModel.forward`) and, on
            request, hidden_states and attentions.

        Raises:
            ValueError: as `GPTModel.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=either_cache(cache, past_key_values),
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **named_cache(getattr(outputs, CACHE)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# With these, save_pretrained and push_to_hub copy the file of a class next to the weights: this one, even if it was
# itself loaded from the Hub, or that of a subclass.
GPTConfig.register_for_auto_class("AutoConfig")
GPTModel.register_for_auto_class("AutoModel")
GPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["GPTConfig", "GPTForCausalLM", "GPTModel", "GPTPreTrainedModel"]
