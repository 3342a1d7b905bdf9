"""Measures of reconstructions, likelihoods and samples, computed in float64, and the meaning of every metric.

Feature-based measures (`frechet_distance`, `kernel_distance`, `precision_recall_density_coverage`) take features from
a network of the caller's choice: values are comparable only between runs that used the same network and equal numbers
of images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch


ArrayLike = torch.Tensor | np.ndarray
Number = TypeVar("Number", float, torch.Tensor)

_BLOCK = 4_000_000  # distances held at a time: 32 MB
_TILE = 500  # rows and columns of products held at a time: 2 MB, which stay in the cache of a core


class Metric(NamedTuple):
    """How cards present a metric: a label, and what the number says."""

    label: str
    meaning: str = ""


METRICS = {
    "elbo": Metric(
        "ELBO", "evidence lower bound, nats per image; the log-likelihood is at least this; higher is better"
    ),
    "nll": Metric("Negative log-likelihood", "importance-weighted estimate, nats per image; lower is better"),
    "bits_per_dim": Metric("Bits per dimension", "negative log-likelihood in bits per pixel and channel"),
    "reconstruction_loss": Metric("Reconstruction loss", "what the decoder gets wrong; lower is better"),
    "kl_loss": Metric("KL", "divergence of the encoder's distribution from the prior, nats per image"),
    "mse": Metric("MSE", "mean squared error of a pixel in [0, 1]; lower is better"),
    "psnr": Metric("PSNR", "peak signal-to-noise ratio, dB; higher is better"),
    "neighbor_accuracy": Metric(
        "1-NN accuracy", "fraction of images whose nearest training image, by its latents, has their class"
    ),
    "bits_per_pixel": Metric("Bits per pixel", "of a compressed image; lower is better"),
    "psnr_at_half_bpp": Metric(
        "PSNR at 0.5 bits per pixel", "of a mosaic of images, with all headers counted, dB; higher is better"
    ),
    "auroc": Metric("AUROC", "probability that an anomaly scores higher than a normal image; 0.5 is chance"),
    "average_precision": Metric(
        "Average precision", "area under the curve of precision over recall; by chance it is the share of anomalies"
    ),
    "f1": Metric("F1", "harmonic mean of the precision and the recall of alarms at the model's own threshold"),
    "worst_class_auroc": Metric("AUROC of the worst class", "of the class that is hardest to tell from normal images"),
    "false_alarm_rate": Metric("False alarms", "fraction of normal images that are taken for anomalies"),
    "pixel_auroc": Metric(
        "Pixel AUROC", "probability that an anomalous pixel has a higher value in the map than a normal one"
    ),
    "classifier_fid": Metric(
        "Classifier FID",
        "Fréchet distance in the features of a small classifier of this dataset, not of Inception: comparable only "
        "with values measured the same way; lower is better",
    ),
    "classifier_fid_floor": Metric(
        "Classifier FID of training images",
        "the same distance between training and held-out images: what a perfect generator would have",
    ),
    "classifier_kid": Metric(
        "Classifier KID",
        "kernel distance in the same features, without bias: about 0 for real images; lower is better",
    ),
    "class_kl": Metric(
        "KL of classes", "of the classes that the classifier sees in generated images from those in real ones, nats"
    ),
    "memorized": Metric(
        "Samples close to training images",
        "fraction of generated images that are nearer to a training image than that one is to all others",
    ),
    "memorized_floor": Metric(
        "Held-out images close to training images",
        "the same fraction of held-out images, which nobody copied; a larger one of generated images hints at copies",
    ),
    "precision": Metric("Precision", "fraction of generated images that lie among real ones"),
    "recall": Metric("Recall", "fraction of real images that lie among generated ones"),
    "density": Metric("Density", "how densely real images surround generated ones; about 1 for real images"),
    "coverage": Metric("Coverage", "fraction of real images with a generated one nearby"),
    "pair_accuracy": Metric(
        "Pair accuracy",
        "probability that the discriminator prefers a held-out image to a generated one; 0.5 is chance, where the two "
        "networks have converged",
    ),
    "pair_accuracy_train": Metric(
        "Pair accuracy on training images", "the same with images that the discriminator has learned from"
    ),
    "overfitting_ratio": Metric(
        "Overfitting of the discriminator",
        "0 if it takes held-out images for real ones, 1 if it takes them for generated ones",
    ),
    "largest_logit": Metric("Largest logit", "of the discriminator, on held-out and generated images"),
    "fresh_critic_accuracy": Metric(
        "Accuracy of a fresh critic",
        "of a small network trained for a fixed time to tell samples from real images; 0.5 if it cannot",
    ),
    "quick_fid": Metric("Classifier FID during the run", "on a part of the images: comparable only within this run"),
    "quick_coverage": Metric("Coverage during the run", "on a part of the images: comparable only within this run"),
    "feature_distance_ratio": Metric(
        "Variety of samples", "mean distance between samples over that between real images; about 1 at best"
    ),
    "discriminator_accuracy": Metric(
        "Discriminator accuracy", "fraction of images the discriminator classifies correctly; 0.5 is chance"
    ),
    "discriminator_accuracy_real": Metric(
        "Discriminator accuracy on real images", "fraction of held-out images classified as real"
    ),
    "discriminator_accuracy_fake": Metric(
        "Discriminator accuracy on generated images", "fraction of generated images classified as generated"
    ),
    "classifier_accuracy": Metric(
        "Accuracy of the measuring classifier", "on real test images: how far the numbers based on it can be trusted"
    ),
    "label_accuracy": Metric(
        "Label accuracy", "fraction of generated images that the classifier assigns to their class"
    ),
    "loss": Metric("Loss", "cross-entropy, nats per token; lower is better"),
    "bits_per_char": Metric("Bits per character", "the loss in bits per character of text; lower is better"),
    "bits_per_byte": Metric(
        "Bits per byte", "the loss in bits per byte of text in UTF-8, comparable between tokenizers; lower is better"
    ),
    "perplexity": Metric("Perplexity", "exp(loss): as uncertain as a choice among this many equally likely tokens"),
}
"""What results.json and cards call by these names."""


def metric_named(name: str) -> Metric:
    """How cards present the metric of this name: its entry in `METRICS`, that of a level or of a quality, or the name
    itself."""
    level = name.removeprefix("kl_level_")
    if level != name:
        return Metric(f"KL of level {level}", "the part of the KL that this level of latents adds; level 0 is the top")
    base, _, percent = name.rpartition("_q")
    if base in METRICS and percent.isdigit():
        return Metric(f"{METRICS[base].label} at quality {int(percent) / 100:g}", "of a mosaic of images")
    return METRICS.get(name, Metric(f"`{name}`"))


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
            f"images and references must have one shape (batch, ...), got {tuple(images.shape)} and "
            f"{tuple(references.shape)}. Resize one of them."
        )
    mse = (images.double() - references.double()).square().flatten(1).mean(dim=1)
    return 10 * (math.log10(data_range**2) - mse.log10())


def bits_per_dim(nats: Number, num_dims: int) -> Number:
    """Converts nats per image to bits per dimension: nats / (num_dims · ln 2).

    The result is comparable to published numbers only if the likelihood is that of discrete 8-bit values. For a
    density of pixels scaled to [0, 1], add 8 bits per dimension first: `nats + num_dims * log(256)`.

    Args:
        nats: a number, or a tensor of any shape.
        num_dims: channels · height · width.
    """
    if num_dims < 1:
        raise ValueError(
            f"num_dims must be channels * height * width, at least 1, got {num_dims}. Count every number."
        )
    return nats / (num_dims * math.log(2))


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features; 0 for equal sets, larger is worse.

        |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½)      (Heusel et al. 2017, eq. 6; Dowson & Landau 1982)

    with unbiased covariances. With Σ = RᵀR from a QR decomposition of the centered features, tr (Σa Σb)^½ is the sum
    of the singular values of Ra Rbᵀ: no matrix square root, and exact also for singular covariances.

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


def kernel_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy with the kernel (x·y / dimensions + 1)³; KID, if the
    features are those of Inception (Bińkowski et al. 2018, "Demystifying MMD GANs", eq. 4).

    0 is expected for two sets from one distribution, whatever their sizes, so it can be slightly negative. Products
    are computed in blocks of 500 x 500.

    Args:
        features_a: (n, dimensions).
        features_b: (m, dimensions).
    """
    a, b = _feature_pair(features_a, features_b, "features_a", "features_b", at_least=2)
    n, m = len(a), len(b)
    # Without the pairs of a point and itself.
    own_a, own_b = (_kernel_sum(x, x) - float(_kernel((x * x).sum(1) / x.shape[1]).sum()) for x in (a, b))
    return own_a / (n * (n - 1)) + own_b / (m * (m - 1)) - 2 * _kernel_sum(a, b) / (n * m)


