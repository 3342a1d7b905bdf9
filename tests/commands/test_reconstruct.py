"""`hfgen reconstruct`: pictures, folders and errors of known models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import AutoencoderConfig, AutoencoderModel, CodecConfig, CodecModel, VAEModel
from hfgen.cli import main

from .tiny_models import save_conditional_vae


@pytest.fixture
def black(tmp_path: Path) -> Path:
    """Reconstructs every image as black."""
    model = AutoencoderModel(AutoencoderConfig(image_size=4, hidden_channels=[2], hidden_size=2, latent_dim=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.decoder.convs[-1].bias.fill_(-1)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write_gray(path: Path, gray: int, size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (gray, gray, gray)).save(path)
    return path


def test_a_picture_has_the_images_above_their_reconstructions(
    black: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, gray in enumerate([51, 102, 255]):
        write_gray(tmp_path / "photos" / f"{number}.png", gray, size=4 + number)
    assert main(["reconstruct", str(black), str(tmp_path / "photos"), str(tmp_path / "out.png")]) == 0
    mse = (0.2**2 + 0.4**2 + 1) / 3
    words = f"3 images, mean squared error {mse:.4g} ({-10 * math.log10(mse):.1f} dB)."
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'out.png'}: {words}\n")
    picture = Image.open(tmp_path / "out.png")
    above = [picture.getpixel((picture.width * (2 * column + 1) // 6, picture.height // 4)) for column in range(3)]
    below = [picture.getpixel((picture.width * (2 * column + 1) // 6, picture.height * 3 // 4)) for column in range(3)]
    assert above == [51, 102, 255] and below == [0, 0, 0]


def test_a_folder_has_a_file_for_each_image(black: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write_gray(tmp_path / "a" / "x.jpg", 0), write_gray(tmp_path / "b" / "y.png", 255)
    assert main(["reconstruct", str(black), str(one), str(other), str(tmp_path / "out"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        {"file": str(one), "mse": 0.0, "psnr": None},
        {"file": str(other), "mse": 1.0, "psnr": pytest.approx(0.0)},
    ]
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["x.png", "y.png"]
    assert all(np.asarray(Image.open(file)).max() == 0 for file in files)


def test_a_conditional_model_is_given_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_conditional_vae(tmp_path / "model", ["one", "two", "three"])
    image = write_gray(tmp_path / "x.png", 51, size=8)
    assert main(["reconstruct", str(tmp_path / "model"), str(image), str(tmp_path / "o.png"), "--json",
                 "--label", "two"]) == 0  # fmt: skip
    drawn = VAEModel.from_pretrained(tmp_path / "model").eval().sample(1, ["two"])  # whatever the latents are
    expected = (drawn - 51 / 255).double().square().mean().item()
    assert json.loads(capsys.readouterr().out)["mse"] == pytest.approx(expected, rel=1e-5)


def test_a_codec_keeps_the_size_of_each_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = CodecConfig(
        num_channels=1, hidden_channels=[4, 8], num_residual_blocks=1, latent_dim=4, num_levels=3, max_symbol=7
    )
    CodecModel(config).save_pretrained(tmp_path / "model")
    files = [str(write_gray(tmp_path / f"{size}.png", 100, size)) for size in (9, 16)]
    assert main(["reconstruct", str(tmp_path / "model"), *files, str(tmp_path / "out"), "--quality", "1"]) == 0
    assert [Image.open(tmp_path / "out" / f"{size}.png").size for size in (9, 16)] == [(9, 9), (16, 16)]
    assert main(["reconstruct", str(tmp_path / "model"), *files, str(tmp_path / "out.png")]) == 1
    assert "IMAGES must have one size to be in one picture" in capsys.readouterr().err


def test_what_is_wrong_is_said_and_nothing_is_left(
    black: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_gray(tmp_path / "x.png", 0)
    same = write_gray(tmp_path / "other" / "x.jpg", 0)
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    for words, problem in [
        ([good, tmp_path / "broken.png"], "broken.png: must be readable, got corrupt or unknown data"),
        ([good, tmp_path / "missing.png"], "missing.png: there is no such file or folder."),
        ([good, same], "two that would become x.png"),
        ([tmp_path / "empty"], "IMAGES must hold images, got"),
    ]:
        assert main(["reconstruct", str(black), *map(str, words), str(tmp_path / "out")]) == 1
        assert problem in capsys.readouterr().err
    for flags, problem in [(["--label", "1"], "--label must be left out"), (["--quality", "1"], "is no codec")]:
        assert main(["reconstruct", str(black), str(good), str(tmp_path / "out.png"), *flags]) == 1
        assert problem in capsys.readouterr().err
    left = {"model", "x.png", "other", "broken.png", "empty"}
    assert {path.name for path in tmp_path.iterdir()} == left
