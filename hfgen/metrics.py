# Copyright 2026 The hfgen team. Licensed under the Apache License, Version 2.0.
"""Measures of reconstructions, likelihoods, anomaly scores and samples; everything is computed in float64.

Feature-based measures (`frechet_distance`, `precision_recall_density_coverage`) take the features that a network of
the caller's choice gives: values compare only between runs that used the same network and equal numbers of images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch


ArrayLike = torch.Tensor | np.ndarray
Number = TypeVar("Number", float, torch.Tensor)

_BLOCK = 4_000_000  # distances held at a time: 32 MB


def psnr(images: torch.Tensor, references: torch.Tensor, data_range: float = 1.0) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image, 10 log10(data_range² / MSE), in decibels; larger is better.

    Args:
        images, references: (batch, ...), of one shape.
        data_range: the largest possible difference of two pixels; 1 for pixels in [0, 1].

    Returns:
        (batch,), float64; infinity for an image equal to its reference.
    """
    if images.shape != references.shape or images.ndim < 2:
        raise ValueError(
            f"images, references: expected one shape (batch, ...), found {tuple(images.shape)} and "
            f"{tuple(references.shape)}."
        )
    mse = (images.double() - references.double()).square().flatten(1).mean(dim=1)
    return 10 * (math.log10(data_range**2) - mse.log10())


def bits_per_dim(nats: Number, num_dims: int) -> Number:
    """A negative log-likelihood in nats an image, in bits a dimension: nats / (num_dims · ln 2).

    It is comparable to published numbers only if the likelihood is that of discrete 8-bit values. A density of pixels
    scaled to [0, 1] must first be given 8 bits a dimension more: `nats + num_dims * log(256)`.

    Args:
        nats: a number, or a tensor of any shape.
        num_dims: channels · height · width.
    """
    if num_dims < 1:
        raise ValueError(f"num_dims: expected channels * height * width, at least 1, found {num_dims}.")
    return nats / (num_dims * math.log(2))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive scores higher than a negative, ties counting one half.

    That is the Mann-Whitney U statistic over the number of pairs (Hanley & McNeil 1982).

    Args:
        scores: (n,), larger means more likely positive.
        labels: (n,), bool or 0/1, with at least one of each.

    Returns:
        a number in [0, 1]; 0.5 is chance.
    """
    scores, labels = torch.as_tensor(scores).detach().cpu(), torch.as_tensor(labels).detach().cpu()
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores, labels: expected both of shape (n,), found {tuple(scores.shape)} and {tuple(labels.shape)}."
        )
    if scores.isnan().any():
        raise ValueError("scores: expected numbers, found NaN.")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels: expected only 0 (negative) and 1 (positive), found other values.")
    positive = labels.bool()
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if num_positive == 0 or num_negative == 0:
        raise ValueError(
            f"labels: expected at least one positive and one negative, found {num_positive} and {num_negative}."
        )
    # Ranks from 1; tied scores share the mean of their ranks.
    _, group, sizes = scores.unique(return_inverse=True, return_counts=True)
    mean_rank = sizes.double().cumsum(0) - (sizes.double() - 1) / 2
    rank_sum = float(mean_rank[group][positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features; 0 for equal sets, larger is worse.

        |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½)      (Heusel et al. 2017, eq. 6; Dowson & Landau 1982)

    with unbiased covariances. With Σ = RᵀR from a QR decomposition of the centred features, tr (Σa Σb)^½ is the sum of
    the singular values of Ra Rbᵀ: no matrix square root, and exact also for singular covariances.

    Args:
        features_a: (n, dimensions). The bias is of order dimensions/n: compare equal and large n only.
        features_b: (m, dimensions).
    """
    a, b = _feature_pair(features_a, features_b, "features_a", "features_b", at_least=2)
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    root_a = torch.linalg.qr((a - mean_a) / math.sqrt(len(a) - 1), mode="r").R
    root_b = torch.linalg.qr((b - mean_b) / math.sqrt(len(b) - 1), mode="r").R
    trace_of_root = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * trace_of_root
    return max(0.0, float(distance))


@dataclass(frozen=True)
class PrecisionRecallDensityCoverage:
    """`precision`, `recall` and `coverage` are fractions in [0, 1]; `density` is at least 0 and about 1 at best."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(real: ArrayLike, fake: ArrayLike, k: int = 5) -> PrecisionRecallDensityCoverage:
    """Fidelity and diversity of samples, by the balls that reach from each point to its k-th nearest neighbour.

    - precision: the fraction of fakes inside a ball of the reals; recall: of reals inside a ball of the fakes
      (Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models").
    - density: how many balls of the reals a fake lies in, over k; coverage: the fraction of the reals whose ball
      holds a fake (Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models").

    A point does not count as its own neighbour. Balls are open, as in the code of Naeem et al., so that equal sets
    give exactly 1 four times. Distances are made in blocks of 4 million, whatever the number of points.

    Args:
        real: features (n, dimensions), n > k.
        fake: features (m, dimensions), m > k.
        k: which neighbour.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}.")
    real, fake = _feature_pair(real, fake, "real", "fake", at_least=k + 1)
    center = real.mean(dim=0)  # Distances are kept by a shift, and are more exact near the origin.
    real, fake = real - center, fake - center

    covered, fake_in_balls = _balls(real, fake, k)
    _, real_in_balls = _balls(fake, real, k)
    return PrecisionRecallDensityCoverage(
        precision=float((fake_in_balls > 0).double().mean()),
        recall=float((real_in_balls > 0).double().mean()),
        density=float(fake_in_balls.double().mean()) / k,
        coverage=float(covered.double().mean()),
    )


def _balls(centers: torch.Tensor, points: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the centers' balls hold a point, (n,) bool; and how many balls each point lies in, (m,) int."""
    holds_point = torch.zeros(len(centers), dtype=torch.bool)
    num_balls = torch.zeros(len(points), dtype=torch.long)
    rows = max(1, _BLOCK // max(len(centers), len(points)))
    for start in range(0, len(centers), rows):
        chunk = centers[start : start + rows]
        to_centers = _distances(chunk, centers)
        itself = torch.arange(len(chunk))
        to_centers[itself, start + itself] = math.inf
        radius = to_centers.topk(k, dim=1, largest=False).values[:, -1:]
        inside = _distances(chunk, points) < radius
        holds_point[start : start + rows] = inside.any(dim=1)
        num_balls += inside.sum(dim=0)
    return holds_point, num_balls


def _distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")


def _feature_pair(
    a: ArrayLike, b: ArrayLike, name_a: str, name_b: str, at_least: int
) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (torch.as_tensor(features).detach().cpu().double() for features in (a, b))
    for name, features in ((name_a, a), (name_b, b)):
        if features.ndim != 2 or len(features) < at_least:
            raise ValueError(
                f"{name}: expected features of shape (n, dimensions) with n at least {at_least}, found "
                f"{tuple(features.shape)}."
            )
        if not features.isfinite().all():
            raise ValueError(f"{name}: expected finite features, found NaN or infinity.")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{name_a}, {name_b}: expected equal dimensions, found {a.shape[1]} and {b.shape[1]}.")
    return a, b
