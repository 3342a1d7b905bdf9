"""Copies of training images, found among samples."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from training.evaluation import memorization
from training.evaluation.memorization import nearest, share_too_close


def test_nearest_points_are_those_of_another_implementation_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorization, "_BLOCK", 100)
    generator = torch.Generator().manual_seed(0)
    queries, points = (torch.randn(count, 5, generator=generator) + 1e3 for count in (17, 43))
    distances, indices = nearest(queries, points)
    expected, of_neighbors = NearestNeighbors(n_neighbors=1).fit(points.numpy()).kneighbors(queries.numpy())
    assert indices.tolist() == of_neighbors[:, 0].tolist()
    assert distances.tolist() == pytest.approx(expected[:, 0].tolist(), abs=1e-3)


def test_a_point_is_not_its_own_neighbor() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0]])
    distances, indices = nearest(points, points, itself=torch.arange(3))
    assert distances.tolist() == [1, 1, 2] and indices.tolist() == [1, 0, 1]


def test_copies_are_too_close_and_images_between_training_images_are_not() -> None:
    training = 2 * torch.arange(10.0)[:, None]  # neighbors at a distance of 2
    copies, between = training[:3] + 0.1, training[:1] - 3
    assert share_too_close(copies, training) == 1
    assert share_too_close(between, training) == 0
    assert share_too_close(torch.cat([copies, between]), training) == 0.75


def test_a_single_training_image_has_no_neighbor_to_compare_with() -> None:
    with pytest.raises(ValueError, match="points must hold another point for each query, got 1"):
        share_too_close(torch.zeros(2, 3), torch.zeros(1, 3))
