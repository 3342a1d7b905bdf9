"""GPT: analytic answers where there are any, and transformers' Llama and Qwen3, which share its layers, elsewhere.

tests/test_convert.py compares it with GPT-2.
"""

import importlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    pipeline,
)

from hfgen.model_folder import code_files
from hfgen.models import gpt_layers, modeling_gpt
from hfgen.models.modeling_gpt import CACHE, GPTConfig, GPTForCausalLM, GPTModel

from .tiny_gpt import (
    GPT2_SHAPE,
    LLAMA_SHAPE,
    SHAPES,
    left_padded,
    positions_without_padding,
    random_tokens,
    tiny_config,
    tiny_model,
)


# ---------------------------------------------------------------------------------------------------------- layers


def test_a_model_in_double_precision_rounds_nothing_to_single() -> None:
    """Compression counts on logits that machines agree about to the last digits of float64."""
    model = GPTForCausalLM(tiny_config(rope_theta=100.0)).eval().double()
    tokens = torch.arange(12)[None] % model.config.vocab_size
    at_once = model(tokens).logits
    cache, logits = None, []
    for token in tokens[0]:
        output = model.model(token.view(1, 1), cache=cache, use_cache=True)
        cache = getattr(output, CACHE)
        logits.append(model.lm_head(output.last_hidden_state))
    assert float((torch.cat(logits, dim=1) - at_once).abs().max()) < 1e-13

    x, position = torch.randn(4, 16, dtype=torch.float64), 11
    exact = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(gpt_layers.GPTRMSNorm(16, eps=1e-3).double()(x), exact, rtol=1e-14, atol=1e-14)
    rotary = gpt_layers.GPTRotaryEmbedding(tiny_config(hidden_size=16, rope_theta=100.0))
    cos, _ = rotary(torch.tensor([[position]]), torch.float64)
    assert cos.flatten()[:2].tolist() == pytest.approx([math.cos(position), math.cos(position * 0.1)], rel=1e-14)


# ------------------------------------------------------------------------------------------- reference implementations


@pytest.mark.parametrize(
    "rope_parameters",
    [
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 24},
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 24,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_logits_equal_those_of_llama(rope_parameters: dict[str, object]) -> None:
    model = tiny_model(**LLAMA_SHAPE, rope_parameters=dict(rope_parameters))
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=model.config.intermediate_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=48,
            rope_parameters=dict(rope_parameters),
        )
    ).eval()
    llama.load_state_dict(model.state_dict())
    input_ids = random_tokens(2, 40)

    torch.testing.assert_close(model(input_ids).logits, llama(input_ids).logits, rtol=1e-5, atol=2e-5)


def test_logits_with_query_key_norm_equal_those_of_qwen3() -> None:
    model = tiny_model(**{**LLAMA_SHAPE, "qk_norm": True}, head_dim=16, tie_word_embeddings=True)
    qwen3 = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=model.config.intermediate_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=True,
            max_position_embeddings=48,
        )
    ).eval()
    qwen3.load_state_dict(model.state_dict())
    input_ids = random_tokens(2, 40)

    torch.testing.assert_close(model(input_ids).logits, qwen3(input_ids).logits, rtol=1e-5, atol=2e-5)


# ------------------------------------------------------------------------------------------------------- attention


@SHAPES
def test_future_tokens_do_not_change_past_logits(shape: dict[str, object]) -> None:
    model = tiny_model(**shape)
    input_ids = random_tokens(1, 20)
    changed = input_ids.clone()
    changed[0, 12] = (changed[0, 12] + 1) % 61

    before, after = model(input_ids).logits, model(changed).logits

    torch.testing.assert_close(after[:, :12], before[:, :12])
    assert ((after[:, 12:] - before[:, 12:]).abs().amax(-1) > 1e-3).all()


@SHAPES
def test_eager_attention_equals_sdpa_with_padding(shape: dict[str, object]) -> None:
    model = tiny_model(**shape)
    batch = left_padded([random_tokens(9), random_tokens(3), random_tokens(1)])
    tokens = batch["attention_mask"].bool()

    model.set_attn_implementation("sdpa")
    with_sdpa = model(**batch).logits
    with_sdpa_and_no_cache = model(**batch, use_cache=False).logits
    model.set_attn_implementation("eager")
    with_eager = model(**batch).logits

    torch.testing.assert_close(with_eager[tokens], with_sdpa[tokens], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_eager[tokens], with_sdpa_and_no_cache[tokens], rtol=1e-4, atol=1e-5)


