"""Tiny VAEs, and the files that test_lossless_files.py reads: python -m tests.compression.lossless.tiny_vae"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hfgen import LadderVAEConfig, LadderVAEModel, VAEConfig, VAEModel
from hfgen.compression import compress_lossless


DATA = Path(__file__).parents[1] / "data"
SIZES = {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 8, "latent_dim": 4, "num_mixtures": 3}
NOT_AT_REST = 0.1


def tiny_vae(is_ladder: bool = False, seed: int = 0, **fields: object) -> VAEModel | LadderVAEModel:
    """A model whose outputs differ from image to image; a fresh one begins with outputs near 0."""
    torch.manual_seed(seed)
    settings = {**SIZES, "num_channels": 1, "prior": "normal", "hidden_act": "relu", **fields}
    model = LadderVAEModel(LadderVAEConfig(**settings)) if is_ladder else VAEModel(VAEConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += NOT_AT_REST * torch.randn_like(parameter)
    return model.eval()


def smooth_images(count: int, num_channels: int = 1, is_binary: bool = False, seed: int = 0) -> np.ndarray:
    """Waves of random directions, (count, channels, 8, 8), uint8."""
    rng = np.random.default_rng(seed)
    place = np.arange(8) / 4
    across, down, phase = rng.normal(size=(3, count, num_channels, 1, 1))
    waves = np.sin(across * place[:, None] + down * place + 3 * phase)
    return (255 * (waves > 0) if is_binary else 127.5 * (waves + 1)).astype(np.uint8)


def write_data(folder: Path, model: LadderVAEModel | VAEModel) -> None:
    """Writes the model, images and their file."""
    model.save_pretrained(folder / "ladder-vae")
    for code in (folder / "ladder-vae").glob("*.py"):
        code.unlink()
    config = json.loads((folder / "ladder-vae" / "config.json").read_text())
    del config["auto_map"]
    (folder / "ladder-vae" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "waves").mkdir(exist_ok=True)
    for number, (pixels,) in enumerate(smooth_images(6)):
        Image.fromarray(pixels).save(folder / "waves" / f"wave {number}.png")
    (folder / "waves.hfz").unlink(missing_ok=True)
    compress_lossless([folder / "waves"], folder / "waves.hfz", folder / "ladder-vae")


if __name__ == "__main__":
    write_data(DATA, tiny_vae(is_ladder=True, likelihood="logistic_mixture"))
