"""transformers' pipelines where hfgen is imported: what they take, against the model's own methods."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel, PreTrainedModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hfgen.image_processing import to_pixel_values
from hfgen.models import image_pipelines

from .tiny_models import SIZE, build_models, save_models


GENERATION, RECONSTRUCTION = "unconditional-image-generation", "image-to-image"
ANOMALIES, FEATURES = "image-anomaly-detection", "image-feature-extraction"


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return build_models()


@pytest.fixture(scope="module")
def home(models: dict[str, PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(models, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Color, gray and transparent, of different sizes."""
    draw = np.random.default_rng(0)
    shapes = {"RGB": (20, 30, 3), "L": (8, 12), "RGBA": (9, 7, 4)}
    return [Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8), mode) for mode, shape in shapes.items()]


@pytest.fixture
def served(tmp_path: Path, photos: list[Image.Image]) -> Iterator[str]:
    """The URL of the first photo."""
    photos[0].save(tmp_path / "photo.png")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with HTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/photo.png"
        server.shutdown()
        thread.join()


def make(task: str, home: Path, name: str, **options: Any) -> Any:
    return pipeline(task, model=str(home / name), device="cpu", **options)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels_of(photo: Any, model: Any) -> torch.Tensor:
    """As hfgen's commands and training read an image."""
    return to_pixel_values(photo, model.config.num_channels, SIZE) / 255


def assert_same_image(picture: Image.Image, pixels: torch.Tensor) -> None:
    """Pixels (channels, height, width) in [0, 1], to one level of 255."""
    array = np.asarray(picture).reshape(picture.height, picture.width, -1).transpose(2, 0, 1)
    assert array.shape == tuple(pixels.shape)
    np.testing.assert_allclose(array / 255, pixels.detach().numpy(), atol=1.01 / 255)


# Drawing


@pytest.mark.parametrize("name", ["vae", "ladder_vae", "gan"])
def test_pictures_are_those_of_sample(name: str, home: Path, models: dict[str, Any]) -> None:
    draw = make(GENERATION, home, name)
    # Only the loaded model is the same to the bit: its weights lie elsewhere in memory, which matters to some kernels.
    sample, expected = draw.model.sample, draw.model.sample(5, generator=seeded(3))
    torch.testing.assert_close(expected, models[name].sample(5, generator=seeded(3)))

    pictures = draw(5, seed=3)

    assert len(pictures) == 5
    for picture, pixels in zip(pictures, expected):
        assert_same_image(picture, pixels)
    assert torch.equal(draw(num_images=5, generator=seeded(3), output_type="pt"), expected)
    assert np.array_equal(draw(5, seed=3, output_type="np"), expected.numpy())
    assert len(draw()) == 1 and len(draw(batch_size=4)) == 4  # as in diffusers
    generator = seeded(3)
    parts = torch.cat([sample(n, labels=labels, generator=generator) for n, labels in (
        (2, [0, 1] if name == "gan" else None), (2, [2, 0] if name == "gan" else None),
        (1, [1] if name == "gan" else None))])  # fmt: skip
    assert torch.equal(draw(5, batch_size=2, seed=3, output_type="pt"), parts)


