"""The frames between two images: their ends are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hfgen import (
    AutoencoderConfig,
    AutoencoderModel,
    CodecConfig,
    CodecModel,
    GANConfig,
    GANModel,
    LadderVAEConfig,
    LadderVAEModel,
    VAEConfig,
    VAEModel,
)  # fmt: skip
from training.output.report import drawings
from training.output.report.drawings import FRAMES, WAYS, Ways, draw_real_images, draw_ways


STAGES: dict[str, Any] = {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3}


def away_from_its_start(model: Any) -> Any:
    """A fresh model's images are nearly the same, and one that gives means below 0 draws black images only."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch(count: int = 20, size: int = 8) -> dict[str, Tensor]:
    pixels = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels, "labels": torch.arange(count) % 3}


def cell(ways: Ways, row: int, column: int) -> np.ndarray:
    """The pixels of one frame."""
    pixels = np.asarray(ways.picture)
    height, width = pixels.shape[0] // ways.count, pixels.shape[1] // ways.frames
    return pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]


class Mirror:
    """An Auto-Encoder whose latents are its images."""

    config = AutoencoderConfig()

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def test_ends_are_images_and_the_middle_is_their_mean() -> None:
    images = batch()["pixel_values"]
    ways = draw_ways(Mirror(), batch())
    assert ways is not None and (ways.count, ways.frames, ways.size) == (WAYS, FRAMES, (8, 8))
    assert ways.between_real_images

    given = (images[:, 0] * 255).round().numpy()
    for row in range(WAYS):
        start, middle, end = (cell(ways, row, column).astype(int) for column in (0, FRAMES // 2, FRAMES - 1))
        assert any(np.array_equal(start, image) for image in given)
        assert any(np.array_equal(end, image) for image in given) and not np.array_equal(start, end)
        assert np.abs(middle - (start + end) / 2).max() <= 1


@pytest.mark.parametrize("build, config", [
    (AutoencoderModel, AutoencoderConfig(**STAGES)),
    (VAEModel, VAEConfig(**STAGES)),
    (VAEModel, VAEConfig(**STAGES, id2label={0: "a", 1: "b", 2: "c"})),
    (LadderVAEModel, LadderVAEConfig(**STAGES)),
    (GANModel, GANConfig(image_size=8, latent_dim=4, generator_channels=[8, 4])),
    (GANModel, GANConfig(image_size=8, latent_dim=4, generator_channels=[8, 4], id2label={0: "a", 1: "b"})),
], ids=["autoencoder", "vae", "conditional vae", "ladder_vae", "gan", "conditional gan"])  # fmt: skip
def test_every_model_of_images_has_ways(build: Any, config: Any) -> None:
    torch.manual_seed(0)
    model = away_from_its_start(build(config))

    ways = draw_ways(model, batch())

    assert ways is not None and ways.count == WAYS and ways.picture.size == (FRAMES * 8, WAYS * 8)
    assert ways.between_real_images == (not isinstance(model, GANModel))
    assert not np.array_equal(cell(ways, 0, 0), cell(ways, 0, FRAMES - 1))
    assert ways.picture.tobytes() == draw_ways(model, batch()).picture.tobytes()  # type: ignore[union-attr]


def test_a_codec_and_a_single_image_have_none() -> None:
    assert (
        draw_ways(
            CodecModel(
                CodecConfig(image_size=8, hidden_channels=[4, 6], latent_dim=3, num_levels=3, max_symbol=3)
            ).eval(),
            batch(),
        )
        is None
    )
    assert draw_ways(Mirror(), batch(1)) is None


def test_large_images_are_fewer_and_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "MOST_PIXELS", 2 * FRAMES * 32 * 32)
    monkeypatch.setattr(drawings, "LARGEST_SIDE", 16)
    ways = draw_ways(Mirror(), batch(20, size=32))

    assert ways is not None and ways.count == 2 and ways.picture.size == (FRAMES * 16, 2 * 16)
    assert ways.size == (32, 32)


def test_real_images_are_laid_out_as_samples() -> None:
    picture = draw_real_images(batch(70)["pixel_values"])
    assert picture.width == picture.height >= 512
