"""The latents of images as a column of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from datasets.fingerprint import Hasher
from PIL.Image import Image as Picture
from PIL.Image import fromarray
from transformers import pipeline

from hfgen import (
    AutoencoderConfig,
    AutoencoderModel,
    Embedder,
    GANConfig,
    GANModel,
    LadderVAEConfig,
    LadderVAEModel,
    VAEConfig,
    VAEModel,
)
from hfgen.image_processing import build_image_processor, to_pixel_values


STAGES: dict[str, Any] = {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3}


def build(family: str, seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    if family == "autoencoder":
        return AutoencoderModel(AutoencoderConfig(**STAGES, **fields)).eval()
    if family == "vae":
        return VAEModel(VAEConfig(**STAGES, likelihood="gaussian", **fields)).eval()
    return LadderVAEModel(LadderVAEConfig(**STAGES, likelihood="gaussian", **fields)).eval()


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    build_image_processor(model.config.num_channels, model.config.image_size).save_pretrained(folder)
    return folder


def pictures(count: int, mode: str = "L", size: tuple[int, int] = (8, 8)) -> list[Picture]:
    shape = size if mode == "L" else (*size, 3)
    pixels = np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)
    return [fromarray(image) for image in pixels]


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("family", ["autoencoder", "vae", "ladder_vae"])
def test_latents_are_those_of_the_feature_extraction_pipeline(tmp_path: Path, family: str, mode: str) -> None:
    folder = save(build(family, num_channels=1 if mode == "L" else 3), tmp_path)
    images = pictures(5, mode)
    extract = pipeline("image-feature-extraction", model=str(folder))

    latents = Embedder(folder, batch_size=2).encode(images)

    assert latents.dtype == np.float32
    np.testing.assert_allclose(latents, np.array([extract(image)[0] for image in images]), rtol=1e-4, atol=1e-5)


def test_map_adds_a_column_in_the_order_of_the_rows() -> None:
    model, images = build("autoencoder"), pictures(10)
    dataset = Dataset.from_dict({"name": list("abcdefghij"), "image": images}).cast_column("image", Image())
    embed = Embedder(model, batch_size=3)

    found = dataset.map(embed, batched=True, batch_size=4).cast_column("latents", embed.feature())

    assert found.features["latents"] == List(Value("float32"), length=3) and found["name"] == dataset["name"]
    with torch.no_grad():
        expected = model.encode(to_pixel_values(images, 1) / 255)
    np.testing.assert_allclose(np.array(found["latents"]), expected, rtol=1e-4, atol=1e-6)


def test_images_of_any_kind_are_made_to_fit_as_for_training() -> None:
    model, images = build("autoencoder"), pictures(4, "RGB", (12, 10))
    with torch.no_grad():
        expected = model.encode(to_pixel_values(images, 1, (8, 8)) / 255)

    np.testing.assert_allclose(Embedder(model).encode(images), expected, rtol=1e-4, atol=1e-6)


def test_spatial_latents_are_flattened() -> None:
    model, images = build("autoencoder", latent_type="spatial"), pictures(4)
    embed = Embedder(model)
    with torch.no_grad():
        expected = model.encode(to_pixel_values(images, 1) / 255)

    found = embed.encode(images).reshape(-1, *embed.latent_shape)

    assert embed.latent_shape == (3, 2, 2) and embed.feature().length == 12
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_conditional_model_encodes_images_given_their_classes() -> None:
    model = build("vae", id2label={0: "cat", 1: "dog"})
    embed, images = Embedder(model, label_column="animal"), pictures(2) * 2

    by_number = embed({"image": images, "animal": [0, 0, 1, 1]})["latents"]
    by_name = embed({"image": images, "animal": ["cat", "cat", "dog", "dog"]})["latents"]

    assert np.array_equal(by_number, by_name)
    assert np.abs(by_number[:2] - by_number[2:]).max() > 1e-3
    with pytest.raises(ValueError, match="label_column must be one of image, label, got 'animal'"):
        embed({"image": images, "label": [0, 0, 1, 1]})


def test_datasets_finds_a_column_that_it_has_computed_before(tmp_path: Path) -> None:
    folder = save(build("autoencoder"), tmp_path / "a")
    other = save(build("autoencoder", seed=1), tmp_path / "b")
    embed = Embedder(folder)
    before = Hasher.hash(embed)
    embed.encode(pictures(2))

    assert Hasher.hash(embed) == Hasher.hash(Embedder(folder)) == before
    assert Hasher.hash(Embedder(other)) != before


def test_a_model_in_training_goes_on_in_training() -> None:
    model, images = build("ladder_vae", dropout=0.5), pictures(3)
    expected = Embedder(model).encode(images)
    model.train()

    assert np.array_equal(Embedder(model).encode(images), expected) and model.training


def test_the_filter_of_the_image_processor_resizes(tmp_path: Path) -> None:
    model, images = build("autoencoder"), pictures(2, size=(20, 20))
    model.save_pretrained(tmp_path)
    build_image_processor(1, (8, 8), resample=0).save_pretrained(tmp_path)

    with torch.no_grad():
        expected = model.encode(to_pixel_values(images, 1, (8, 8), resample=0) / 255)
    np.testing.assert_allclose(Embedder(tmp_path).encode(images), expected, rtol=1e-4, atol=1e-6)


def test_a_column_of_images_is_found_or_named() -> None:
    embed, images = Embedder(build("autoencoder")), pictures(2)
    with pytest.raises(ValueError, match="got 0 among text"):
        embed({"text": ["a", "b"]})
    with pytest.raises(ValueError, match="got 2 among left, right"):
        embed({"left": images, "right": images})
    embed.image_column = "right"
    assert len(embed({"left": ["no", "image"], "right": images})["latents"]) == 2


def test_models_without_latents_of_images_are_refused(tmp_path: Path) -> None:
    model = GANModel(GANConfig(image_size=8, generator_channels=[6, 4], latent_dim=5))
    model.save_pretrained(tmp_path)
    for name in (model, tmp_path):
        with pytest.raises(
            ValueError, match="must be one of hfgen_autoencoder, hfgen_vae, hfgen_ladder_vae, got 'hfgen_gan'"
        ):
            Embedder(name)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Embedder(build("autoencoder"), batch_size=0)


def test_class_labels_of_a_dataset_are_numbers_for_a_conditional_model() -> None:
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    images = pictures(2)
    dataset = Dataset.from_dict({"image": images, "label": [1, 0]}, features=features)
    embed = Embedder(build("vae", id2label={0: "cat", 1: "dog"}))

    found = dataset.map(embed, batched=True)["latents"]

    np.testing.assert_allclose(np.array(found), embed.encode(images, ["dog", "cat"]), rtol=1e-5, atol=1e-6)