def _kernel(products: torch.Tensor) -> torch.Tensor:
    shifted = products + 1
    return shifted * shifted * shifted  # a power would take ten times as long


def _kernel_sum(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sum of the kernel over all pairs."""
    columns = (b.T / b.shape[1]).split(_TILE, dim=1)
    return sum(float(_kernel(rows @ part).sum()) for rows in a.split(_TILE) for part in columns)


@dataclass(frozen=True)
class PrecisionRecallDensityCoverage:
    """`precision`, `recall` and `coverage` are fractions in [0, 1]; `density` is at least 0 and about 1 at best."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(real: ArrayLike, fake: ArrayLike, k: int = 5) -> PrecisionRecallDensityCoverage:
    """Fidelity and diversity of samples, by the balls that reach from each point to its k-th nearest neighbor.

    - precision: the fraction of fakes inside a ball of the reals; recall: of reals inside a ball of the fakes
      (Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models").
    - density: how many balls of the reals a fake lies in, over k; coverage: the fraction of the reals whose ball
      holds a fake (Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models").

    A point does not count as its own neighbor. Balls are open, as in the code of Naeem et al., so that equal sets
    give exactly 1 four times. Distances are computed in blocks of 4 million, whatever the number of points.

    Args:
        real: features (n, dimensions), n > k.
        fake: features (m, dimensions), m > k.
        k: which neighbor.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}. The usual choice is 5.")
    real, fake = _feature_pair(real, fake, "real", "fake", at_least=k + 1)
    center = real.mean(dim=0)  # A shift leaves distances as they are, and makes them more exact.
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
                f"{name} must have the shape (n, dimensions) with n at least {at_least}, got "
                f"{tuple(features.shape)}. Give more images, one row of features per image."
            )
        if not features.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinity. Check the network and its inputs.")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{name_a} and {name_b} must have equal dimensions, got {a.shape[1]} and {b.shape[1]}. Use one network."
        )
    return a, b