def test_drawing_takes_classes_and_the_models_own_factor(home: Path, models: dict[str, Any]) -> None:
    draw = make(GENERATION, home, "vae-classes", output_type="pt")
    by_name = draw(2, labels="dog", seed=1, temperature=0.5)
    assert torch.equal(by_name, models["vae-classes"].sample(2, labels=1, temperature=0.5, generator=seeded(1)))
    assert torch.equal(draw(2, labels=[0, 1], seed=1), draw(2, labels=torch.tensor([0, 1]), seed=1))
    gan = make(GENERATION, home, "gan", truncation=0.3, output_type="pt")
    assert torch.equal(gan(3, seed=1), models["gan"].sample(3, truncation=0.3, generator=seeded(1)))


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [("vae", {"truncation": 0.5}, "Use temperature"), ("gan", {"temperature": 0.5}, "Use truncation"),
     ("vae", {"labels": 1}, "labels must be None"), ("gan", {"labels": [0, 1]}, "one for each of 3 images, got 2"),
     ("gan", {"labels": 7}, "classes are 0"), ("vae", {"num_images": 0}, "num_images must be a positive"),
     ("vae", {"seed": 1, "generator": torch.Generator()}, "must not both"), ("vae", {"steps": 3}, "steps is not an"),
     ("vae", {"output_type": "jpg"}, "output_type must be one of pil, pt, np")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(name: str, arguments: dict[str, Any], text: str, home: Path) -> None:
    with pytest.raises(ValueError, match=text):
        make(GENERATION, home, name)(**{"num_images": 3, **arguments})


# Reconstruction


def reconstruction(model: Any, pixels: torch.Tensor, labels: Any = None) -> torch.Tensor:
    with torch.no_grad():
        if hasattr(model, "decode_symbols"):
            return model.decode_symbols(model.encode_symbols(pixels), size=pixels.shape[2:])
        if hasattr(model, "log_likelihood"):
            return model.decode(model.encode(pixels, labels).latent_dist.mode(), labels).sample
        return model.decode(model.encode(pixels))


@pytest.mark.parametrize("name", ["autoencoder", "autoencoder-color", "vae", "ladder_vae"])
def test_images_of_any_kind_are_reconstructed(
    name: str, home: Path, models: dict[str, Any], photos: list[Image.Image], tmp_path: Path, served: str
) -> None:
    reconstruct, model = make(RECONSTRUCTION, home, name), models[name]
    expected = [reconstruction(model, pixels_of(photo, model))[0] for photo in photos]
    path, array = tmp_path / "photo.png", np.asarray(photos[0])
    encoded = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy())

    for kind in (path, str(path), served, encoded, path.read_bytes(), photos[0], array, tensor, tensor / 255):
        assert_same_image(reconstruct(kind), expected[0])
    for several in (photos, tuple(photos)):  # of different sizes, in one batch
        found = reconstruct(several, batch_size=2)
        assert isinstance(found, list) and len(found) == 3
        for picture, pixels in zip(found, expected):
            assert_same_image(picture, pixels)
    batch = reconstruct(np.stack([array, array]), output_type="pt")
    assert len(batch) == 2
    torch.testing.assert_close(batch[1], expected[0])
    assert reconstruct([]) == []


def test_datasets_and_generators_are_read_one_by_one(
    home: Path, models: dict[str, Any], photos: list[Image.Image]
) -> None:
    reconstruct, model = make(RECONSTRUCTION, home, "vae", output_type="pt"), models["vae"]
    expected = [reconstruction(model, pixels_of(photo, model))[0] for photo in photos]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": photos, "label": [0, 1, 2]}, features=features)
    read = []

    def generated() -> Iterator[Image.Image]:
        for photo in photos:
            read.append(photo)
            yield photo

    for source in (rows["image"], KeyDataset(rows, "image"), rows, iter(photos), rows.to_iterable_dataset()):
        found = list(reconstruct(source))
        assert len(found) == 3
        for images, pixels in zip(found, expected):
            torch.testing.assert_close(images, pixels, atol=1e-5, rtol=0)
    lazy = iter(reconstruct(generated()))
    next(lazy)
    assert len(read) < 3
    with pytest.raises(ValueError, match="have its image under"):
        reconstruct({"picture": photos[0]})


def test_a_conditional_vae_needs_the_class_of_each_image(
    home: Path, models: dict[str, Any], photos: list[Image.Image]
) -> None:
    reconstruct, model = make(RECONSTRUCTION, home, "vae-classes", output_type="pt"), models["vae-classes"]
    pixels = pixels_of(photos[0], model)
    cat, dog = (reconstruction(model, pixels, [label])[0] for label in (0, 1))
    assert not torch.allclose(cat, dog)
    rows = [{"image": photos[0], "label": 0}, {"image": photos[0], "label": "dog"}]
    for found in (reconstruct([photos[0]] * 2, labels=["cat", 1]), reconstruct(rows, batch_size=2)):
        torch.testing.assert_close(found[0], cat)
        torch.testing.assert_close(found[1], dog)
    torch.testing.assert_close(reconstruct(photos[0], labels=1), dog)
    with pytest.raises(ValueError, match="labels must be given"):
        reconstruct(photos[0])
    with pytest.raises(ValueError, match="This model knows no classes"):
        make(RECONSTRUCTION, home, "vae")(photos[0], labels=1)


def test_a_codec_keeps_the_size_of_images_and_takes_a_quality(
    home: Path, models: dict[str, Any], photos: list[Image.Image]
) -> None:
    reconstruct, model = make(RECONSTRUCTION, home, "codec", output_type="pt"), models["codec"]
    for found, photo in zip(reconstruct(photos, batch_size=3, quality=1.0), photos):
        pixels = to_pixel_values(photo, model.config.num_channels) / 255
        expected = model.decode_symbols(model.encode_symbols(pixels, 1.0), 1.0, tuple(pixels.shape[2:]))
        torch.testing.assert_close(found, expected[0])
        assert found.shape[1:] == (photo.height, photo.width)
    with pytest.raises(ValueError, match="quality must be left out"):
        make(RECONSTRUCTION, home, "vae")(photos[0], quality=0.5)


