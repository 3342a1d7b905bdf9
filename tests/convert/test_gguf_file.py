"""hfgen.convert.gguf_file: names by the `gguf` package itself, rotations and activations by their formulas.

llama.cpp itself, which has to be compiled, is not run.
"""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import torch.nn.functional as F

from hfgen.convert import to_native
from hfgen.convert.gguf_file import gguf_tensors, read_tensors, write_gguf
from hfgen.models.modeling_gpt import GPTForCausalLM
from tests.convert.saved_gpt import save_gpt


GATED = {"mlp_type": "gated", "hidden_act": "silu", "num_key_value_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "apertus": {"num_key_value_heads": 2, "head_dim": 16, "norm_eps": 1e-4, "rope_theta": 500.0},
    "arcee": {"qk_norm": False},
    "qwen3": {**GATED, "tie_word_embeddings": True},
    "llama": {**GATED, "qk_norm": False},
    "gpt2": {"position_embedding": "learned", "norm_type": "layernorm", "qk_norm": False, "use_bias": True,
             "hidden_act": "gelu_new"},
}  # fmt: skip
ARCHITECTURES = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}


def settings_of(path: Path) -> dict[str, Any]:
    return {name: entry.contents() for name, entry in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("architecture", SHAPES)
def test_tensors_have_the_names_and_values_that_llama_cpp_reads(architecture: str, tmp_path: Path) -> None:
    model = save_gpt(tmp_path / "gpt", **SHAPES[architecture])

    assert write_gguf(tmp_path / "gpt", tmp_path / "gpt.gguf") == architecture

    read = read_tensors(tmp_path / "gpt.gguf")
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], 2)
    native = dict(to_native(model).state_dict())
    if model.config.tie_word_embeddings:
        del native["lm_head.weight"]
    expected = {names.get_name(name, (".weight", ".bias")): tensor for name, tensor in native.items()}
    assert read.keys() == expected.keys()
    turned = ("attn_q.weight", "attn_k.weight") if architecture in ("llama", "arcee") else ()
    for name, tensor in expected.items():
        if architecture == "gpt2" and tensor.ndim == 2 and name.startswith("blk."):
            tensor = tensor.T  # GPT-2's layers in transformers are (in, out)
        if name.endswith(turned):
            assert not torch.equal(read[name], tensor) and torch.equal(read[name].sort(0)[0], tensor.sort(0)[0])
        else:
            assert torch.equal(read[name], tensor), name


