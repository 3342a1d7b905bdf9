"""Weights in eight bits by torchao, through transformers' own `quantization_config`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, TorchAoConfig

from tests.ecosystem.small_gpts import GREEDY, both_layouts, random_tokens, small_gpt


# Not among the packages that CI installs: where torchao is, transformers imports it in every process.
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@both_layouts
def test_int8_weights_load_write_and_are_saved(layout: str, tmp_path: Path) -> None:
    from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig

    model, ids = small_gpt(layout), random_tokens(2, 12)
    model.save_pretrained(tmp_path / "gpt")
    with torch.no_grad():
        expected = model(ids).logits

    int8 = AutoModelForCausalLM.from_pretrained(
        tmp_path / "gpt", quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )

    layer = int8.model.layers[0]
    assert all(isinstance(linear.weight, Int8Tensor) for linear in (layer.self_attn.q_proj, layer.mlp.down_proj))
    with torch.no_grad():
        logits = int8(ids).logits
    error = (logits - expected).square().mean().sqrt() / expected.std()
    assert 0 < error < 0.02  # 7 bits of every row's largest weight, in six products one after the other
    # Faster ways to write read weights as plain tensors; here they must leave the work to the layers.
    written, step_by_step = int8.generate(ids, **GREEDY), ids
    for _ in range(GREEDY["max_new_tokens"]):
        with torch.no_grad():
            newest = int8(step_by_step).logits[:, -1].argmax(-1, keepdim=True)
        step_by_step = torch.cat((step_by_step, newest), dim=1)
    assert torch.equal(written, step_by_step)

    int8.save_pretrained(tmp_path / "int8")
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "int8")(ids).logits, logits)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("int8", "gpt")]
    assert sizes[0] < sizes[1]
