"""Where to look in a space of many numbers: a plane to drag over, and the directions in which pictures differ most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


DIRECTIONS = 6
WEAKEST = 0.1  # as a share of the strongest: what is weaker hardly changes a picture
_BASES, _PASSES, _STEP = 16, 2048, 0.1


@dataclass(frozen=True)
class Directions:
    """Orthogonal directions around a place.

    Attributes:
        directions: (directions, numbers), unit vectors.
        scales: (directions,), how far latents usually lie in each.
    """

    directions: np.ndarray
    scales: np.ndarray

    def describe(self) -> dict[str, Any]:
        """For a page."""
        return {
            "directions": [[_rounded(value) for value in row] for row in self.directions],
            "scales": [_rounded(value) for value in self.scales],
        }


@dataclass(frozen=True)
class Plane:
    """What a map shows.

    Attributes:
        axes: of the map, from left to right and from bottom to top.
        extent: lowest and highest coordinate along each.
        words: what it is, in a sentence.
    """

    axes: Directions
    extent: list[list[float]]
    words: str


def find_plane(latents: np.ndarray, labels: np.ndarray | None) -> Plane:
    """The plane on which the latents of pictures are to be seen.

    Latents of two numbers are a plane. With at least three classes, it is the one through the means of the classes
    where those lie farthest apart, and otherwise that of the first two principal components.

    Args:
        latents: (pictures, numbers).
        labels: (pictures,), classes, or None.
    """
    centered = latents - latents.mean(axis=0)
    numbers = latents.shape[1]
    if numbers <= 2:
        directions, words = np.eye(2, numbers), f"The {'two latents' if numbers == 2 else 'one latent'} of a picture."
    elif labels is not None and len(np.unique(labels)) > 2:
        classes, members = np.unique(labels, return_inverse=True)
        means = np.stack([centered[members == index].mean(axis=0) for index in range(len(classes))])
        directions = _principal(means, 2)
        words = f"The plane in which the classes lie farthest apart, out of {numbers:,} dimensions."
    else:
        directions = _principal(centered, 2)
        words = f"The two strongest of {numbers:,} dimensions."
    places = centered @ directions.T
    return Plane(Directions(directions, _spread(places)), _extent(places), words)


def find_directions(latents: np.ndarray, plane: Plane) -> Directions:
    """The principal components of what a plane does not show, without those in which latents hardly differ."""
    centered = latents - latents.mean(axis=0)
    shown = plane.axes.directions
    rest = centered - centered @ shown.T @ shown
    if latents.shape[1] <= 2:
        return Directions(np.zeros((0, latents.shape[1])), np.zeros(0))
    directions = _principal(rest, min(DIRECTIONS, latents.shape[1] - 2, len(latents)))
    scales = _spread(rest @ directions.T)
    strong = scales > WEAKEST * max(plane.axes.scales.max(), 1e-12)
    return Directions(directions[strong], scales[strong])


@torch.no_grad()
def find_sensitive_directions(decode: Callable[[Tensor], Tensor], numbers: int) -> Directions:
    """The directions of standard normal latents that change pictures most: eigenvectors of the mean of J^T J, where J
    is the derivative of a picture with respect to its latents, by central differences at some places.

    Args:
        decode: latents (batch, numbers) -> images (batch, channels, height, width).
        numbers: of a latent.
    """
    generator = torch.Generator().manual_seed(0)
    bases = torch.randn(max(2, min(_BASES, _PASSES // (2 * numbers))), numbers, generator=generator)
    steps = _STEP * torch.eye(numbers)
    squares = torch.zeros(numbers, numbers, dtype=torch.float64)
    for base in bases:
        jacobian = (decode(base + steps) - decode(base - steps)).flatten(1).double() / (2 * _STEP)
        squares += jacobian @ jacobian.T / len(bases)
    values, vectors = torch.linalg.eigh(squares)
    strongest = values.flip(0)[:DIRECTIONS].clamp_min(0).sqrt()
    kept = strongest > WEAKEST * strongest[0]
    directions = _turned(vectors.T.flip(0)[:DIRECTIONS][kept].numpy())
    return Directions(directions, np.ones(len(directions)))


def _principal(rows: np.ndarray, count: int) -> np.ndarray:
    """Unit vectors of the first principal components of centered rows, as many as there are."""
    rows = rows.astype(np.float64)
    if len(rows) < count:
        rows = np.pad(rows, ((0, count - len(rows)), (0, 0)))
    return _turned(np.linalg.svd(rows, full_matrices=False)[2][:count])


def _turned(directions: np.ndarray) -> np.ndarray:
    """The same directions, with the largest number of each above 0: a sign is arbitrary, but should not change."""
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return directions * np.where(largest < 0, -1.0, 1.0)


def _spread(places: np.ndarray) -> np.ndarray:
    return np.maximum(places.std(axis=0), 1e-6)


def _extent(places: np.ndarray) -> list[list[float]]:
    """Room for all but the outermost pictures, and a margin."""
    low, high = np.quantile(places, 0.002, axis=0), np.quantile(places, 0.998, axis=0)
    margin = np.maximum(0.08 * (high - low), 1e-3)
    return [[_rounded(a), _rounded(b)] for a, b in zip(low - margin, high + margin)]


def _rounded(value: float) -> float:
    return float(f"{float(value):.6g}")
