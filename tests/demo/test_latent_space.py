"""Planes and directions, where they are known."""

from __future__ import annotations

import numpy as np
import torch

from hfgen.demo.latent_space import find_directions, find_plane, find_sensitive_directions


def test_two_latents_are_the_plane() -> None:
    latents = np.random.default_rng(0).normal(size=(500, 2)) * [1.0, 3.0] + [5.0, 0.0]
    plane = find_plane(latents, None)

    assert np.array_equal(plane.axes.directions, np.eye(2))
    assert np.allclose(plane.axes.scales, latents.std(axis=0))
    (left, right), (bottom, top) = plane.extent
    assert -4 < left < -2 and 2 < right < 4 and -12 < bottom < -6 and 6 < top < 12  # around the mean
    assert len(find_directions(latents, plane).directions) == 0


def test_one_latent_has_a_plane_too() -> None:
    plane = find_plane(np.arange(10.0)[:, None], None)
    assert np.array_equal(plane.axes.directions, [[1.0], [0.0]])


def test_the_plane_goes_through_the_classes() -> None:
    """The classes differ in dimensions 2 and 3; the pictures of each, far more, in dimension 0."""
    random = np.random.default_rng(0)
    labels = np.arange(600) % 4
    means = np.zeros((4, 5))
    means[:, 2], means[:, 3] = [-3, -3, 3, 3], [-1, 1, -1, 1]
    latents = means[labels] + random.normal(size=(600, 5)) * [10, 0.1, 0.1, 0.1, 1.0]

    plane = find_plane(latents, labels)
    assert np.abs(plane.axes.directions[:, [2, 3]]).min(axis=0).max() < 0.5
    assert np.linalg.norm(plane.axes.directions[0]) > 0.999
    between = np.array([plane.axes.directions @ (means[a] - means[b]) for a, b in ((0, 2), (0, 1))])
    assert abs(between[0, 0]) > 5.5

    without = find_plane(latents, None)
    assert abs(without.axes.directions[0, 0]) > 0.99
    rest = find_directions(latents, without)
    assert np.allclose(rest.directions @ without.axes.directions.T, 0, atol=1e-9)
    assert (np.diff(rest.scales) <= 0).all()


def test_what_pictures_hardly_depend_on_is_no_direction() -> None:
    latents = np.random.default_rng(0).normal(size=(500, 6)) * [3.0, 2.0, 1.0, 1e-3, 1e-3, 1e-3]
    rest = find_directions(latents, find_plane(latents, None))
    assert len(rest.directions) == 1 and abs(rest.directions[0, 2]) > 0.99


def test_sensitive_directions_of_a_linear_decoder_are_its_singular_vectors() -> None:
    matrix = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    matrix[4] = 0
    found = find_sensitive_directions(lambda latents: (latents @ matrix).view(-1, 3, 4, 4), 5)

    expected = np.linalg.svd(matrix.numpy(), full_matrices=False)[0].T[:4]
    assert found.directions.shape == (4, 5)
    assert np.allclose(np.abs((found.directions * expected).sum(axis=1)), 1, atol=1e-3)
