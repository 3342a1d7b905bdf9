"""hfgen.convert.native: transformers' own class of each shape is the reference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from hfgen.convert import from_native, to_native
from hfgen.convert.native import config_from_native
from hfgen.models.modeling_gpt import GPTConfig, GPTForCausalLM
from tests.convert.random_weights import left_padded_batch, randomized


SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 48, "bos_token_id": 1, "eos_token_id": [59, 60], "pad_token_id": 0,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip
GATED = {"mlp_type": "gated", "hidden_act": "silu", "num_key_value_heads": 2}
# Name of the class -> shapes that only it expresses.
SHAPES: dict[str, list[dict[str, Any]]] = {
    "ApertusForCausalLM": [{}, {"num_key_value_heads": 2, "head_dim": 16, "rope_theta": 500.0, "hidden_act": "gelu"}],
    "ArceeForCausalLM": [{"qk_norm": False}, {"qk_norm": False, "use_bias": True, "tie_word_embeddings": True}],
    "Qwen3ForCausalLM": [GATED, {**GATED, "head_dim": 16, "norm_eps": 1e-3, "tie_word_embeddings": True}],
    "LlamaForCausalLM": [{**GATED, "qk_norm": False, "use_bias": bias, "rope_parameters": rope}
                         for bias, rope in ((False, LLAMA3_ROPE), (True, None))],
    "GPT2LMHeadModel": [{"position_embedding": "learned", "norm_type": "layernorm", "qk_norm": False,
                         "use_bias": True, "hidden_act": "gelu_new"}],
}  # fmt: skip
CASES = [
    pytest.param(name, shape, id=f"{name}-{number}")
    for name, shapes in SHAPES.items()
    for number, shape in enumerate(shapes)
]
every_shape = pytest.mark.parametrize(("class_name", "shape"), CASES)


def random_model(**shape: Any) -> GPTForCausalLM:
    torch.manual_seed(0)
    model = randomized(GPTForCausalLM(GPTConfig(**{**SIZES, **shape})).eval())
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.8, bos_token_id=7, eos_token_id=60, pad_token_id=0, max_length=48
    )
    return model


def assert_same_logits(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """With left padding, and with a cache that is filled in two calls."""
    batch = left_padded_batch()
    tokens = batch["attention_mask"].bool()
    with torch.no_grad():
        expected, actual = one(**batch).logits, other(**batch).logits
        first = other(batch["input_ids"][:1, :7], use_cache=True)
        second = other(batch["input_ids"][:1, 7:], past_key_values=first.get("cache", first.get("past_key_values")))
    assert expected.std() > 0.3  # weights this random give logits that differ
    torch.testing.assert_close(actual[tokens], expected[tokens], rtol=1e-5, atol=1e-5)
    stepwise = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(stepwise, expected[:1], rtol=1e-5, atol=1e-5)


@every_shape
def test_logits_equal_those_of_the_native_class(class_name: str, shape: dict[str, Any]) -> None:
    model = random_model(**shape)

    native = to_native(model)

    assert type(native).__name__ == class_name
    assert type(native).__module__.startswith("transformers.models.")
    assert not native.training
    assert_same_logits(model, native)


@every_shape
def test_native_and_back_changes_no_weight_and_no_field(class_name: str, shape: dict[str, Any]) -> None:
    model = random_model(**shape, initializer_range=0.03, attention_dropout=0.25)

    again = from_native(to_native(model))

    assert again.config.to_dict() == model.config.to_dict()
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@every_shape
def test_native_folder_needs_no_custom_code_and_generates_alike(
    class_name: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    model = random_model(**shape)
    to_native(model).save_pretrained(tmp_path)
    batch = left_padded_batch()
    del batch["position_ids"]

    native = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)

    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert type(native).__name__ == class_name
    expected = model.generate(**batch, max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert torch.equal(native.generate(**batch, max_new_tokens=20, do_sample=False, eos_token_id=None), expected)
    assert native.generate(batch["input_ids"][:1], eos_token_id=None).shape == (1, 48)  # its own max_length
    assert_same_logits(model, from_native(tmp_path))


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        # As published: with biases that few have, activations of their own, and Apertus's activation with weights.
        ("apertus", {"hidden_act": "xielu"}),
        ("arcee", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"head_dim": 16, "num_key_value_heads": 2}),
        ("llama", {"tie_word_embeddings": True}),
        ("gpt2", {}),
    ],
)
def test_models_of_transformers_keep_their_logits(model_type: str, fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "intermediate_size": 48, **fields}
    native = randomized(AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).float().eval())

    model = from_native(native)

    assert_same_logits(native, model)
    assert model.config.to_dict() | {"dtype": None} == config_from_native(native.config).to_dict() | {"dtype": None}
    again = to_native(model)
    assert type(again) is type(native)
    for name, tensor in native.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_conversion_copies_weights_and_keeps_the_dtype() -> None:
    model = random_model(tie_word_embeddings=True).to(torch.bfloat16)
    native = to_native(model)
    before = native.model.embed_tokens.weight.clone()

    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()

    assert native.dtype == torch.bfloat16
    assert torch.equal(native.model.embed_tokens.weight, before)
    assert native.lm_head.weight is native.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"use_bias": True}, r"For Apertus, use_bias must be False, got True\. .*For Arcee, qk_norm must be False"),
        ({"norm_type": "layernorm"}, r"For Apertus, norm_type must be 'rmsnorm', got 'layernorm'\."),
        ({"position_embedding": "learned"}, r"For Apertus, position_embedding must be 'rotary', got 'learned'\."),
        ({**GATED, "use_bias": True}, r"For Qwen3, use_bias must be False, got True\."),
        (
            {**GATED, "qk_norm": False, "hidden_size": 36, "head_dim": 8, "num_attention_heads": 8},
            r"For Llama, num_attention_heads must divide hidden_size 36, got 8\.",
        ),
        (
            {"position_embedding": "learned", "norm_type": "layernorm", "use_bias": True},
            r"For GPT-2, qk_norm must be False, got True\.",
        ),
    ],
)
def test_fields_without_a_native_home_are_named(shape: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"No class of transformers can express this model.*{named}"):
        to_native(GPTForCausalLM(GPTConfig(**{**SIZES, **shape})))


@pytest.mark.parametrize(
    ("model_type", "fields", "named"),
    [
        ("llama", {"attention_bias": True}, "attention_bias and mlp_bias must be equal, got attention_bias=True"),
        ("qwen3", {"attention_bias": True}, "attention_bias must be False, got True"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "'full_attention'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type must be",
        ),
    ],
)
def test_settings_that_have_no_home_here_are_named(model_type: str, fields: dict[str, Any], named: str) -> None:
    config = AutoConfig.for_model(model_type, **{**SIZES, "intermediate_size": 48, **fields})

    with pytest.raises(ValueError, match=f"GPTConfig cannot express this .*{named}"):
        from_native(AutoModelForCausalLM.from_config(config))


def test_other_models_are_refused() -> None:
    config = AutoConfig.for_model("gpt_neox", **{**SIZES, "intermediate_size": 48})

    with pytest.raises(ValueError, match=r"must be a causal language model of a type among apertus.*got a GPTNeoX"):
        from_native(AutoModelForCausalLM.from_config(config))