def test_images_that_cannot_be_read_are_refused(home: Path, tmp_path: Path, served: str) -> None:
    reconstruct = make(RECONSTRUCTION, home, "vae")
    (tmp_path / "text.png").write_text("no image")
    for wrong, text in {
        str(tmp_path / "text.png"): "text.png: must be readable, got corrupt",
        str(tmp_path / "none.png"): "No such file",
        served.replace("photo", "none"): "URL that can be read", "data:image/png;base64,?": "must be base64",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=text):
            reconstruct(wrong)
    with pytest.raises(ValueError, match="must be an image or several"):
        reconstruct(None)
    bert = BertModel(BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
    for task in (GENERATION, RECONSTRUCTION, ANOMALIES):
        with pytest.raises(ValueError, match="model must be one of hfgen's that can"):
            pipeline(task, model=bert)


# Anomalies and features


def test_anomalies_have_scores_decisions_and_maps(
    home: Path, models: dict[str, Any], photos: list[Image.Image]
) -> None:
    detect, model = make(ANOMALIES, home, "autoencoder"), models["autoencoder"]
    expected = [model.predict_anomaly(pixels_of(photo, model)) for photo in photos]

    found = detect(photos, batch_size=3)

    for one, output in zip(found, expected):
        assert one["score"] == pytest.approx(output.scores.item(), rel=1e-4)
        assert one["is_anomaly"] is bool(output.is_anomaly)
        torch.testing.assert_close(one["map"], output.maps[0], atol=1e-5, rtol=1e-3)
        assert one["heatmap"].mode == "RGB" and one["heatmap"].size == SIZE[::-1]
    scores = sorted(one["score"] for one in found)
    decisions = detect(photos, threshold=scores[1])
    assert sorted(one["is_anomaly"] for one in decisions) == [False, False, True]
    assert make(ANOMALIES, home, "autoencoder-color")(photos[0])["is_anomaly"] is None
    with pytest.raises(ValueError, match=r"can detect anomalies, got VAEModel"):
        make(ANOMALIES, home, "vae")


@pytest.mark.parametrize("name", ["autoencoder", "autoencoder-color", "vae", "ladder_vae", "codec"])
def test_transformers_own_pipeline_extracts_latents(name: str, home: Path, models: dict[str, Any]) -> None:
    """Of gray and color images. They have the model's size, as it converts color only after it has resized them."""
    extract, model = make(FEATURES, home, name), models[name]
    levels = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    for photo in (Image.fromarray(levels), Image.fromarray(levels[..., 0])):
        features = torch.tensor(extract(photo))
        with torch.no_grad():
            pixels = to_pixel_values(photo, 3) / 255 if photo.mode == "RGB" else pixels_of(photo, model)
            output = model(pixels)
        torch.testing.assert_close(features, output[0])
        assert output[0] is not output.loss and features.shape[0] == 1 and features.numel() > 1


# How transformers finds them


def test_a_model_in_memory_and_a_bare_folder_need_no_image_processor(
    models: dict[str, Any], photos: list[Image.Image], home: Path, tmp_path: Path
) -> None:
    models["vae"].save_pretrained(tmp_path)
    expected = make(RECONSTRUCTION, home, "vae", output_type="pt")(photos[0])
    for model in (models["vae"], str(tmp_path)):
        found = pipeline(RECONSTRUCTION, model=model, device="cpu")(photos[0], output_type="pt")
        torch.testing.assert_close(found, expected)


def test_a_saved_pipeline_is_the_folder_again(home: Path, tmp_path: Path) -> None:
    make(RECONSTRUCTION, home, "vae").save_pretrained(tmp_path)

    old, new = (json.loads((folder / "config.json").read_text()) for folder in (home / "vae", tmp_path))
    assert new == old and set(new["custom_pipelines"]) == {GENERATION, RECONSTRUCTION}
    assert (tmp_path / "image_pipelines.py").is_file() and (tmp_path / "preprocessor_config.json").is_file()


def test_long_inputs_show_progress_and_short_ones_do_not(
    home: Path, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reconstruct, draw = make(RECONSTRUCTION, home, "vae"), make(GENERATION, home, "vae")
    capsys.readouterr()
    reconstruct(photos), draw(4, batch_size=2)
    assert "%" not in capsys.readouterr().err
    monkeypatch.setattr(image_pipelines, "PROGRESS_AFTER", 0)
    reconstruct(photos)
    assert "/3" in capsys.readouterr().err
    draw(4, batch_size=2)
    assert "/2" in capsys.readouterr().err
