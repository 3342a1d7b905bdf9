"""Text to bits with a GPT, and back on a machine that computes a little differently."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hfgen import GPTForCausalLM
from hfgen.compression.container import ByteReader, pack_integer
from hfgen.compression.logit_levels import TOLERANCE, Decisions
from hfgen.compression.text import gpt_text_codec
from hfgen.compression.text.gpt_predictor import Window, windows
from hfgen.compression.text.gpt_text_codec import Layout, decode, encode
from hfgen.compression.text.text_files import load_gpt
from hfgen.compression.text.text_tokens import split_text

from ..tiny_gpt import save_tiny_gpt
from .test_text_tokens import BYTE_LEVEL


SPEECH = "To bleat, or not to bleat: that is the crime.\nWhether it is nobler in the mind to suffer\n"


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPTForCausalLM, PreTrainedTokenizerBase]:
    return load_gpt(save_tiny_gpt(tmp_path_factory.mktemp("gpt")))


def round_trip(text: str, gpt: Any, num_streams: int | None = None) -> int:
    """Checks that a text comes back; returns the bytes of the payload."""
    parameters, payload = encode(text.encode(), *gpt, num_streams)
    assert decode(parameters, payload, *gpt) == text.encode()
    return len(payload)


@pytest.mark.parametrize(
    "text",
    ["", "a", "\n", "\ufeffto be\r\nor not\r\n", "mixed\r\nline\nbreaks\r", "“’tis” — 1599, naïve…", "日本語🎭",
     "\0\x7f", "<|endoftext|>", "<0x41>", SPEECH],
)  # fmt: skip
def test_every_text_comes_back(text: str, gpt: Any) -> None:
    round_trip(text, gpt)


@pytest.mark.parametrize("num_streams", [1, 2, 7, 16])
@pytest.mark.parametrize("length", [16, 17, 31, 32, 63])
def test_streams_and_windows_of_every_length(num_streams: int, length: int, gpt: Any) -> None:
    """The context is 8 tokens, so that windows end in all places."""
    round_trip(SPEECH[:length], gpt, num_streams)


@pytest.mark.parametrize(
    "fields",
    [{"max_position_embeddings": 1}, {"max_position_embeddings": 2}, {"position_embedding": "learned"},
     {"num_key_value_heads": 1, "mlp_type": "gated", "hidden_act": "silu"},
     {"norm_type": "layernorm", "use_bias": True}],
)  # fmt: skip
def test_every_kind_of_gpt(fields: dict[str, Any], tmp_path: Path) -> None:
    round_trip(SPEECH, load_gpt(save_tiny_gpt(tmp_path, **fields)), num_streams=3)


def test_a_byte_level_tokenizer(tmp_path: Path) -> None:
    round_trip("naïve\r\n日本語🎭\r\n", load_gpt(save_tiny_gpt(tmp_path, BYTE_LEVEL)))


def test_the_size_is_the_loss_of_the_model(gpt: Any) -> None:
    """-log2 of the probability of each token, with the context that windows leave it."""
    model, tokenizer = gpt
    tokens = [0, *split_text(SPEECH, tokenizer).tokens.tolist()]
    nats = 0.0
    for window in windows(len(SPEECH), 8, 4):
        inputs = torch.tensor([tokens[window.start : window.stop - 1]])
        with torch.no_grad():
            logits = model(inputs).logits[0, window.first - 1 - window.start :, :39]
        following = torch.tensor(tokens[window.first : window.stop])
        nats += float(nn.functional.cross_entropy(logits, following, reduction="sum"))
    assert round_trip(SPEECH, gpt, num_streams=1) == pytest.approx(nats / math.log(2) / 8, rel=0.002, abs=6)


def test_windows_keep_half_of_the_context() -> None:
    assert [*windows(14, 8, 4)] == [Window(0, 1, 9), Window(5, 9, 14), Window(10, 14, 15)]
    assert [*windows(0, 8, 4)] == []
    for length, context, kept in [(20, 8, 8), (20, 1, 1), (7, 3, 2)]:
        found = [*windows(length, context, kept)]
        assert [t for w in found for t in range(w.first, w.stop)] == [*range(1, length + 1)]
        assert all(w.stop - 1 - w.start <= context and w.start < w.first for w in found)


class OtherMachine(nn.Module):
    """An output layer whose results are midpoints of the grid and grid points, each a little off."""

    def __init__(self, layer: nn.Module, error: float, seed: int):
        super().__init__()
        self.layer = layer
        self.error = error
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, hidden: Tensor) -> Tensor:
        logits = (self.layer(hidden) * 64).round() / 64
        return logits + self.error * (2 * torch.rand(logits.shape, generator=self.generator, dtype=torch.float64) - 1)


def test_a_machine_with_slightly_other_arithmetic_decodes_exactly(tmp_path: Path) -> None:
    """Half of all logits lie in the middle between two grid points, where each machine would round as it errs."""
    model, tokenizer = load_gpt(save_tiny_gpt(tmp_path))
    exact = model.lm_head
    model.lm_head = OtherMachine(exact, TOLERANCE / 200, seed=1)
    parameters, payload = encode(SPEECH.encode(), model, tokenizer, 3)
    for seed in (2, 3):
        model.lm_head = OtherMachine(exact, TOLERANCE / 200, seed)
        assert decode(parameters, payload, model, tokenizer) == SPEECH.encode()
    # It is the decisions that make it so.
    reader = ByteReader(payload, "The payload")
    decisions = Decisions.from_reader(reader, 1 << 20)
    assert len(decisions.places) > len(SPEECH) * 39 / 3
    try:
        found = decode(parameters, pack_integer(0) + reader.rest(), model, tokenizer)
    except ValueError:
        found = b""
    assert found != SPEECH.encode()


@pytest.mark.parametrize("error", [1e-8, 1e-3])
def test_a_machine_with_other_arithmetic_is_refused_before_it_decodes(error: float, tmp_path: Path) -> None:
    model, tokenizer = load_gpt(save_tiny_gpt(tmp_path))
    parameters, payload = encode(SPEECH.encode(), model, tokenizer)
    with torch.no_grad():
        model.lm_head.weight *= 1 + error
    with pytest.raises(ValueError, match=r"self-test must differ by less than 1\.5e-11, got .* Nothing was written"):
        decode(parameters, payload, model, tokenizer)


def test_a_model_in_single_precision_is_refused(tmp_path: Path) -> None:
    """What it computes at once and step by step differs by more than rounding allows for."""
    model, tokenizer = load_gpt(save_tiny_gpt(tmp_path, hidden_size=64))
    with pytest.raises(ValueError, match="must not depend on how many tokens are computed at once"):
        encode(SPEECH.encode(), model.float(), tokenizer)


def test_lost_synchrony_is_noticed_by_the_checks_inside(gpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt_text_codec, "_CHECKED_TOKENS", 32)
    parameters, payload = encode(SPEECH.encode(), *gpt, 1)
    assert decode(parameters, payload, *gpt) == SPEECH.encode()
    damaged = bytearray(payload)
    damaged[8] ^= 1
    with pytest.raises(ValueError, match=r"tokens up to \d+ of 89 must match their checksum|those of an encoder"):
        decode(parameters, bytes(damaged), *gpt)


def test_what_is_not_text_is_refused(gpt: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a text in UTF-8, got other bytes: .*0xff"):
        encode(b"abc\xff", *gpt)


def test_a_tokenizer_that_is_too_large_for_the_model_is_refused(gpt: Any) -> None:
    with pytest.raises(ValueError, match="Tokens must be below 245, the model's vocab_size, got 255"):
        encode("\xad".encode(), gpt[0], BYTE_LEVEL)


def test_parameters_that_no_encoder_writes_are_refused(gpt: Any) -> None:
    parameters, payload = encode(SPEECH.encode(), *gpt)
    for place, value in [(0, 4), (20, 3), (21, 0), (22, 0), (22, 100)]:
        damaged = bytearray(parameters)
        damaged[place] = value
        with pytest.raises(ValueError):
            decode(bytes(damaged), payload, *gpt)


@pytest.mark.parametrize("num_tokens, num_streams", [(0, 1), (1, 1), (10, 4), (9, 4), (8, 4), (5, 5)])
def test_streams_hold_the_text_in_order(num_tokens: int, num_streams: int) -> None:
    layout = Layout(num_tokens, num_streams, context=8, kept=4, start_token=99)
    tokens = torch.arange(1, 1 + num_tokens).numpy()
    grid = layout.arrange(tokens)
    assert grid[:, 0].tolist() == [99] * num_streams
    assert (grid[:, 1:] > 0).sum() == num_tokens and grid.shape[1] == 1 + -(-num_tokens // num_streams)
    assert layout.join(grid).tolist() == tokens.tolist()
