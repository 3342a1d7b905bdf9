"""Fast `generate` for a GPT: transformers' own loop over tokens for the common case, around a faster step.

`generate` of transformers looks for `_sample`, the loop that draws token after token, in the class of the model. The
one here does the same in the same order: logits processors, softmax, draw, stopping criteria, streamer. What differs
is how logits come about after the prompt: by `GPTStep`. Whatever that was not written for is left to transformers'
loop, such as other devices, half precision, adapters, hooks, other caches, or scores that are to be returned.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache
from transformers.generation.stopping_criteria import MaxLengthCriteria

from .cache_name import CACHE
from .gpt_layers import GPTMLP, GPTAttention, GPTDecoderLayer, GPTRMSNorm, GPTRotaryEmbedding


KNOWN_MODULES = (
    GPTAttention,
    GPTDecoderLayer,
    GPTMLP,
    GPTRMSNorm,
    GPTRotaryEmbedding,
    nn.Dropout,
    nn.Embedding,
    nn.Identity,
    nn.LayerNorm,
    nn.Linear,
    nn.ModuleList,
)
METHODS = ("forward", "__call__", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
KNOWN_INPUTS = {CACHE, "attention_mask", "position_ids", "use_cache", "logits_to_keep"}


class GPTGenerationMixin:
    """Stands before transformers' GenerationMixin among the bases of a GPT, and makes its `generate` fast.

    Attributes:
        step_class: what computes logits after the prompt; its arguments are those of `GPTStep`.
        step_modules: classes of the modules inside the model that its own file defines.
    """

    step_class: Any = None
    step_modules: tuple[type[nn.Module], ...] = ()

    def _sample(
        self: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """The loop over tokens; arguments and result are those of transformers' GenerationMixin._sample."""
        is_common = not synced_gpus and has_common_settings(generation_config, input_ids, model_kwargs)
        if is_common and is_as_written(self):
            inputs = {name: value for name, value in model_kwargs.items() if value is not None}
            return _sample_in_steps(
                self, input_ids, inputs, logits_processor, stopping_criteria, generation_config, streamer
            )
        return super()._sample(  # type: ignore[misc]
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus=synced_gpus,
            streamer=streamer,
            **model_kwargs,
        )


def _sample_in_steps(
    model: Any,
    input_ids: Tensor,
    inputs: dict[str, Any],
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    streamer: Any,
) -> Tensor:
    """(batch, length), the prompts -> (batch, length + new tokens); `inputs` go with them to the forward pass."""
    has_end = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    ask_from, most = _lengths_to_ask_at(stopping_criteria)
    unfinished = torch.ones(len(input_ids), dtype=torch.long)
    step = None
    logits = model(input_ids, **inputs, return_dict=True).logits[:, -1]
    while True:
        # A copy, because processors may change it in place, which is forbidden for a tensor from inference mode.
        scores = logits_processor(input_ids, logits.to(copy=True, dtype=torch.float32))
        if generation_config.do_sample:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(dim=-1)
        if has_end:
            tokens = tokens * unfinished + generation_config._pad_token_tensor * (1 - unfinished)
        input_ids = torch.cat((input_ids, tokens[:, None]), dim=-1)
        if streamer is not None:
            streamer.put(tokens)
        if input_ids.shape[1] >= ask_from:
            unfinished = unfinished & ~stopping_criteria(input_ids, None)
            if not unfinished.any():
                break
        if step is None:  # only now, because a single token needs none
            step = _step_after(model, **inputs, steps=most - input_ids.shape[1])
        logits = step(tokens)
    if streamer is not None:
        streamer.end()
    return input_ids


def _lengths_to_ask_at(stopping_criteria: Any) -> tuple[int, float]:
    """The length of texts below which no criterion can end one, and the length that none exceeds."""
    limits = [c.max_length for c in stopping_criteria if type(c) is MaxLengthCriteria]
    most = min(limits, default=math.inf)
    return (int(most) if 0 < len(limits) == len(stopping_criteria) else 0), most


def _step_after(
    model: Any,
    steps: float,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **inputs: Any,
) -> Any:
    """What continues from the prompt, of which these were the inputs, by as many steps at most."""
    cache = inputs[CACHE]
    following = torch.tensor([cache.get_seq_length()]) if position_ids is None else position_ids[:, -1] + 1
    return model.step_class(model, cache, attention_mask, following, steps)


def has_common_settings(generation_config: Any, input_ids: Tensor, model_kwargs: dict[str, Any]) -> bool:
    """Whether a call asks for tokens alone, and starts from ids and an empty cache of its own."""
    inputs = {name: value for name, value in model_kwargs.items() if value is not None}
    mask, positions, cache = (inputs.get(name) for name in ("attention_mask", "position_ids", CACHE))
    length = input_ids.shape[1]
    return (
        inputs.keys() <= KNOWN_INPUTS
        and not generation_config.return_dict_in_generate
        and not generation_config.is_assistant
        and generation_config.prefill_chunk_size is None
        and generation_config.compile_config is None
        and input_ids.device.type == "cpu"
        and length > 0
        and (mask is None or mask.shape == input_ids.shape)
        and (positions is None or positions.shape in ((1, length), input_ids.shape))
        and inputs.get("use_cache", False)
        and type(cache) is DynamicCache
        and not cache.offloading
        and not getattr(cache, "_is_user_defined", False)  # its owner expects to find all keys and values in it
        and cache.get_seq_length() == 0
    )


def is_as_written(model: Any) -> bool:
    """Whether a GPT computes on a CPU what its own files say: no adapter, quantized layer, hook, replaced method or
    dropout, and no precision in which rounding decides about tokens."""
    owner: Any = next(cls for cls in type(model).__mro__ if GPTGenerationMixin in cls.__bases__)
    known = {*owner.step_modules, type(ACT2FN[model.config.hidden_act]), *KNOWN_MODULES}
    head, *inner = model.modules()
    parameters = list(model.parameters())
    return (
        all(getattr(type(head), name) is getattr(owner, name) and name not in vars(head) for name in METHODS)
        and all(type(module) in known for module in inner)
        and not any(_is_changed(module) for module in (head, *inner))
        and all(type(p) is nn.Parameter and p.device.type == "cpu" for p in parameters)
        and {p.dtype for p in parameters} in ({torch.float32}, {torch.float64})
        and model.config._attn_implementation in ("sdpa", "eager")
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _is_changed(module: nn.Module) -> bool:
    """Whether a module does more than its class says, or something else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return module.training or any(hooks) or "forward" in vars(module) or module._compiled_call_impl is not None
