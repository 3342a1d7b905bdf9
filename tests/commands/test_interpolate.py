"""`hfgen interpolate`: the ends of the ways, and what lies between them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import AutoencoderModel, GANModel, VAEConfig, VAEModel, image_grid
from hfgen.cli import main
from hfgen.image_processing import to_pixel_values
from hfgen.models.latents import slerp

from .tiny_models import save_autoencoder, save_gan, save_vae


def pixels(image: Path | Image.Image) -> np.ndarray:
    return np.asarray(Image.open(image) if isinstance(image, Path) else image)


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(noise).save(file)
    return [str(file) for file in files]


def test_a_gan_goes_along_great_circles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_gan(tmp_path / "gan")
    picture = tmp_path / "way.png"
    words = ["interpolate", str(tmp_path / "gan"), str(picture), "--steps", "3", "-n", "2", "--seed", "7", "--json"]
    assert main([*words, "--truncation", "0.5"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(picture), "ways": 2, "steps": 3}
    model = GANModel.from_pretrained(tmp_path / "gan").eval()
    start, end = 0.5 * torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        images = torch.stack([model(slerp(start, end, t), [0, 1]) for t in (0.0, 0.5, 1.0)], dim=1)
    assert np.array_equal(pixels(picture), pixels(image_grid(images.flatten(0, 1), columns=3)))
    assert main([*words[:3], "--between", "a.png", "b.png"]) == 1
    assert "--between must be left out" in capsys.readouterr().err


def test_an_autoencoder_goes_straight_from_one_image_to_the_other(
    tmp_path: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    save_autoencoder(tmp_path / "model")
    words = ["interpolate", str(tmp_path / "model"), str(tmp_path / "way.png"), "--steps", "3"]
    assert main([*words, "--between", *photos]) == 0
    model = AutoencoderModel.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        a, b = model.encode(to_pixel_values(photos, 1).float() / 255)
        images = model.decode(torch.stack([a, (a + b) / 2, b]))
    difference = pixels(tmp_path / "way.png").astype(int) - pixels(image_grid(images, columns=3))
    assert np.abs(difference).max() <= 1  # a batch of another size rounds differently
    assert main(words) == 1
    assert "--between must name two images" in capsys.readouterr().err


def test_an_animation_goes_there_and_back(tmp_path: Path, photos: list[str]) -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "hidden_channels": [4], "hidden_size": 8, "latent_dim": 2}
    model = VAEModel(VAEConfig(**sizes, likelihood="gaussian", hidden_act="relu", prior="normal"))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.normal_()  # otherwise all images are nearly the same
    model.save_pretrained(tmp_path / "model")
    for name in ("way.gif", "way.webp"):
        words = ["interpolate", str(tmp_path / "model"), str(tmp_path / name), "--steps", "4", "--between", *photos]
        assert main(words) == 0
        assert Image.open(tmp_path / name).n_frames == 6
    # Without two images, it draws some.
    assert main(["interpolate", str(tmp_path / "model"), str(tmp_path / "drawn.png"), "-n", "3"]) == 0
    width, height = Image.open(tmp_path / "drawn.png").size
    assert round(width / height * 3) == 10


def test_what_makes_no_way_is_refused(tmp_path: Path, photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    save_vae(tmp_path / "m")
    for words, problem in [
        (["way"], "OUT must be a picture"),
        (["way.png", "--steps", "1"], "--steps must be at least 2, got 1"),
        (["way.png", "--between", photos[0], "missing.png"], "--between must name two files, got 'missing.png'"),
        (["way.png", "--between", *photos, "-n", "2"], "--count must be 1 with --between"),
    ]:
        assert main(["interpolate", str(tmp_path / "m"), str(tmp_path / words[0]), *words[1:]]) == 1
        assert problem in capsys.readouterr().err
    assert not list(tmp_path.glob("*way*"))
