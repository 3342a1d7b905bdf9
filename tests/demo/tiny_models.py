"""Tiny models, untrained, whose pictures differ clearly from place to place."""

from __future__ import annotations

from pathlib import Path

import torch

from hfgen import (
    AutoencoderConfig,
    AutoencoderModel,
    GANConfig,
    GANModel,
    GPTConfig,
    GPTForCausalLM,
    LadderVAEConfig,
    LadderVAEModel,
    VAEConfig,
    VAEModel,
    build_character_tokenizer,
)


def save_vae(folder: Path) -> Path:
    """Of 3 latents with a learned prior, for gray images of 8 x 8 pixels."""
    torch.manual_seed(0)
    config = VAEConfig(image_size=8, hidden_channels=[4], hidden_size=8, latent_dim=3, prior_hidden_size=4,
                       num_prior_couplings=2)  # fmt: skip
    model = VAEModel(config)
    _make_lively(model.decoder)
    _make_lively(model.encoder)
    model.save_pretrained(folder)
    return folder


def save_autoencoder(folder: Path) -> Path:
    """Of 3 latents, for gray images of 8 x 8 pixels."""
    torch.manual_seed(0)
    model = AutoencoderModel(AutoencoderConfig(image_size=8, hidden_channels=[4], latent_dim=3))
    _make_lively(model)
    model.save_pretrained(folder)
    return folder


def save_ladder_vae(folder: Path) -> Path:
    """Of 3 latents on top and a level of 4 x 4, for gray images of 8 x 8 pixels."""
    torch.manual_seed(0)
    config = LadderVAEConfig(image_size=8, hidden_channels=[4], level_channels=[1], hidden_size=8, latent_dim=3,
                             prior_hidden_size=4, num_prior_couplings=2)  # fmt: skip
    model = LadderVAEModel(config)
    _make_lively(model)
    model.save_pretrained(folder)
    return folder


def save_gan(folder: Path) -> Path:
    """Of 3 classes, for color images of 8 x 8 pixels."""
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(["cat", "dog", "owl"]))}
    model = GANModel(GANConfig(image_size=8, num_channels=3, latent_dim=4, generator_channels=[4],
                               discriminator_channels=[4], **names))  # fmt: skip
    _make_lively(model.generator)
    model.save_pretrained(folder)
    return folder


def save_gpt(folder: Path) -> Path:
    """With a context of 24 characters."""
    torch.manual_seed(0)
    tokenizer = build_character_tokenizer("The quick brown fox jumps over a lazy dog.\n")
    tokenizer.save_pretrained(folder)
    model = GPTForCausalLM(GPTConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, max_position_embeddings=24))  # fmt: skip
    vocabulary = tokenizer.get_vocab()
    # An untrained model would write bytes that are no characters.
    model.generation_config.suppress_tokens = [vocabulary[token] for token in vocabulary if token.startswith("<")]
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def _make_lively(network: torch.nn.Module) -> None:
    """Weights large enough that small steps in latent space are steps in 8-bit pixels."""
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.6)
