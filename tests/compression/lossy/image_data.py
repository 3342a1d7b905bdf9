"""Writes what test_image_files.py reads: a model, images and their file.

python -m tests.compression.lossy.image_data
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hfgen import CodecConfig, CodecModel
from hfgen.compression import compress_images, decompress


DATA = Path(__file__).parents[1] / "data"


def tiny_codec(**fields: object) -> CodecModel:
    """With tables that were counted on noise."""
    torch.manual_seed(0)
    sizes = {"image_size": 8, "num_channels": 1, "hidden_channels": [4, 6], "num_residual_blocks": 1, "latent_dim": 3}
    model = CodecModel(CodecConfig(**{**sizes, "num_levels": 3, "max_symbol": 3, **fields})).eval()
    model.freeze_tables([torch.rand(8, model.config.num_channels, 16, 16)])
    return model


def write_data(folder: Path, model: CodecModel) -> None:
    """Writes the model, two images, their file, and what it is decompressed to."""
    model.save_pretrained(folder / "codec")
    # Without the code that is saved beside it, which changes with the model's file.
    for code in (folder / "codec").glob("*.py"):
        code.unlink()
    path = folder / "codec" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["auto_map"], config["custom_pipelines"]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    noise = np.random.default_rng(0).integers(0, 256, (21, 34), dtype=np.uint8)
    ramp = (np.arange(40)[:, None] * np.arange(24)) % 256
    for name, pixels in (("noise", noise), ("ramp", ramp.astype(np.uint8))):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    compress_images([folder / "noise.png", folder / "ramp.png"], folder / "images.hfz", folder / "codec", quality=1.0)
    decompress(folder / "images.hfz", folder / "images", folder / "codec")


if __name__ == "__main__":
    write_data(DATA, tiny_codec())