def test_flex_attention_equals_eager_with_padding() -> None:
    """Without torch.compile, which would take half a minute to compile torch's own kernel."""
    model = tiny_model(head_dim=16, num_key_value_heads=2)  # flex attention wants heads of 16 or more
    batch = left_padded([random_tokens(9), random_tokens(3)])
    tokens = batch["attention_mask"].bool()

    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model.set_attn_implementation("eager")
        with_eager = model(**batch).logits
        model.set_attn_implementation("flex_attention")
        with_flex = model(**batch).logits

    torch.testing.assert_close(with_flex[tokens], with_eager[tokens], rtol=1e-4, atol=1e-5)


@SHAPES
def test_left_padding_does_not_change_logits(shape: dict[str, object]) -> None:
    model = tiny_model(**shape)
    rows = [random_tokens(9), random_tokens(4, seed=2)]
    batch = left_padded(rows)

    padded = model(**batch, position_ids=positions_without_padding(batch["attention_mask"])).logits

    for row, logits in zip(rows, padded, strict=True):
        torch.testing.assert_close(logits[-len(row) :], model(row[None]).logits[0], rtol=1e-4, atol=1e-5)


def test_attentions_are_causal_distributions() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    input_ids = random_tokens(2, 7)

    outputs = model(input_ids, output_attentions=True, output_hidden_states=True)

    assert len(outputs.attentions) == 2
    for weights in outputs.attentions:
        assert weights.shape == (2, 4, 7, 7)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))
        assert (weights.triu(1) == 0).all()
    assert len(outputs.hidden_states) == 3
    assert torch.equal(outputs.hidden_states[0], model.model.embed_tokens(input_ids))
    assert torch.equal(outputs.hidden_states[-1], model.model(input_ids).last_hidden_state)


def test_packed_sequences_do_not_see_each_other() -> None:
    model = tiny_model()
    first, second = random_tokens(5), random_tokens(4, seed=2)
    positions = torch.cat((torch.arange(5), torch.arange(4)))[None]

    packed = model(torch.cat((first, second))[None], position_ids=positions, use_cache=False).logits[0]

    torch.testing.assert_close(packed[5:], model(second[None]).logits[0], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------- cache, generation


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@SHAPES
def test_cached_logits_equal_those_of_one_forward(shape: dict[str, object], name: str) -> None:
    """By both names that transformers has had for the cache: one that is not known would be ignored in silence."""
    model = tiny_model(**shape)
    input_ids = random_tokens(2, 16)
    cache = DynamicCache(config=model.config)

    with torch.no_grad():
        pieces = [model(part, **{name: cache}).logits for part in input_ids.split([7, 1, 1, 5, 2], dim=1)]

    assert cache.get_seq_length() == 16
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(input_ids).logits, rtol=1e-4, atol=1e-5)


def test_cache_under_both_names_is_refused() -> None:
    model = tiny_model()
    cache = DynamicCache(config=model.config)

    with pytest.raises(ValueError, match="Only one of cache and past_key_values"):
        model(random_tokens(1, 4), cache=cache, past_key_values=cache)


def test_cache_is_returned_in_evaluation_mode_only_unless_asked_for() -> None:
    model = tiny_model()
    input_ids = random_tokens(1, 4)

    assert model(input_ids)[CACHE].get_seq_length() == 4
    assert CACHE not in model(input_ids, use_cache=False)
    assert CACHE not in model.train()(input_ids)
    assert model(input_ids, use_cache=True)[CACHE].get_seq_length() == 4


@SHAPES
def test_greedy_generation_is_the_same_with_any_cache_or_none(shape: dict[str, object]) -> None:
    model = tiny_model(**shape)
    batch = left_padded([random_tokens(8), random_tokens(3)])
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    dynamic = model.generate(**batch, **settings)
    without = model.generate(**batch, **settings, use_cache=False)
    static = model.generate(**batch, **settings, cache_implementation="static")
    alone = model.generate(batch["input_ids"][1:, -3:], **settings)

    assert len(dynamic[0, 8:].unique()) > 3  # no repetition of one token, with which a broken cache might pass
    assert torch.equal(dynamic, without)
    assert torch.equal(dynamic, static)
    assert torch.equal(dynamic[1:, -24:], alone[:, -24:])


