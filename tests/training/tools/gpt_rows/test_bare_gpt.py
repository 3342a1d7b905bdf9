"""The usual small GPT: its size, its schedule, its loss, and which seconds count."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from training.tools.gpt_rows.bare_gpt import BareGPT, Setting, evaluate, rate_at, read_text, train


TINY = Setting(layers=1, width=8, heads=2, context=8, batch_size=2, steps=20, warmup=2)


def test_the_model_is_gpt2_without_biases() -> None:
    setting = Setting()
    ours = BareGPT(65, setting).eval()
    assert sum(weight.numel() for weight in ours.parameters()) == pytest.approx(0.8e6, rel=0.01)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=65, n_positions=64, n_embd=128, n_layer=4, n_head=4,
                                        activation_function="gelu")).eval()  # fmt: skip
    state = {name: torch.zeros_like(value) for name, value in theirs.state_dict().items()}
    tokens = ours.tokens.weight
    state |= {"transformer.wte.weight": tokens, "lm_head.weight": tokens,
              "transformer.wpe.weight": ours.positions.weight,
              "transformer.ln_f.weight": ours.norm.weight}  # fmt: skip
    names = {"ln_1": "attention_norm", "ln_2": "mlp_norm", "attn.c_attn": "attention_in",
             "attn.c_proj": "attention_out", "mlp.c_fc": "mlp_in", "mlp.c_proj": "mlp_out"}  # fmt: skip
    for index, block in enumerate(ours.blocks):
        for theirs_name, ours_name in names.items():
            weight = getattr(block, ours_name).weight
            state[f"transformer.h.{index}.{theirs_name}.weight"] = weight.T if weight.ndim == 2 else weight
    theirs.load_state_dict(state)
    ids = torch.randint(65, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-5)


def test_the_rate_rises_and_falls_along_a_cosine() -> None:
    setting = Setting()
    rates = [rate_at(step, setting) for step in (0, 99, 100, 1050, 1999)]
    assert rates == pytest.approx([1e-3 / 101, 1e-3 * 100 / 101, 1e-3, 5.5e-4, 1e-4], rel=1e-2)


def test_an_evaluation_predicts_each_id_but_the_first_once() -> None:
    model = BareGPT(5, TINY)
    ids = torch.randint(5, (30,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(ids[None, start : start + 8][:, : len(ids) - 1 - start])[0],
                            ids[start + 1 : start + 9], reduction="none")
            for start in range(0, 29, 8)
        ]  # fmt: skip
    expected = torch.cat(losses)
    assert len(expected) == 29 and evaluate(model, ids, 8, batch_size=2) == pytest.approx(expected.mean().item())


def test_the_loop_learns_and_says_when_it_reached_the_target(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcd" * 500)
    ids, held_out, kinds = read_text(path)
    assert (len(ids), len(held_out), kinds) == (1800, 200, 4)
    found = train(path, target=math.inf, seed=0, setting=TINY)
    assert list(found["losses"]) == [*range(10, 21)] and found["loss"] == found["losses"][20] < math.log(4) + 0.1
    assert 0 < found["seconds_to_target"] < found["seconds_trained"] + found["seconds_of_evaluation"]
    assert train(path, target=0.0, seed=0, setting=TINY)["seconds_to_target"] is None
