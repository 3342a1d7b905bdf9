"""How much each character surprises a model: against the probabilities that the model is known to give."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen import GPTConfig, GPTForCausalLM
from hfgen.tokenization import build_character_tokenizer
from training.output.report.surprise import measure_surprise


ALPHABET = "abcdefgh"


def tokenizer() -> Any:
    return build_character_tokenizer(ALPHABET, model_max_length=8)


def tokens(text: str) -> Tensor:
    return torch.tensor(tokenizer()(text, add_special_tokens=False)["input_ids"])


def tiny_gpt(context: int) -> GPTForCausalLM:
    torch.manual_seed(0)
    special = tokenizer()
    return GPTForCausalLM(GPTConfig(
        vocab_size=len(special), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=context,
        bos_token_id=special.bos_token_id, eos_token_id=special.eos_token_id, pad_token_id=special.pad_token_id,
    )).eval()  # fmt: skip


def test_a_text_within_the_context_has_the_bits_of_its_cross_entropy() -> None:
    model, ids = tiny_gpt(16), tokens("abcdefgh" + "hgfedcba")

    pieces = measure_surprise(model, ids, tokenizer(), context=16)

    with torch.no_grad():
        expected = F.cross_entropy(model(ids[None, :-1]).logits[0].float(), ids[1:], reduction="none") / math.log(2)
    assert "".join(piece.text for piece in pieces) == "bcdefghhgfedcba"
    assert [piece.bits for piece in pieces] == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize("context", [2, 5, 8])
def test_each_token_of_a_longer_text_is_predicted_once_from_half_a_context(context: int) -> None:
    model, ids = tiny_gpt(context), tokens("abcdefgh" * 4)

    pieces = measure_surprise(model, ids, tokenizer(), context)

    expected = []
    done = 1
    while done < len(ids):  # the definition: a window for each token, which begins where its neighbors' do
        start = 0 if done == 1 else done - max(1, context // 2)
        for target in range(done, min(start + context, len(ids) - 1) + 1):
            with torch.no_grad():
                logits = model(ids[None, start:target]).logits[0, -1].float()
            expected.append(-float(logits.log_softmax(-1)[ids[target]]) / math.log(2))
        done = start + context + 1
    assert [piece.bits for piece in pieces] == pytest.approx(expected, rel=1e-3)


def test_bytes_of_one_character_are_one_piece() -> None:
    ids = tokens("a\N{SNOWMAN}b")
    assert len(ids) == 5  # the snowman is not in the alphabet, and takes three bytes

    pieces = measure_surprise(tiny_gpt(8), ids, tokenizer(), context=8)

    assert [piece.text for piece in pieces] == ["\N{SNOWMAN}", "b"] and pieces[0].bits > 2 * pieces[1].bits
