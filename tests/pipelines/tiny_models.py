"""A tiny model of each family in a folder, as training or `save_pretrained` leaves it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

import hfgen
from hfgen.image_processing import build_image_processor
from hfgen.pipelines.repository_files import write_diffusers_files


SIZE = (8, 12)


def build_models() -> dict[str, PreTrainedModel]:
    """Gray and color, conditional and not."""
    torch.manual_seed(0)
    common = {"image_size": list(SIZE), "hidden_channels": [4, 6]}
    sizes = {**common, "hidden_size": 16, "latent_dim": 3}
    vae = {**sizes, "num_prior_couplings": 2, "prior_hidden_size": 8}
    gan = {"image_size": list(SIZE), "generator_channels": [6, 4], "latent_dim": 5}
    codec = {**common, "latent_dim": 3, "num_levels": 3, "max_symbol": 7}
    models: dict[str, PreTrainedModel] = {
        "autoencoder": hfgen.AutoencoderModel(hfgen.AutoencoderConfig(**sizes, anomaly_threshold=0.05)),
        "autoencoder-color": hfgen.AutoencoderModel(hfgen.AutoencoderConfig(**sizes, num_channels=3)),
        "vae": hfgen.VAEModel(hfgen.VAEConfig(**vae)),
        "vae-classes": hfgen.VAEModel(hfgen.VAEConfig(**vae, num_channels=3, id2label={0: "cat", 1: "dog"})),
        "ladder_vae": hfgen.LadderVAEModel(hfgen.LadderVAEConfig(**vae, num_levels=[1, 2])),
        "gan": hfgen.GANModel(hfgen.GANConfig(**gan, num_labels=3)),
        "codec": hfgen.CodecModel(hfgen.CodecConfig(**codec)),
    }
    for model in models.values():
        for parameter in model.parameters():  # networks that start as the identity or at 0 would hide mistakes
            torch.nn.init.normal_(parameter, std=0.2)
        model.eval()
    return models


def save_models(models: dict[str, PreTrainedModel], home: Path) -> Path:
    for name, model in models.items():
        model.save_pretrained(home / name)
        build_image_processor(model.config.num_channels, SIZE).save_pretrained(home / name)
        write_diffusers_files(home / name)
    return home
