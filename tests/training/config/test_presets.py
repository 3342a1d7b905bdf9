"""Presets: the settings of well-known GANs by name, between the defaults and the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfgen import GANConfig
from training.config.flags import as_recipe
from training.config.parser import parse
from training.config.scripts import GAN_PRESETS, SCRIPTS


def test_a_preset_overrides_defaults_and_recipe_and_flags_override_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("preset: dcgan\noutput_dir: x\nlatent_dim: 7\nadam_beta1: 0.25\n", encoding="utf-8")

    preset = parse(SCRIPTS["gan"], ["--preset", "dcgan", "--output_dir", "x"], GANConfig)
    both = parse(SCRIPTS["gan"], [str(recipe), "--adam_beta1", "0.125"], GANConfig)
    other = parse(SCRIPTS["gan"], [str(recipe), "--preset", "wgan-gp"], GANConfig)

    assert preset.model["discriminator_norm"] == "batch" and preset.model["latent_dim"] == 100
    assert (preset.run.learning_rate, preset.run.adam_beta1, preset.run.ema_decay) == (2e-4, 0.5, 0)
    assert both.model["latent_dim"] == 7 and both.run.adam_beta1 == 0.125 and both.run.learning_rate == 2e-4
    assert other.model["loss_type"] == "wasserstein" and other.extra.discriminator_steps == 3
    assert other.model["latent_dim"] == 7 and other.run.adam_beta1 == 0.25


@pytest.mark.parametrize("preset", GAN_PRESETS)
def test_presets_are_settings_that_exist(preset: str) -> None:
    arguments = parse(SCRIPTS["gan"], ["--preset", preset, "--output_dir", "x"], GANConfig)

    settings = as_recipe(arguments)
    assert {name: settings[name] for name in GAN_PRESETS[preset]} == GAN_PRESETS[preset]


def test_a_preset_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SystemExit, match="--preset: invalid choice: 'biggan'"):
        parse(SCRIPTS["gan"], ["--preset", "biggan", "--output_dir", "x"], GANConfig)


def test_more_than_a_whole_batch_cannot_be_penalized() -> None:
    with pytest.raises(SystemExit, match=r"--penalized_share must be at most 1, got 1\.5"):
        parse(SCRIPTS["gan"], ["--penalized_share", "1.5", "--output_dir", "x"], GANConfig)