def test_greedy_generation_is_the_same_with_prompt_lookup() -> None:
    model = tiny_model()
    prompt = random_tokens(1, 6).repeat(1, 2)
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    assert torch.equal(
        model.generate(prompt, **settings, prompt_lookup_num_tokens=3), model.generate(prompt, **settings)
    )


def test_wide_beam_search_finds_the_best_of_all_continuations() -> None:
    model = tiny_model(vocab_size=4)
    prompt = torch.tensor([[1, 3]])

    found = model.generate(prompt, max_new_tokens=3, num_beams=16, do_sample=False, eos_token_id=None, pad_token_id=0)

    continuations = torch.tensor(list(itertools.product(range(4), repeat=3)))
    texts = torch.cat((prompt.expand(64, -1), continuations), dim=1)
    log_probabilities = model(texts[:, :-1]).logits.log_softmax(-1)[:, 1:]
    best = log_probabilities.gather(-1, continuations[..., None]).sum((1, 2)).argmax()
    assert torch.equal(found[0, 2:], continuations[best])


@pytest.mark.parametrize("inside_generate", [False, True])
def test_learned_positions_end_in_a_clear_error(inside_generate: bool) -> None:
    model = tiny_model(**GPT2_SHAPE, max_position_embeddings=10)
    model(random_tokens(1, 10))

    with pytest.raises(ValueError, match=r"position_ids must be below 10.*got 10.*rotary"):
        if inside_generate:
            model.generate(random_tokens(1, 8), max_new_tokens=4, do_sample=False)
        else:
            model(random_tokens(1, 11))


def test_rotary_positions_continue_past_the_maximum() -> None:
    model = tiny_model(max_position_embeddings=8)

    assert model(random_tokens(1, 20)).logits.isfinite().all()
    assert model.generate(random_tokens(1, 6), max_new_tokens=10, do_sample=False).shape == (1, 16)


def test_text_generation_pipeline() -> None:
    model = tiny_model(vocab_size=4)
    vocabulary = {"a": 0, "b": 1, "c": 2, "<pad>": 3}
    characters = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    characters.pre_tokenizer = Split("", "isolated")
    characters.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, pad_token="<pad>", padding_side="left")

    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    answers = generator(["abc", "b"], batch_size=2, max_new_tokens=5, do_sample=False, return_full_text=False)

    for prompt, answer in zip(("abc", "b"), answers, strict=True):
        input_ids = torch.tensor([[vocabulary[character] for character in prompt]])
        expected = model.generate(input_ids, max_new_tokens=5, do_sample=False)[0, len(prompt) :]
        assert answer[0]["generated_text"] == tokenizer.decode(expected, skip_special_tokens=True)


# -------------------------------------------------------------------------------------------------- loss and training


def test_loss_is_the_cross_entropy_of_the_next_token() -> None:
    model = tiny_model()
    input_ids = random_tokens(2, 6)
    labels = input_ids.clone()
    labels[0, 3] = labels[1, :4] = -100

    outputs = model(input_ids, labels=labels)

    log_probabilities = outputs.logits.log_softmax(-1)
    counted = [(0, 1), (0, 2), (0, 4), (0, 5), (1, 4), (1, 5)]  # (row, position) of the predicted tokens
    terms = [-log_probabilities[row, position - 1, input_ids[row, position]] for row, position in counted]
    torch.testing.assert_close(outputs.loss, sum(terms) / 6)
    torch.testing.assert_close(model(input_ids, labels=labels, num_items_in_batch=24).loss, sum(terms) / 24)


@SHAPES
def test_initial_loss_is_that_of_guessing(shape: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = GPTForCausalLM(tiny_config(**shape, vocab_size=500, hidden_size=64, initializer_range=0.02))
    input_ids = torch.randint(500, (8, 48))

    assert model(input_ids, labels=input_ids).loss.item() == pytest.approx(math.log(500), abs=0.1)


def test_residual_layers_start_smaller_with_depth() -> None:
    model = GPTForCausalLM(GPTConfig(hidden_size=128, num_hidden_layers=8, initializer_range=0.02))
    layer = model.model.layers[3]

    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)  # 4 = sqrt(2 * 8)
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(use_reentrant: bool) -> None:
    model = tiny_model(hidden_dropout=0.1, attention_dropout=0.1).train()
    input_ids = random_tokens(2, 12)

    def loss_and_gradients() -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(7)  # the same dropout
        model.zero_grad()
        loss = model(input_ids, labels=input_ids).loss
        loss.backward()
        return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    loss, gradients = loss_and_gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed_loss, checkpointed_gradients = loss_and_gradients()

    torch.testing.assert_close(checkpointed_loss, loss)
    torch.testing.assert_close(checkpointed_gradients, gradients)


