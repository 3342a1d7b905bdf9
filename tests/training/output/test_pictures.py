"""Pictures of latents, read back pixel by pixel: with a model so simple that every cell is known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hfgen import VAEConfig, VAEModel
from training.output.pictures import (
    GAP,
    draw_anomalies,
    draw_latents,
    draw_reconstructions,
    images_needed,
    principal_directions,
)


class TwoPixels:
    """Images of two pixels are their own latents; reconstructions are darker by a tenth."""

    def encode(self, pixel_values: Tensor, labels: Tensor | None) -> SimpleNamespace:
        latents = pixel_values.flatten(1)
        posterior = SimpleNamespace(mode=lambda: latents, sample=lambda generator: latents)
        return SimpleNamespace(latent_dist=posterior)

    def decode(self, z: Tensor, labels: Tensor | None) -> SimpleNamespace:
        return SimpleNamespace(sample=z.view(-1, 1, 1, 2) - 0.1)

    def interpolate(self, a: Tensor, b: Tensor, steps: int, labels: Tensor | None) -> Tensor:
        return torch.stack([a.lerp(b, t) for t in torch.linspace(0, 1, steps).tolist()], dim=1)


def cells(picture: Image.Image, rows: int, columns: int, gaps_below: tuple[int, ...] = ()) -> Tensor:
    """The brightness in [0, 1] of both pixels of every cell, (rows, columns, 2). A picture of `TwoPixels` has cells of
    2 * scale x scale pixels with 2 in between, and more after these rows."""
    pixels = np.asarray(picture) / 255
    scale = (picture.width - 2 * (columns + 1)) // (2 * columns)
    found, top = torch.zeros(rows, columns, 2), 2
    for row in range(rows):
        for column in range(columns):
            left = 2 + column * (2 * scale + 2)
            for pixel in range(2):
                found[row, column, pixel] = pixels[top + scale // 2, left + pixel * scale + scale // 2]
        top += scale + 2 + (2 + GAP if row in gaps_below else 0)
    return found


def test_reconstructions_are_below_their_images() -> None:
    images = torch.rand(20, 1, 1, 2)
    picture = draw_reconstructions(images, images - 0.1)
    found = cells(picture, 6, 8, gaps_below=(1, 3))
    for index, image in enumerate(images):
        row, column = 2 * (index // 8), index % 8
        torch.testing.assert_close(found[row, column], image.flatten(), rtol=0, atol=0.01)
        torch.testing.assert_close(found[row + 1, column], (image.flatten() - 0.1).clamp(0), rtol=0, atol=0.01)
    assert (found[4:, 4:] == 1).all()  # nothing, in the last and incomplete rows
    assert torch.equal(cells(draw_latents(TwoPixels(), images)["reconstructions"], 6, 8, (1, 3)), found)


def test_strange_images_are_above_normal_ones_and_each_is_above_its_map() -> None:
    """Of two gray images the map is their gray value; it is 0 for a black one."""
    model = SimpleNamespace(predict_anomaly=lambda images: SimpleNamespace(maps=images[:, 0]))
    strange, normal = gray(1.0, 0.4), gray(0.0, 0.2)
    picture = np.asarray(draw_anomalies(model, strange, normal, threshold=0.4)).astype(int)
    height, width = (picture.shape[0] - GAP) // 4, picture.shape[1] // 2
    rows = [height // 2, height + height // 2, 2 * height + GAP + height // 2, 3 * height + GAP + height // 2]
    shown = picture[rows][:, [width // 2, width + width // 2]]
    # Twice the threshold is painted with four fifths of red, the threshold with two fifths, and half of it not at all.
    assert shown.tolist() == [
        [[255, 255, 255], [102, 102, 102]],
        [[255, 51, 51], [163, 61, 61]],
        [[0, 0, 0], [51, 51, 51]],
        [[0, 0, 0], [51, 51, 51]],
    ]
    # Without a threshold, the largest value of all maps decides.
    picture = np.asarray(draw_anomalies(model, strange, normal)).astype(int)
    assert picture[rows[1], width // 2].tolist() == [255, 51, 51]


def gray(*levels: float) -> Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 1, 4, 4)


def test_rows_of_an_interpolation_lead_from_one_image_to_another() -> None:
    images = torch.rand(5, 1, 1, 2)
    picture = draw_latents(TwoPixels(), images)["interpolation"]
    scale = math.ceil(512 / 20)
    path = picture.crop((2 * scale + 4 + GAP, 0, picture.width - (2 * scale + 4 + GAP), picture.height))
    ends = [picture.crop((0, 0, 2 * scale + 4, picture.height)),
            picture.crop((picture.width - 2 * scale - 4, 0, picture.width, picture.height))]  # fmt: skip
    found = torch.cat([cells(ends[0], 2, 1), cells(path, 2, 8), cells(ends[1], 2, 1)], dim=1)
    for row in range(2):
        a, b = images[2 * row].flatten(), images[2 * row + 1].flatten()
        expected = torch.stack([a, *(a.lerp(b, step / 7) for step in range(8)), b])
        torch.testing.assert_close(found[row], expected, rtol=0, atol=0.01)


def test_traversal_moves_one_image_through_the_aggregate_posterior() -> None:
    """Latents vary along (0.6, 0.8) and less along (0.8, -0.6): a row each, from -3 to +3 standard deviations."""
    strong, weak = torch.tensor([0.6, 0.8]), torch.tensor([0.8, -0.6])
    along, across = 0.1 * torch.tensor([1.0, 1, -1, -1]), 0.05 * torch.tensor([1.0, -1, 1, -1])
    points = 0.5 + along[:, None] * strong + across[:, None] * weak
    found = cells(draw_latents(TwoPixels(), points.view(4, 1, 1, 2))["traversal"], 2, 7)
    steps = torch.arange(-3.0, 4)[:, None]
    deviations = along.std(), across.std()
    expected = torch.stack([0.5 + across[0] * weak + steps * deviations[0] * strong,
                            0.5 + along[0] * strong + steps * deviations[1] * weak])  # fmt: skip
    torch.testing.assert_close(found, (expected - 0.1).clamp(0, 1), rtol=0, atol=0.01)


def test_directions_are_those_of_the_covariance_and_do_not_turn_around() -> None:
    points = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1, 5, 2, 4]) + 7
    directions = principal_directions(points, 3)
    values, vectors = torch.linalg.eigh(points.T.cov())
    variances = ((points - points.mean(0)) @ directions.T).var(0)
    torch.testing.assert_close(variances, values.flip(0)[:3])
    torch.testing.assert_close((directions @ vectors.flip(1)[:, :3]).abs(), torch.eye(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(principal_directions(-points, 3), directions, rtol=0, atol=1e-4)


def test_one_image_has_no_path_and_no_direction() -> None:
    assert set(draw_latents(TwoPixels(), torch.rand(1, 1, 1, 2))) == {"reconstructions"}


def test_pairs_of_a_conditional_model_are_of_one_class() -> None:
    class Recorder(TwoPixels):
        def interpolate(self, a: Tensor, b: Tensor, steps: int, labels: Tensor | None) -> Tensor:
            self.pairs = a[:, 0, 0].tolist(), b[:, 0, 0].tolist(), labels.tolist()  # type: ignore[union-attr]
            return super().interpolate(a, b, steps, labels)

    labels = torch.tensor([2, 0, 1, 0, 0, 2])
    images = torch.stack([labels / 10, torch.arange(6) / 10], dim=1).view(6, 1, 1, 2)
    model = Recorder()
    draw_latents(model, images, labels)
    expected = [(images[a].flatten().tolist(), images[b].flatten().tolist()) for a, b in ((1, 3), (0, 5))]
    assert list(zip(*model.pairs[:2])) == expected and model.pairs[2] == [0, 2]
    assert "interpolation" not in draw_latents(model, images[:3], labels[:3])


# What each picture shows, (columns, rows, scale): pairs of reconstructions, cells with both ends, cells.
@pytest.mark.parametrize(
    ("options", "reconstructions", "interpolation", "traversal"),
    [
        ({"image_size": 28, "num_labels": 10}, (8, 4, 3), (10, 6, 2), (7, 8, 3)),
        ({"image_size": [8, 16], "num_channels": 3, "num_labels": 3, "latent_type": "spatial", "latent_dim": 2},
         (8, 4, 4), (10, 6, 4), (7, 8, 5)),
        ({"image_size": [512, 256], "num_channels": 3, "hidden_channels": [2] * 6, "latent_dim": 1},
         (4, 1, 1), (5, 2, 1), (7, 1, 1)),
    ],
)  # fmt: skip
def test_pictures_of_every_kind_of_model(
    options: dict[str, Any],
    reconstructions: tuple[int, int, int],
    interpolation: tuple[int, int, int],
    traversal: tuple[int, int, int],
) -> None:
    torch.manual_seed(0)
    config = VAEConfig(**{"hidden_channels": [4, 8], "hidden_size": 16, "latent_dim": 9, **options})
    model = VAEModel(config).eval()
    height, width = config.image_size
    images = torch.rand(images_needed(height, width), config.num_channels, height, width)
    labels = torch.arange(len(images)) % config.num_labels if config.num_labels else None
    pictures = draw_latents(model, images, labels)

    def size(columns: int, rows: int, scale: int) -> tuple[int, int]:
        return columns * (width * scale + 2) + 2, rows * (height * scale + 2) + 2

    pair_width, pair_height = size(reconstructions[0], 2, reconstructions[2])
    assert pictures["reconstructions"].size == (pair_width, reconstructions[1] * (pair_height + GAP) - GAP)
    path_width, path_height = size(*interpolation)
    assert pictures["interpolation"].size == (path_width + 2 * (2 + GAP), path_height)
    assert pictures["traversal"].size == size(*traversal)
    assert {picture.mode for picture in pictures.values()} == {"L" if config.num_channels == 1 else "RGB"}
    torch.manual_seed(1)
    again = draw_latents(model, images, labels)
    assert all(again[name].tobytes() == picture.tobytes() for name, picture in pictures.items())


def test_fewer_of_large_images_are_needed() -> None:
    assert [images_needed(*size) for size in ((28, 28), (64, 64), (128, 64), (2000, 1000))] == [256, 256, 128, 16]
