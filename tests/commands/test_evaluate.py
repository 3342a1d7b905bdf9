"""`hfgen evaluate` for models and for folders of images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from hfgen import AutoencoderConfig, AutoencoderModel, GANConfig, GANModel, VAEConfig, VAEModel
from hfgen.cli import main
from training.evaluation import reference
from training.evaluation.feature_classifier import train_classifier


@pytest.fixture(autouse=True)
def quick_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier that has learned a little."""
    monkeypatch.setattr(reference, "load_classifier", lambda data, device, **_: train_classifier(data, device, 40))


def write_digits(folder: Path, first: int, last: int, size: int = 8) -> Path:
    folder.mkdir()
    for index, image in enumerate(load_digits().images[first:last]):
        Image.fromarray((image * 15.9).astype("uint8")).resize((size, size)).save(folder / f"{index:04d}.png")
    return folder


def evaluate(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_real_images_in_a_folder_are_better_than_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = evaluate(capsys, write_digits(tmp_path / "digits", 300, 450), "digits")
    (tmp_path / "noise").mkdir()
    for index in range(150):
        pixels = torch.randint(256, (8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        Image.fromarray(pixels.numpy()).save(tmp_path / "noise" / f"{index}.png")
    noise = evaluate(capsys, tmp_path / "noise", "digits")
    assert real["dataset"] == "digits" and real["metrics_details"]["compared_images"]["generated"] == 150
    assert real["metrics"]["classifier_fid"] < 0.3 * noise["metrics"]["classifier_fid"]
    assert real["metrics"]["coverage"] > 0.3 > noise["metrics"]["coverage"]
    assert noise["metrics"]["fresh_critic_accuracy"] > 0.9
    assert real["metrics_details"]["classifier_sha256"] == noise["metrics_details"]["classifier_sha256"]


@pytest.mark.parametrize("kind", ["gan", "conditional gan", "vae"])
def test_models_are_evaluated_like_folders(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    if kind == "vae":
        VAEModel(VAEConfig(image_size=8, hidden_channels=[4], hidden_size=8, latent_dim=2)).save_pretrained(tmp_path)
    else:
        config = GANConfig(
            image_size=8, latent_dim=4, generator_channels=[8, 4], num_labels=10 if "conditional" in kind else 0
        )
        GANModel(config).save_pretrained(tmp_path)
    found = evaluate(capsys, tmp_path, "digits", "--count", 100)
    assert found["metrics_details"]["compared_images"] == {"real": 297, "generated": 100}
    assert found["metrics"]["classifier_fid"] > found["metrics"]["classifier_fid_floor"] > 0
    assert ("label_accuracy" in found["metrics"]) == ("conditional" in kind)


def test_the_table_has_a_line_for_each_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(write_digits(tmp_path / "digits", 0, 60)), "digits"]) == 0
    output = capsys.readouterr().out
    assert "Classifier FID " in output and "Coverage" in output and "60 images of" in output
    assert "Classes of generated images (of real ones): 0 " in output


def test_what_cannot_be_measured_is_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(write_digits(tmp_path / "digits", 0, 3)), "digits"]) == 1
    assert "Not measured: precision, recall" in capsys.readouterr().out


def test_images_of_another_size_are_resized_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(capsys, write_digits(tmp_path / "digits", 0, 60, size=16), "digits")
    assert "16 x 16 pixels" in caplog.text and "8 x 8 of digits" in caplog.text


def test_a_folder_without_images_or_with_a_broken_one_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path), "digits"]) == 1
    assert "must hold a model or images" in capsys.readouterr().err
    folder = write_digits(tmp_path / "digits", 0, 9)
    (folder / "0005.png").write_bytes(b"no picture")
    assert main(["evaluate", str(folder), "digits"]) == 1
    error = capsys.readouterr().err
    assert "0005.png: " in error and "must be readable" in error


def test_a_model_that_draws_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = AutoencoderConfig(image_size=8, hidden_channels=[4], hidden_size=8, latent_dim=2)
    AutoencoderModel(config).save_pretrained(tmp_path)
    assert main(["evaluate", str(tmp_path), "digits"]) == 1
    assert "must be one of" in capsys.readouterr().err


def test_a_conditional_model_needs_its_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    GANModel(GANConfig(image_size=8, latent_dim=4, generator_channels=[8, 4], num_labels=3)).save_pretrained(tmp_path)
    assert main(["evaluate", str(tmp_path), "digits"]) == 1
    assert "the 3 classes" in capsys.readouterr().err