@pytest.mark.parametrize("field", ["attention_dropout", "hidden_dropout", "embedding_dropout"])
def test_dropout_acts_only_in_training_mode(field: str) -> None:
    model = tiny_model(**{field: 0.5})
    input_ids = random_tokens(1, 8)
    expected = tiny_model()(input_ids).logits

    assert torch.equal(model(input_ids).logits, expected)
    assert not torch.allclose(model.train()(input_ids).logits, expected)


@SHAPES
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_training_runs_under_autocast(shape: dict[str, object], implementation: str) -> None:
    model = tiny_model(**shape).train()
    model.set_attn_implementation(implementation)
    batch = left_padded([random_tokens(12), random_tokens(5)])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    exact = model(**batch, labels=labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch, labels=labels)
    outputs.loss.backward()

    assert outputs.logits.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
    assert outputs.loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@SHAPES
def test_training_forward_is_one_graph_for_torch_compile(shape: dict[str, object]) -> None:
    model = tiny_model(**shape).train()
    input_ids = random_tokens(2, 12)
    expected = model(input_ids, labels=input_ids).loss

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")  # fullgraph: a graph break is an error
    loss = compiled(input_ids, labels=input_ids).loss
    loss.backward()

    torch.testing.assert_close(loss, expected)


def test_logits_to_keep() -> None:
    model = tiny_model()
    input_ids = random_tokens(2, 9)
    everything = model(input_ids).logits

    torch.testing.assert_close(model(input_ids, logits_to_keep=2).logits, everything[:, -2:])
    torch.testing.assert_close(model(input_ids, logits_to_keep=torch.tensor([0, 5])).logits, everything[:, [0, 5]])


@SHAPES
def test_inputs_embeds_stand_in_for_input_ids(shape: dict[str, object]) -> None:
    model = tiny_model(**shape)
    input_ids = random_tokens(2, 5)

    by_embeds = model(inputs_embeds=model.get_input_embeddings()(input_ids)).logits

    assert torch.equal(by_embeds, model(input_ids).logits)
    for arguments in ({}, {"input_ids": input_ids, "inputs_embeds": model.get_input_embeddings()(input_ids)}):
        with pytest.raises(ValueError, match="Exactly one"):
            model(**arguments)
    assert torch.equal(model(input_ids, return_dict=False)[0], by_embeds)


@pytest.mark.parametrize("tied", [False, True])
def test_resized_vocabulary_keeps_the_old_logits(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    input_ids = random_tokens(2, 5)
    before = model(input_ids).logits

    model.resize_token_embeddings(70)
    outputs = model(input_ids, labels=input_ids)

    assert outputs.logits.shape[-1] == model.config.vocab_size == 70
    torch.testing.assert_close(outputs.logits[..., :61], before)
    assert outputs.loss.isfinite()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


# ---------------------------------------------------------------------------- what others do with a model's modules


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@SHAPES
def test_dynamic_int8_quantization_keeps_the_logits_close(shape: dict[str, object]) -> None:
    model = tiny_model(**shape)
    input_ids = random_tokens(2, 12)

    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    assert not any(isinstance(module, torch.nn.Linear) for module in quantized.modules())
    exact, rounded = model(input_ids).logits, quantized(input_ids).logits
    assert 0 < (rounded - exact).square().mean().sqrt() < 0.2 * exact.std()  # unrelated logits: 1.4
    assert quantized.generate(input_ids, max_new_tokens=3, min_new_tokens=3).shape == (2, 15)


@SHAPES
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_forward_on_the_meta_device_gives_shapes(shape: dict[str, object], autocast: bool, masked: bool) -> None:
    """As tools do that estimate the memory of a model without having it."""
    with torch.device("meta"):
        model = GPTForCausalLM(tiny_config(**shape))
        input_ids = torch.zeros(2, 12, dtype=torch.long)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = model(input_ids, labels=input_ids, attention_mask=torch.ones_like(input_ids) if masked else None)

    assert outputs.logits.shape == (2, 12, 61) and outputs.logits.is_meta
    assert outputs.loss.shape == () and outputs.loss.is_meta


@SHAPES
@pytest.mark.parametrize("strict", [False, True])
def test_export_takes_any_batch_and_length(shape: dict[str, object], strict: bool) -> None:
    model = tiny_model(**shape)
    free = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=48)}

    exported = torch.export.export(model, (random_tokens(2, 12),), dynamic_shapes=(free,), strict=strict).module()

    for size in ((1, 12), (5, 48), (3, 2)):
        input_ids = random_tokens(*size)
        torch.testing.assert_close(exported(input_ids).logits, model(input_ids).logits, rtol=1e-5, atol=1e-5)


