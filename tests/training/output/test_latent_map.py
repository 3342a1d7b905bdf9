"""The map of the latents: where its points are, and in which colors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from hfgen import AutoencoderConfig, AutoencoderModel, LadderVAEConfig, LadderVAEModel, VAEConfig, VAEModel
from hfgen.cards import newest_samples
from training.data.labels import NO_CLASS
from training.output import latent_map
from training.output.latent_map import FEWEST_IMAGES, draw_latent_map, draw_points, project

from ...runs import trained_runs


BLUE, ORANGE, GRAY = (31, 119, 180), (255, 127, 14), (208, 208, 208)


def clusters(per_class: int = 40, numbers: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centers = 8 * rng.standard_normal((3, numbers))
    labels = np.repeat(np.arange(3), per_class)
    return (centers[labels] + rng.standard_normal((len(labels), numbers))).astype(np.float32), labels


def share_of(picture: Image, color: tuple[int, int, int]) -> float:
    """Of all pixels; the edges of points are blends."""
    distance = np.abs(np.asarray(picture).astype(int) - color).max(axis=-1)
    return float((distance <= 8).mean())


@pytest.mark.parametrize("numbers", [20, 200])
def test_clusters_stay_apart_and_the_map_is_the_same_each_time(numbers: int) -> None:
    points, labels = clusters(numbers=numbers)

    places = project(points)

    classifier = KNeighborsClassifier(1).fit(places[::2], labels[::2])
    assert classifier.score(places[1::2], labels[1::2]) == 1
    assert np.array_equal(project(points), places)


def test_one_or_two_numbers_are_places_by_themselves() -> None:
    points = np.random.default_rng(0).random((50, 2))
    assert np.array_equal(project(points), points)
    assert np.array_equal(project(points[:, :1]), points[:, :1] * [1, 0])


def test_collapsed_latents_are_one_place_and_diverged_ones_an_error() -> None:
    assert np.ptp(project(np.full((50, 8), 0.3)), axis=0).max() == 0
    with pytest.raises(ValueError, match="latents must be finite, got NaN"):
        project(np.full((50, 8), np.nan))


def test_as_few_images_as_are_drawn_can_be_placed() -> None:
    assert np.isfinite(project(clusters()[0][:FEWEST_IMAGES])).all()


def test_colors_are_classes() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((400, 2))
    labels = torch.from_numpy(np.where(points[:, 0] < 0.5, 0, 1))
    picture = draw_points(points, labels, ["left", "right"])
    half = picture.width // 2
    left, right = picture.crop((0, 0, half - 60, picture.height)), picture.crop((half, 0, half + 150, picture.height))

    assert share_of(left, BLUE) > 0.02 and share_of(left, ORANGE) == 0
    assert share_of(right, ORANGE) > 0.02 and share_of(right, BLUE) == 0


def test_without_classes_there_is_one_color_and_no_legend() -> None:
    points = np.random.default_rng(0).random((400, 2))
    for picture in (draw_points(points, None, []), draw_points(points, torch.zeros(400, dtype=torch.long), [])):
        assert share_of(picture, ORANGE) == 0 and np.asarray(picture)[:, -40:-12].min() < 255  # points up to the edge


def test_images_without_a_class_are_gray() -> None:
    points = np.random.default_rng(0).random((400, 2))
    labels = torch.full((400,), NO_CLASS)
    assert share_of(draw_points(points, labels, ["a", "b"]), GRAY) > 0.02


@pytest.mark.parametrize("count, has_legend", [(1, True), (20, True), (21, False), (300, False)])
def test_a_legend_has_as_many_classes_as_colors_can_tell_apart(count: int, has_legend: bool) -> None:
    points = np.random.default_rng(0).random((600, 2))
    picture = draw_points(points, torch.arange(600) % count, [f"class {number}" for number in range(count)])
    margin = np.asarray(picture)[picture.height * 3 // 4 :, -20:-5]

    assert (margin.min() == 255) == has_legend


def test_any_name_can_be_a_class() -> None:
    points = np.random.default_rng(0).random((10, 2))
    plain = draw_points(points, torch.arange(10) % 2, ["a", "b"])
    odd = draw_points(points, torch.arange(10) % 2, ["_$x^", "long " * 50])

    assert odd.size == plain.size and odd.tobytes() != plain.tobytes()


def data(count: int, labels: Tensor | None, names: list[str]) -> Any:
    """Evaluation images like those of a run."""
    pixels = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def eval_batches(batch_size: int, device: torch.device, limit: int) -> Any:
        for rows in torch.arange(min(count, limit)).split(batch_size):
            yield {"pixel_values": pixels[rows]} | ({} if labels is None else {"labels": labels[rows]})

    return SimpleNamespace(num_eval_examples=count, label_names=names, eval_batches=eval_batches)


STAGES: dict[str, Any] = {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3}


@pytest.mark.parametrize("model", [
    AutoencoderModel(AutoencoderConfig(**STAGES)),
    VAEModel(VAEConfig(**STAGES, likelihood="gaussian", id2label={0: "a", 1: "b"})),
    LadderVAEModel(LadderVAEConfig(**STAGES, likelihood="gaussian")),
], ids=lambda model: type(model).__name__)  # fmt: skip
def test_every_model_that_encodes_images_has_a_map(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(latent_map, "project", lambda latents: found.append(latents) or latents[:, :2])
    with torch.no_grad():
        pictures = draw_latent_map(model.eval(), data(30, torch.arange(30) % 2, ["a", "b"]), batch_size=7)

    assert list(pictures) == ["map"] and pictures["map"].mode == "RGB"
    assert found[0].shape == (30, 3) and share_of(pictures["map"], BLUE) > 0
    assert draw_latent_map(model, data(FEWEST_IMAGES - 1, None, []), batch_size=7) == {}


@pytest.mark.parametrize("family", ["autoencoder", "vae", "ladder_vae", "gan"])
def test_a_finished_run_has_a_map_in_its_card(family: str) -> None:
    run = trained_runs() / family
    samples = newest_samples(run)

    assert ("map" in samples) == (family != "gan")
    assert len(list((run / "samples").glob("*-map.png"))) == (family != "gan")  # drawn at the end only
    assert (f"samples/{samples['map'].name}" in (run / "README.md").read_text()) if "map" in samples else True
