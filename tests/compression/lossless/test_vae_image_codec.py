"""Images by bits back: exact, and as small as the evidence lower bound says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hfgen.compression import logit_levels, self_test
from hfgen.compression.lossless import vae_image_codec
from hfgen.compression.lossless.image_plan import ImagePlan, numbered_names
from hfgen.compression.lossless.stack_coder import StackCoder, initial_words
from hfgen.compression.lossless.vae_image_codec import decode, encode

from .tiny_vae import smooth_images, tiny_vae


KINDS = ["bernoulli", "discretized_logistic", "logistic_mixture"]


def coded(pixels: np.ndarray, model: Any) -> tuple[ImagePlan, bytes]:
    parameters, payload = encode(pixels, numbered_names(len(pixels)), model)
    return ImagePlan.from_bytes(parameters), payload


@settings(deadline=None, max_examples=10)
@given(st.booleans(), st.sampled_from(KINDS), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(0, 99))
def test_any_images_come_back(is_ladder: bool, kind: str, num_channels: int, count: int, seed: int) -> None:
    model = tiny_vae(is_ladder, seed, likelihood=kind, num_channels=num_channels).double()
    pixels = np.random.default_rng(seed).integers(0, 256, (count, num_channels, 8, 8)).astype(np.uint8)
    pixels = 255 * (pixels > 127).astype(np.uint8) if kind == "bernoulli" else pixels
    assert np.array_equal(decode(*coded(pixels, model), model), pixels)


@pytest.mark.parametrize("fields", [{"latent_type": "spatial"}, {"num_residual_blocks": 1}, {"hidden_act": "silu"}])
def test_other_networks(fields: dict[str, Any]) -> None:
    model, pixels = tiny_vae(likelihood="discretized_logistic", **fields).double(), smooth_images(3)
    assert np.array_equal(decode(*coded(pixels, model), model), pixels)


def test_a_ladder_without_levels_in_a_stage() -> None:
    model = tiny_vae(is_ladder=True, num_levels=[0, 2], likelihood="discretized_logistic").double()
    plan, payload = coded(smooth_images(3), model)
    assert len(plan.spacing_bits) == 3
    assert np.array_equal(decode(plan, payload, model), smooth_images(3))


@pytest.mark.parametrize("is_ladder", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_images_take_their_evidence_lower_bound(kind: str, is_ladder: bool) -> None:
    """After a short training: the tails of an untrained posterior are cut off, which would make it too good."""
    is_binary = kind == "bernoulli"
    model = trained(tiny_vae(is_ladder, likelihood=kind), smooth_images(128, is_binary=is_binary)).double()
    pixels = smooth_images(200, is_binary=is_binary, seed=1)
    plan, payload = coded(pixels, model)
    with torch.no_grad():
        reconstruction_loss, kl = model.evidence_terms(torch.from_numpy(pixels).double().div(255).repeat(10, 1, 1, 1))
    expected = (reconstruction_loss.sum() + kl.sum()).item() / 10 / math.log(2)
    assert 8 * len(payload) - 32 * plan.initial_words == pytest.approx(expected, rel=0.01)
    assert plan.initial_words < 0.02 * len(payload) / 4 + 20


def test_batches_grow_with_the_stack() -> None:
    model = tiny_vae(is_ladder=True, likelihood="discretized_logistic").double()
    pixels = smooth_images(200)
    plan, payload = coded(pixels, model)
    sizes = [*plan.sizes_from_last()][::-1]
    assert sum(sizes) == plan.num_images == 200 and sizes[0] == 1 and max(sizes) >= 64
    assert np.array_equal(decode(plan, payload, model), pixels)


def test_large_batches_are_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_image_codec, "_MAX_NUMBERS_AT_ONCE", 2000)
    model = tiny_vae(likelihood="discretized_logistic").double()
    plan, payload = coded(smooth_images(30), model)
    assert max(plan.sizes_from_last()) == 8  # of 64 * 3 + 8 numbers each
    assert np.array_equal(decode(plan, payload, model), smooth_images(30))


class OtherMachine(nn.Module):
    """A layer whose results are off by a little, as on another machine."""

    def __init__(self, layer: nn.Module, error: float, seed: int):
        super().__init__()
        self.layer, self.error = layer, error
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.layer(*inputs)
        return output + self.error * (2 * torch.rand(output.shape, generator=self.generator, dtype=output.dtype) - 1)


def test_recorded_decisions_bridge_two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a coarser tolerance than in earnest, so that a few images have many decisions."""
    monkeypatch.setattr(logit_levels, "TOLERANCE", 2.0**-10)
    monkeypatch.setattr(self_test, "_SELF_TEST_TOLERANCE", 1.0)
    model, pixels = tiny_vae(likelihood="bernoulli").double(), smooth_images(40, is_binary=True)
    to_latents, last = model.encoder.to_latents, model.decoder.stages[-1][-1]

    def move_to_machine(seed: int) -> None:
        model.encoder.to_latents = OtherMachine(to_latents, 2.0**-14, seed)
        model.decoder.stages[-1][-1] = OtherMachine(last, 2.0**-14, seed)

    move_to_machine(1)
    plan, payload = coded(pixels, model)
    assert payload[0] > 50  # decisions
    for seed in (2, 3):
        move_to_machine(seed)
        assert np.array_equal(decode(plan, payload, model), pixels)