class LowRank(torch.nn.Module):
    """A layer and a trainable product of two thin matrices beside it (LoRA, https://arxiv.org/abs/2106.09685)."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = torch.nn.Linear(layer.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


@SHAPES
@pytest.mark.parametrize("autocast", [False, True])
def test_linear_layers_may_be_wrapped_to_adapt_them(shape: dict[str, object], autocast: bool) -> None:
    model, merged = tiny_model(**shape), tiny_model(**shape)
    for name, layer in list(model.model.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            wrapped = LowRank(layer)
            parent, _, attribute = name.rpartition(".")
            setattr(model.model.get_submodule(parent), attribute, wrapped)
            with torch.no_grad():
                merged.model.get_submodule(name).weight.add_(wrapped.up.weight @ wrapped.down.weight)
    input_ids = random_tokens(2, 12)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = model(input_ids, labels=input_ids)
        expected = merged(input_ids, labels=input_ids)
    outputs.loss.backward()

    torch.testing.assert_close(outputs.loss, expected.loss, rtol=0.02 if autocast else 1e-5, atol=0)
    thin = {name: parameter for name, parameter in model.named_parameters() if ".up." in name or ".down." in name}
    assert len(thin) >= 24 and all(parameter.grad.abs().sum() > 0 for parameter in thin.values())


# ----------------------------------------------------------------------------------------------------- configuration


def test_config_fills_in_sizes() -> None:
    plain, gated = GPTConfig(hidden_size=96), GPTConfig(hidden_size=96, mlp_type="gated")

    assert (plain.intermediate_size, gated.intermediate_size) == (384, 256)
    assert (plain.num_key_value_heads, plain.head_dim) == (4, 24)
    assert plain.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert GPTConfig(rope_theta=500.0).rope_parameters["rope_theta"] == 500.0
    assert GPTConfig(position_embedding="learned").rope_parameters is None


def test_config_names_every_problem_at_once() -> None:
    with pytest.raises(ValueError) as error:
        GPTConfig(
            hidden_size=30,
            num_key_value_heads=3,
            vocab_size=0,
            mlp_type="round",
            norm_type="none",
            position_embedding="sinus",
            hidden_act="rleu",
            hidden_dropout=1.5,
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.5},
        )

    named = ("num_attention_heads", "num_key_value_heads", "vocab_size", "mlp_type", "norm_type", "hidden_act")
    for field in (*named, "position_embedding", "hidden_dropout", "rope_type in rope_parameters"):
        assert f"{field} must" in str(error.value)
    assert "got 'rleu'" in str(error.value) and "partial_rotary_factor" in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"hidden_size": 36, "num_attention_heads": 4},  # heads of 9: an odd number cannot be rotated in pairs
        {"norm_eps": 0.0},
    ],
)
def test_config_rejects(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="|".join([*fields, "head_dim"])):
        GPTConfig(**fields)


def test_config_takes_values_of_numpy_and_tuples_and_stores_them_as_json(tmp_path: Path) -> None:
    config = GPTConfig(
        vocab_size=np.int64(61),
        hidden_size=np.int32(32),
        num_hidden_layers=torch.tensor(2),
        norm_eps=np.float32(2.0**-10),
        use_bias=np.bool_(True),
        eos_token_id=(np.int64(3), 4),
        rope_parameters={"rope_type": "default", "rope_theta": np.float64(500.0)},
        architectures=("GPTForCausalLM",),
    )
    config.bos_token_id = np.uint16(7)

    plain = GPTConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, norm_eps=2.0**-10, use_bias=True, eos_token_id=[3, 4],
        bos_token_id=7, rope_theta=500.0, architectures=["GPTForCausalLM"],
    )  # fmt: skip
    assert config.to_json_string() == plain.to_json_string()
    assert GPTConfig(rope_theta=np.float32(500.0)).to_json_string() == GPTConfig(rope_theta=500.0).to_json_string()
    assert type(config.vocab_size) is int and type(config.norm_eps) is float and config.use_bias is True
    config.save_pretrained(tmp_path)
    assert GPTConfig.from_pretrained(tmp_path).eos_token_id == [3, 4]
    GPTForCausalLM(config).save_pretrained(tmp_path)
    config.eos_token_id = np.array([5, 6])
    assert config.eos_token_id == [5, 6]


@pytest.mark.parametrize("value", [np.float64(32.0), np.bool_(True), "32", (32,), np.array([32])])
def test_config_still_refuses_what_is_no_integer(value: object) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match="hidden_size"):
        GPTConfig(hidden_size=value)


def test_head_dim_may_part_from_the_width() -> None:
    model = tiny_model(hidden_size=30, head_dim=8)

    assert model.model.layers[0].self_attn.q_proj.weight.shape == (32, 30)
    assert model(random_tokens(1, 4)).logits.shape == (1, 4, 61)


# ----------------------------------------------------------------------------------------------------- save and load


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_model_gives_the_same_logits(shape: dict[str, object], dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(**shape).to(dtype)
    input_ids = random_tokens(2, 30)

    model.save_pretrained(tmp_path)
    loaded = GPTForCausalLM.from_pretrained(tmp_path)
    without_head = GPTModel.from_pretrained(tmp_path)

    assert loaded.dtype == dtype and not loaded.training
    assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)
    assert torch.equal(without_head(input_ids)[0], model.model(input_ids)[0])
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == model.config.tie_word_embeddings


def test_a_subclass_travels_with_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_gpt.py").write_text(
        "from hfgen.models.modeling_gpt import GPTForCausalLM\n\n\nclass MyGPT(GPTForCausalLM):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    my_gpt = importlib.import_module("my_gpt")

    my_gpt.MyGPT(tiny_config()).save_pretrained(tmp_path / "saved")

    auto_map = json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForCausalLM"] == "my_gpt.MyGPT"
    files = {"my_gpt.py", *(path.name for path in code_files(Path(modeling_gpt.__file__)))}
    assert len(files) > 2 and files <= {path.name for path in (tmp_path / "saved").iterdir()}


# --------------------------------------------------------------------------------------------------- parallel plans


@SHAPES
def test_parallel_plans_name_modules_that_exist(shape: dict[str, object]) -> None:
    model = tiny_model(**shape)
    names = {re.sub(r"\.\d+\.", ".*.", name) for name, _ in model.named_modules()}

    assert set(model.tp_plan) <= names and "model.layers.*.mlp.down_proj" in model.tp_plan
    assert set(model.pp_plan) <= names
    linear = {re.sub(r"\.\d+\.", ".*.", name) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert linear <= set(model.tp_plan)


TENSOR_PARALLEL = """
import os, sys
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

