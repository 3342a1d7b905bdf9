"""hfgen.convert.gpt2: GPT-2's logits are the reference."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hfgen.convert import from_gpt2, to_gpt2
from hfgen.models.modeling_gpt import GPTConfig, GPTForCausalLM
from tests.convert.random_weights import left_padded_batch, randomized


def random_gpt2(**fields: object) -> GPT2LMHeadModel:
    """A small GPT-2 whose every weight matters: also norms and biases, which start at 1 and 0, are random."""
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 1}
    model = GPT2LMHeadModel(GPT2Config(**{**shape, "eos_token_id": 60, "pad_token_id": 0, **fields})).eval()
    return randomized(model)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False, "n_inner": 48, "activation_function": "relu"}])
def test_logits_equal_those_of_gpt2(implementation: str, fields: dict[str, object]) -> None:
    gpt2 = random_gpt2(attn_implementation=implementation, **fields)
    model = from_gpt2(gpt2)
    input_ids = torch.randint(61, (4, 32))

    with torch.no_grad():
        expected, actual = gpt2(input_ids).logits, model(input_ids).logits

    assert model.config._attn_implementation == implementation
    assert expected.std() > 0.5  # weights this random give logits that differ
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("with_positions", [True, False])
def test_logits_equal_those_of_gpt2_under_left_padding(implementation: str, with_positions: bool) -> None:
    gpt2 = random_gpt2(attn_implementation=implementation)
    model = from_gpt2(gpt2)
    batch = left_padded_batch()
    if not with_positions:
        del batch["position_ids"]
    tokens = batch["attention_mask"].bool()

    with torch.no_grad():
        expected, actual = gpt2(**batch).logits, model(**batch).logits

    torch.testing.assert_close(actual[tokens], expected[tokens], rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_gpt2() -> None:
    gpt2 = random_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()
    model = from_gpt2(gpt2)
    input_ids = torch.randint(61, (2, 16))

    gpt2(input_ids, labels=input_ids).loss.backward()
    model(input_ids, labels=input_ids).loss.backward()

    assert model.training
    query_key_value = [getattr(model.model.layers[1].self_attn, f"{name}_proj").weight.grad for name in "qkv"]
    torch.testing.assert_close(torch.cat(query_key_value).T, gpt2.transformer.h[1].attn.c_attn.weight.grad)
    torch.testing.assert_close(model.model.embed_tokens.weight.grad, gpt2.transformer.wte.weight.grad)


def test_generates_token_for_token_what_gpt2_generates() -> None:
    gpt2 = random_gpt2()
    model = from_gpt2(gpt2)
    batch = left_padded_batch()
    del batch["position_ids"]

    expected = gpt2.generate(**batch, max_new_tokens=20, do_sample=False)
    actual = model.generate(**batch, max_new_tokens=20, do_sample=False)

    assert torch.equal(actual, expected)


def test_gpt2_and_back_is_exact() -> None:
    gpt2 = random_gpt2(n_inner=40, activation_function="gelu", resid_pdrop=0.25)

    again = to_gpt2(from_gpt2(gpt2))

    assert again.state_dict().keys() == gpt2.state_dict().keys()
    for name, tensor in gpt2.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.config.to_dict() == gpt2.config.to_dict()
    assert again.generation_config.to_dict() == gpt2.generation_config.to_dict()


def test_conversion_copies_weights_and_keeps_the_dtype() -> None:
    gpt2 = random_gpt2().to(torch.bfloat16)
    model = from_gpt2(gpt2)
    before = model.model.embed_tokens.weight.clone()

    with torch.no_grad():
        gpt2.transformer.wte.weight.zero_()

    assert model.dtype == torch.bfloat16
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_from_gpt2_loads_a_folder(tmp_path: Path) -> None:
    gpt2 = random_gpt2()
    gpt2.save_pretrained(tmp_path)
    input_ids = torch.randint(61, (1, 8))

    assert torch.equal(from_gpt2(tmp_path)(input_ids).logits, from_gpt2(gpt2)(input_ids).logits)


def test_from_gpt2_names_every_setting_it_cannot_express() -> None:
    gpt2 = random_gpt2(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True)

    with pytest.raises(ValueError, match=r"scale_attn_weights.*scale_attn_by_inverse_layer_idx"):
        from_gpt2(gpt2)


def test_to_gpt2_names_every_field_it_cannot_express() -> None:
    config = GPTConfig(num_hidden_layers=1, hidden_size=32, mlp_type="gated", num_key_value_heads=2, head_dim=16)

    with pytest.raises(ValueError) as error:
        to_gpt2(GPTForCausalLM(config))

    named = ("position_embedding", "norm_type", "mlp_type", "qk_norm", "use_bias", "num_key_value_heads", "head_dim")
    for field in named:
        assert f"{field} must be" in str(error.value)
