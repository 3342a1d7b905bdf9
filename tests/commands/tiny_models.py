"""Tiny models in folders, and one whose images are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hfgen import (
    AutoencoderConfig,
    AutoencoderModel,
    GANConfig,
    GANModel,
    GPTConfig,
    GPTForCausalLM,
    VAEConfig,
    VAEModel,
    build_character_tokenizer,
)


def save_gan(folder: Path) -> Path:
    """Of three classes."""
    torch.manual_seed(0)
    config = GANConfig(image_size=8, latent_dim=4, num_labels=3, generator_channels=[4], discriminator_channels=[4])
    GANModel(config).save_pretrained(folder)
    return folder


def save_vae(folder: Path) -> Path:
    torch.manual_seed(0)
    VAEModel(VAEConfig(image_size=8, hidden_channels=[4], hidden_size=4, latent_dim=2)).save_pretrained(folder)
    return folder


def save_autoencoder(folder: Path) -> Path:
    torch.manual_seed(0)
    AutoencoderModel(AutoencoderConfig(image_size=8, hidden_channels=[4], latent_dim=3)).save_pretrained(folder)
    return folder


def save_gpt(folder: Path, model_class: Any = GPTForCausalLM) -> Path:
    """With a context of 16 characters, and a tokenizer of some; it ends no text by itself."""
    torch.manual_seed(0)
    tokenizer = build_character_tokenizer("The quick brown fox jumps over A lazy dog.\n")
    tokenizer.save_pretrained(folder)
    config = GPTConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    model = model_class(config)
    if model.can_generate():
        without_bytes(model, tokenizer)
    model.save_pretrained(folder)
    return folder


def without_bytes(model: Any, tokenizer: Any) -> None:
    """Keeps an untrained model from writing bytes that are no characters."""
    vocabulary = tokenizer.get_vocab()
    model.generation_config.suppress_tokens = [vocabulary[token] for token in vocabulary if token.startswith("<0x")]


def save_conditional_vae(folder: Path, names: list[str]) -> None:
    """Draws images of one gray value per class, 0.25, 0.5 and 0.75."""
    labels = {"id2label": dict(enumerate(names))} if names else {}
    sizes = {"image_size": 8, "hidden_channels": [4], "hidden_size": 4}
    model = VAEModel(VAEConfig(**sizes, likelihood="gaussian", hidden_act="relu", prior="normal", **labels))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        model.decoder.from_latents.weight[0, -3:] = torch.tensor([0.25, 0.5, 0.75])
        model.decoder.hidden.weight[:, 0] = 1
        model.decoder.stages[0][0].weight[0] = 0.25
    model.save_pretrained(folder)