folder, output = sys.argv[1:]
config = DistributedConfig(tp_size=2, tp_plan="auto")
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, distributed_config=config)
attention = model.model.layers[0].self_attn
assert attention.q_proj.weight.to_local().shape[0] * 2 == attention.q_proj.weight.shape[0]
input_ids = load_file(folder + "/input.safetensors")["input_ids"]
with torch.no_grad():
    tensors = {"logits": model(input_ids).logits}
outputs = model(input_ids, labels=input_ids)
outputs.loss.backward()
for name in ("q_proj", "q_norm", "o_proj"):
    gradient = getattr(attention, name).weight.grad
    tensors[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
if dist.get_rank() == 0:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, output)
dist.barrier()
os._exit(0)  # gloo now and then aborts while it shuts down
"""


def test_two_tensor_parallel_processes_compute_what_one_does(tmp_path: Path) -> None:
    model = tiny_model(vocab_size=62)  # an even number, for the output layer is shared out too
    input_ids = random_tokens(2, 12)
    model.save_pretrained(tmp_path)
    save_file({"input_ids": input_ids}, tmp_path / "input.safetensors")
    (tmp_path / "parallel.py").write_text(textwrap.dedent(TENSOR_PARALLEL))

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "parallel.py", str(tmp_path), str(tmp_path / "output.safetensors")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    assert result.returncode == 0, result.stderr
    parallel = load_file(tmp_path / "output.safetensors")
    outputs = model(input_ids, labels=input_ids)
    outputs.loss.backward()
    torch.testing.assert_close(parallel["logits"], outputs.logits, rtol=1e-4, atol=1e-5)
    attention = model.model.layers[0].self_attn
    for name in ("q_proj", "q_norm", "o_proj"):
        torch.testing.assert_close(parallel[name], getattr(attention, name).weight.grad, rtol=1e-4, atol=1e-5)