def test_a_machine_with_other_arithmetic_is_refused_before_it_decodes() -> None:
    model, pixels = tiny_vae(is_ladder=True).double(), smooth_images(2, is_binary=True)
    plan, payload = coded(pixels, model)
    with torch.no_grad():
        model.decoder.to_pixels.weight *= 1 + 1e-8
    with pytest.raises(ValueError, match=r"self-test must differ by less than 1\.5e-11, got .* Nothing was written"):
        decode(plan, payload, model)


def test_a_model_in_single_precision_is_refused() -> None:
    model = tiny_vae()
    model.encoder.double()
    with torch.no_grad():
        model.decoder.forward = lambda z, labels: (
            type(model.decoder).forward(model.decoder, z.float(), labels).double()
        )
        with pytest.raises(ValueError, match="must not depend on how many images are computed at once"):
            coded(smooth_images(2, is_binary=True), model)


def test_a_stack_that_is_not_the_encoders_is_noticed() -> None:
    model, pixels = tiny_vae(likelihood="discretized_logistic").double(), smooth_images(5)
    plan, payload = coded(pixels, model)
    others = [payload[:9] + bytes([payload[9] ^ 4]) + payload[10:], payload[:1] + payload[-8:]]
    for other in others:
        with pytest.raises(ValueError, match="must"):
            decode(plan, other, model)


def test_what_cannot_be_coded_is_refused() -> None:
    pixels = smooth_images(2)
    for fields, message in [
        ({"prior": "realnvp"}, "prior of the model must be .normal., got 'realnvp'.* --prior normal"),
        ({"num_labels": 3}, "must have no classes, got 3"),
        ({"likelihood": "gaussian"}, "likelihood must be bernoulli, .* got gaussian"),
        ({"likelihood": "bernoulli"}, "must be black and white"),
        ({"num_channels": 3}, r"shape \(3, 8, 8\) of the model .* got uint8 of shape \(2, 1, 8, 8\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            coded(pixels, tiny_vae(**fields).double())
    with pytest.raises(ValueError, match="Images must have the shape"):
        coded(pixels[:0], tiny_vae().double())


def test_the_first_image_gets_the_words_that_it_needs() -> None:
    """Of those that are there when its latents are drawn, none is spare."""
    model = tiny_vae(is_ladder=True, likelihood="discretized_logistic").double()
    plan, _ = coded(smooth_images(1), model)
    assert plan.batches == [(1, 1)] and 0 < plan.initial_words < 100
    stack = StackCoder()
    stack.put_below(initial_words(plan.initial_words - 1))
    networks = vae_image_codec.VAENetworks(model)
    symbols = vae_image_codec.build_pixel_symbols(model.likelihood)
    rounding = vae_image_codec.Rounding()
    coder = vae_image_codec.BitsBackCoder(networks, symbols, stack, plan.spacing_bits, rounding)
    assert coder.push(smooth_images(1), 0) < 0


def trained(model: Any, pixels: np.ndarray) -> Any:
    images = torch.from_numpy(pixels).float() / 255
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        model(images).loss.backward()
        optimizer.step()
    return model.eval()