@pytest.mark.parametrize("architecture", ["llama", "arcee"])
def test_rearranged_heads_score_alike_when_neighbors_are_turned(architecture: str, tmp_path: Path) -> None:
    """llama.cpp turns the pairs (0, 1), (2, 3), ...; transformers turns (0, d/2), (1, d/2 + 1), ..."""
    model = save_gpt(tmp_path, **SHAPES[architecture])
    tensors = gguf_tensors(model, architecture)
    x, head_dim = torch.randn(2, 32), 8
    angles = torch.tensor([3.0, 11.0])[:, None] * 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)

    def halves(weight: torch.Tensor) -> torch.Tensor:
        first, second = (x @ weight.T).view(2, -1, 2, head_dim // 2).unbind(2)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def neighbors(weight: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex((x @ weight.T).view(2, -1, head_dim // 2, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(2)

    attention = model.model.layers[1].self_attn
    query, key = halves(attention.q_proj.weight), halves(attention.k_proj.weight)
    query_there = neighbors(tensors["blk.1.attn_q.weight"])
    key_there = neighbors(tensors["blk.1.attn_k.weight"])

    torch.testing.assert_close(
        torch.einsum("hd,kd->hk", query_there[0], key_there[1]), torch.einsum("hd,kd->hk", query[0], key[1])
    )


def test_settings_are_those_of_the_config(tmp_path: Path) -> None:
    save_gpt(tmp_path / "gpt", **SHAPES["apertus"])

    write_gguf(tmp_path / "gpt", tmp_path / "gpt.gguf")

    found = settings_of(tmp_path / "gpt.gguf")
    expected = {
        "general.architecture": "apertus", "general.name": "gpt", "general.file_type": 0, "apertus.block_count": 2,
        "apertus.context_length": 32, "apertus.embedding_length": 32, "apertus.feed_forward_length": 128,
        "apertus.attention.head_count": 4, "apertus.attention.head_count_kv": 2, "apertus.attention.key_length": 16,
        "apertus.attention.value_length": 16, "apertus.rope.dimension_count": 16, "apertus.rope.freq_base": 500.0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found["apertus.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-4)
    assert found["general.sampling.temp"] == pytest.approx(0.75)


def test_constants_of_xielu_make_a_squared_relu(tmp_path: Path) -> None:
    """xIELU (https://arxiv.org/abs/2411.13010, equation 11), whose alphas go through a softplus."""
    save_gpt(tmp_path / "gpt")
    write_gguf(tmp_path / "gpt", tmp_path / "gpt.gguf")
    found = settings_of(tmp_path / "gpt.gguf")
    alpha_p, alpha_n, beta, eps = (
        torch.tensor(found[f"xielu.{name}"]) for name in ("alpha_p", "alpha_n", "beta", "eps")
    )
    x = torch.linspace(-5, 5, 101)[:, None]

    positive = F.softplus(alpha_p) * x * x + beta * x
    negative = (torch.expm1(torch.minimum(x, eps)) - x) * (beta + F.softplus(alpha_n)) + beta * x

    squared_relu = x.relu().square().expand(-1, 2)  # of two layers
    torch.testing.assert_close(torch.where(x > 0, positive, negative), squared_relu, rtol=1e-6, atol=1e-6)


def test_weights_of_xielu_are_kept(tmp_path: Path) -> None:
    model = save_gpt(tmp_path / "gpt", hidden_act="xielu")

    write_gguf(tmp_path / "gpt", tmp_path / "gpt.gguf")

    found = settings_of(tmp_path / "gpt.gguf")
    for name in ("alpha_p", "alpha_n", "beta", "eps"):
        weights = [float(model.state_dict()[f"model.layers.{layer}.mlp.act_fn.{name}"]) for layer in (0, 1)]
        assert found[f"xielu.{name}"] == pytest.approx(weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_is_kept_and_vectors_are_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = save_gpt(tmp_path / "gpt").to(dtype)
    model.save_pretrained(tmp_path / "gpt")

    write_gguf(tmp_path / "gpt", tmp_path / "gpt.gguf")

    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "gpt.gguf").tensors}
    assert kinds["blk.0.ffn_up.weight"] == {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    assert kinds["blk.0.ffn_norm.weight"] == "F32"
    up = read_tensors(tmp_path / "gpt.gguf")["blk.1.ffn_up.weight"]
    assert torch.equal(
        up.to(dtype), GPTForCausalLM.from_pretrained(tmp_path / "gpt").model.layers[1].mlp.up_proj.weight
    )


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        (
            {"hidden_act": "gelu"},
            "architecture apertus of llama.cpp .*hidden_act must be one of relu2, xielu, got 'gelu'",
        ),
        ({"qk_norm": False, "use_bias": True}, "architecture arcee of llama.cpp .*use_bias must be False, got True"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type .*got 'linear'"),
        ({"norm_type": "layernorm"}, "No class of transformers can express this model"),
    ],
)
def test_what_llama_cpp_lacks_is_named_and_leaves_no_file(shape: dict[str, Any], named: str, tmp_path: Path) -> None:
    save_gpt(tmp_path / "gpt", **shape)

    with pytest.raises(ValueError, match=named):
        write_gguf(tmp_path / "gpt", tmp_path / "gpt.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["gpt"]


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    save_gpt(tmp_path / "gpt")
    (tmp_path / "gpt.gguf").write_text("mine")

    with pytest.raises(ValueError, match=r"OUT must be a new file in a folder that exists, got .*gpt\.gguf"):
        write_gguf(tmp_path / "gpt", tmp_path / "gpt.gguf")
    assert (tmp_path / "gpt.gguf").read_text() == "mine"
