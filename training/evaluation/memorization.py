"""Whether samples are copies of training images.

A sample is too close to the training set if it is nearer to some training image than that image is to all others
(Alaa et al. 2022, "How faithful is your synthetic data?", section 3, authenticity). By chance, this is true of many
images that nobody copied: the share among held-out images says of how many.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


_BLOCK = 8_000_000  # distances held at a time: 32 MB


def nearest(queries: Tensor, points: Tensor, itself: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Finds the nearest point to each query. Distances are computed in blocks of 8 million.

    Args:
        queries: (n, dimensions).
        points: (m, dimensions).
        itself: (n,) index of the point that a query is, and that does not count; None if queries are no points.

    Returns:
        distances (n,) and indices (n,) of the points.
    """
    if len(points) < (1 if itself is None else 2):
        raise ValueError(f"points must hold another point for each query, got {len(points)}. Give more images.")
    center = points.mean(0)  # A shift leaves distances as they are, and makes them more exact.
    queries, points = queries - center, points - center
    squares = (points * points).sum(1)
    indices = []
    for start in range(0, len(queries), max(1, _BLOCK // len(points))):
        chunk = queries[start : start + max(1, _BLOCK // len(points))]
        # |q - p|² without |q|², which all points have in common.
        relative = torch.addmm(squares, chunk, points.T, alpha=-2)
        if itself is not None:
            relative[torch.arange(len(chunk)), itself[start : start + len(chunk)]] = math.inf
        indices.append(relative.argmin(1))
    index = torch.cat(indices)
    return (queries - points[index]).norm(dim=1), index


def share_too_close(samples: Tensor, training: Tensor) -> float:
    """Returns the share of samples that are nearer to a training image than that image is to all others.

    Args:
        samples: (n, dimensions) features.
        training: (m, dimensions) features of the training images, m at least 2.
    """
    distances, images = nearest(samples, training)
    hit, positions = images.unique(return_inverse=True)
    among_themselves, _ = nearest(training[hit], training, itself=hit)
    return float((distances < among_themselves[positions]).double().mean())
