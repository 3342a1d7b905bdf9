"""The bare loop trains the networks of the preset dcgan."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from hfgen import GANModel
from training.config.scripts import SCRIPTS
from training.tools.gan_rows import bare_dcgan
from training.tools.gan_rows.bare_dcgan import (
    FIELDS,
    KINDS_OF_LAYERS,
    PRESET,
    Player,
    as_model,
    build_discriminator,
    build_generator,
    initialize,
    preset_config,
    take_step,
)


CONFIG = preset_config((8, 8), 1)


def test_networks_are_those_of_the_preset() -> None:
    torch.manual_seed(0)
    bare = build_generator(CONFIG), build_discriminator(CONFIG)
    for network in bare:
        initialize(network)
    model = as_model(CONFIG, *bare)
    # No field of the model's config is left out
    assert {name for name in PRESET if name in type(CONFIG).__annotations__} == set(FIELDS)
    latents, pixels = torch.randn(5, CONFIG.latent_dim), torch.rand(5, 1, 8, 8)
    for mode in (True, False):
        model.train(mode)
        generator, discriminator = (network.train(mode) for network in bare)
        with torch.no_grad():
            assert torch.allclose((generator(latents) + 1) / 2, model(latents), atol=1e-6)
            logits = discriminator(2 * pixels - 1).squeeze(1)
            assert torch.allclose(logits, model.discriminate(pixels), atol=1e-5)


def test_weights_start_as_those_of_the_model() -> None:
    torch.manual_seed(0)
    bare, model = build_generator(CONFIG), GANModel(CONFIG)
    initialize(bare)
    for kind in KINDS_OF_LAYERS:
        own, theirs = ([m for m in part.modules() if isinstance(m, kind)] for part in (bare, model.generator))
        for layer, other in zip(own, theirs, strict=True):
            # The error of a mean and of a standard deviation from as many numbers, four times
            tolerance = 4 * 0.02 * (2 / layer.weight.numel()) ** 0.5
            own_weight, weight = layer.weight.detach(), other.weight.detach()
            assert abs(float(own_weight.mean() - weight.mean())) < tolerance
            assert abs(float(own_weight.std() - weight.std())) < tolerance
            assert layer.bias is None or not (layer.bias.any() or other.bias.any())


def test_step_lowers_both_losses_on_the_same_images() -> None:
    torch.manual_seed(0)
    generator, discriminator = (Player.of(build(CONFIG)) for build in (build_generator, build_discriminator))
    for player in (generator, discriminator):
        initialize(player.network)
    real, latents = torch.rand(16, 1, 8, 8) * 2 - 1, torch.randn(16, CONFIG.latent_dim)
    first = take_step(generator, discriminator, real, latents)
    # Two networks that know nothing: each image costs log 2, and the discriminator sees two halves
    assert first[0] == pytest.approx(2 * 0.693, abs=0.15)
    before = [weight.clone() for weight in generator.network.parameters()]
    for _ in range(10):
        last = take_step(generator, discriminator, real, latents)
    assert last[0] < first[0]
    assert any(not torch.equal(*pair) for pair in zip(before, generator.network.parameters()))
    group = generator.optimizer.param_groups[0]
    assert isinstance(generator.optimizer, torch.optim.Adam) and group["lr"] == 2e-4 and group["betas"] == (0.5, 0.999)


def test_training_counts_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    clock = itertools.count()  # of a machine that takes a second for a step
    monkeypatch.setattr(bare_dcgan, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    model, found = bare_dcgan.train(CONFIG, torch.zeros(40, 1, 8, 8), batch_size=16, seconds=9)
    # Three epochs of 16, 16 and 8 images
    assert found["examples_seen"] == 120 and found["steps"] == 9
    assert found["images_per_second"] == pytest.approx(120 / 9)
    assert found["num_parameters"] == GANModel(CONFIG).num_parameters()
    assert not model.training


def test_samples_are_measured_as_by_hfgen_train() -> None:
    task = {"data": {"dataset_name": "digits", "max_eval_samples": 40}, "seconds": 0.1, "seed": 0, "threads": 1}
    found = bare_dcgan.measure({**task, "quality_samples": 40})
    assert found["metrics"]["classifier_fid"] > 0 and 0 <= found["metrics"]["coverage"] <= 1
    assert SCRIPTS["gan"].presets["dcgan"] is PRESET
