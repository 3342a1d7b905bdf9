"""`hfgen sample`: what it draws, and into which files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import GANModel, image_grid, to_pil
from hfgen.cli import main

from .tiny_models import save_autoencoder, save_conditional_vae, save_gan, save_gpt, save_vae


@pytest.fixture
def gan(tmp_path: Path) -> Path:
    return save_gan(tmp_path / "gan")


def test_a_picture_holds_what_python_draws_with_the_same_seed(
    gan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    words = ["sample", str(gan), str(picture), "-n", "6", "--seed", "5", "--truncation", "0.5", "--json"]
    assert main(words) == 0
    generator = torch.Generator().manual_seed(5)
    images = GANModel.from_pretrained(gan).eval().sample(6, truncation=0.5, generator=generator)
    # Three classes: a column each.
    assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(image_grid(images, columns=3)))
    assert json.loads(capsys.readouterr().out) == {"output": str(picture), "images": 6, "seed": 5}


def test_a_folder_holds_the_same_images_one_by_one(
    gan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = tmp_path / "images", ["sample", str(gan), str(tmp_path / "images"), "-n", "11"]
    assert main(words) == 0
    generator = torch.Generator().manual_seed(0)
    expected = to_pil(GANModel.from_pretrained(gan).eval().sample(11, generator=generator))
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{number:02d}.png" for number in range(11)]
    assert all(np.array_equal(np.asarray(Image.open(file)), np.asarray(image)) for file, image in zip(files, expected))
    assert main(words) == 1  # another run replaces no folder
    assert "OUT must be a new file" in capsys.readouterr().err


def test_classes_go_on_from_one_batch_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_conditional_vae(tmp_path / "model", ["one", "two", "three"])
    monkeypatch.setattr("hfgen.commands.sample.BATCH_SIZE", 2)
    assert main(["sample", str(tmp_path / "model"), str(tmp_path / "images"), "-n", "5"]) == 0
    grays = [Image.open(file).getpixel((4, 4)) for file in sorted((tmp_path / "images").iterdir())]
    assert grays == [64, 128, 191, 64, 128]


@pytest.mark.parametrize(
    "labels, drawn",
    [
        ([], [0, 1, 2, 0]),
        (["two"], [1, 1, 1, 1]),
        (["2"], [2, 2, 2, 2]),
        (["0"], [0, 0, 0, 0]),
        (["1"], [2, 2, 2, 2]),
        (["two", "0"], [1, 0, 1, 0]),
    ],
)
def test_the_classes_that_are_asked_for_are_drawn(tmp_path: Path, labels: list[str], drawn: list[int]) -> None:
    save_conditional_vae(tmp_path, ["one", "two", "1"])
    flags = [word for label in labels for word in ("--label", label)]
    picture = tmp_path / "picture.png"

    assert main(["sample", str(tmp_path), str(picture), "--count", "4", "--columns", "4", *flags]) == 0

    image = Image.open(picture)
    middles = [image.getpixel((image.width * (2 * column + 1) // 8, image.height // 2)) for column in range(4)]
    assert middles == [[64, 128, 191][index] for index in drawn]


@pytest.mark.parametrize(
    "names, label, message",
    [
        (["one", "two", "three"], "four", "got 'four'. The classes are 0 (one), 1 (two), 2 (three)."),
        (["one", "two", "three"], "3", "got 3. The classes are 0 (one), 1 (two), 2 (three)."),
        ([], "3", "--label must be left out, got '3'. This model knows no classes."),
    ],
)
def test_classes_that_are_not_there_are_refused(
    tmp_path: Path, names: list[str], label: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_conditional_vae(tmp_path, names)
    assert main(["sample", str(tmp_path), str(tmp_path / "x.png"), "--label", label]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "x.png").exists()


def test_every_kind_of_picture_is_whole_or_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_vae(tmp_path / "model")
    for name in ("a.png", "a.JPG", "a.webp"):
        assert main(["sample", str(tmp_path / "model"), str(tmp_path / name), "-n", "2"]) == 0
        with Image.open(tmp_path / name) as image:
            image.load()
    for name, problem in [("a.xyz", "OUT must end in .png"), ("none/a.png", "in a folder that exists")]:
        assert main(["sample", str(tmp_path / "model"), str(tmp_path / name)]) == 1
        assert problem in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "model"), str(tmp_path / "b.png"), "--temperature", "-1"]) == 1
    assert "--temperature must be at least 0" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"model", "a.png", "a.JPG", "a.webp"}


def test_models_that_draw_no_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_gpt(tmp_path / "gpt")
    save_autoencoder(tmp_path / "ae")
    for name, advice in [("gpt", "Use hfgen generate"), ("ae", "Other models cannot draw images.")]:
        assert main(["sample", str(tmp_path / name), str(tmp_path / "x.png")]) == 1
        assert advice in capsys.readouterr().err
