"""How strange images are beside normal ones: features of an image, and their distance from those of normal images.

The features are coarse maps of how a reconstruction differs from the image, in edges by direction and in brightness.
Normal distributions are fitted to the features of normal images, and squared Mahalanobis distances from them are the
score. They are computed from features that are whitened in place (ZCA, Bell & Sejnowski 1997), so each cell of the
maps has a share of the score, and the shares show where the image is strange.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .image_model import at_least_float32


ORIENTATIONS = 8
MAX_CELLS = 8  # along the longer side of an image


@dataclass
class AnomalyOutput(ModelOutput):
    """What `predict_anomaly` returns.

    Attributes:
        scores: (batch,), larger is stranger.
        is_anomaly: (batch,), whether the score is above `config.anomaly_threshold`; None while that is None.
        maps: (batch, height, width), larger where the image is stranger.
    """

    scores: Tensor | None = None
    is_anomaly: Tensor | None = None
    maps: Tensor | None = None


def oriented_gradients(images: Tensor) -> Tensor:
    """How steeply images brighten in each of 8 directions, (batch, 8, height, width); 0 where they darken.

    This is the soft form of a histogram of oriented gradients (Dalal & Triggs 2005): a gradient counts in every
    direction by its projection, so that nothing jumps when an edge turns. In color, the channel with the steepest
    gradient counts, as in theirs.

    Args:
        images: (batch, channels, height, width).
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    right = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    steepest = (right.square() + down.square()).argmax(dim=1, keepdim=True)
    right, down = right.gather(1, steepest), down.gather(1, steepest)
    angles = torch.arange(ORIENTATIONS, device=images.device, dtype=images.dtype) * (2 * math.pi / ORIENTATIONS)
    angles = angles[:, None, None]
    return (right * angles.cos() + down * angles.sin()).relu()


def pool(maps: Tensor, halvings: int) -> Tensor:
    """Blurs maps (batch, channels, height, width) by [1, 2, 1] / 4 along both sides and keeps every second cell, as
    often as `halvings` says. n cells become ceil(n / 2)."""
    channels = maps.shape[1]
    line = torch.tensor([0.25, 0.5, 0.25], device=maps.device, dtype=maps.dtype)
    kernel = (line[:, None] * line).expand(channels, 1, 3, 3)
    for _ in range(halvings):
        maps = F.conv2d(maps, kernel, stride=2, padding=1, groups=channels)
    return maps


def halvings_for(image_size: Sequence[int]) -> int:
    """How often maps of images of this (height, width) are halved: at least once, and until their longer side has at
    most 8 cells."""
    return max(1, math.ceil(math.log2(max(image_size) / MAX_CELLS)))


def _num_cells(image_size: Sequence[int], halvings: int) -> int:
    return math.prod(math.ceil(side / 2**halvings) for side in image_size)


def edge_maps(images: Tensor, halvings: int) -> Tensor:
    """Oriented gradients, pooled, (batch, 8, rows, columns). Their square root makes faint and strong edges count more
    equally, which is what Hellinger's distance does to histograms."""
    return pool(oriented_gradients(images), halvings).relu().sqrt()


@dataclass
class Moments:
    """Mean and covariance of rows that come in batches. Each batch is merged into those before (Chan et al. 1983), in
    float64, so that only one is held and a large mean costs no precision.

    Attributes:
        count: number of rows.
        mean: (D,).
        scatter: (D, D), sum of the outer products of the rows' deviations from their mean.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, batch: Tensor) -> None:
        """Takes rows (batch, D).

        Raises:
            ValueError: a number is not finite.
        """
        rows = batch.to("cpu", torch.float64)
        if not rows.isfinite().all():
            raise ValueError("batches must have finite features, got NaN or infinity. Check the images and the model.")
        if not len(rows):
            return
        total, mean = self.count + len(rows), rows.mean(dim=0)
        centered, step = rows - mean, mean - self.mean
        between = torch.outer(step, step) * (self.count * len(rows) / total)
        self.scatter = self.scatter + centered.T @ centered + between
        self.mean = self.mean + step * (len(rows) / total)
        self.count = total

    def covariance(self) -> Tensor:
        """Unbiased, (D, D).

        Raises:
            ValueError: there are fewer than two rows, or all are the same.
        """
        if self.count < 2:
            raise ValueError(f"batches must hold at least two images, got {self.count}. Give those of the training.")
        if not self.scatter.diagonal().sum() > 0:
            raise ValueError("batches must hold images that differ, got features that are all the same. Check them.")
        return self.scatter / (self.count - 1)


class GaussianDistance(nn.Module):
    """Squared Mahalanobis distance of features from those of normal images, over its mean for normal images.

    The covariance is shrunk: a multiple s of the mean of its eigenvalues is added to each. Directions in which normal
    images hardly differ then cannot decide alone, and fewer images than features are enough. Of the eigenvectors,
    `rank` are kept; the others share their mean eigenvalue (probabilistic PCA, Tipping & Bishop 1999):

        d² = sum_i y_i² / (e_i + s) + (|f - mean|² - sum_i y_i²) / (e_rest + s),    y = components (f - mean)

    Args:
        num_features: D, of an image.
        rank: eigenvectors to keep; with D or more, nothing is approximated.
        shrinkage: what is added to each eigenvalue, in units of their mean. The larger, the less is whitened.
    """

    mean: Tensor
    components: Tensor
    scales: Tensor
    rest_scale: Tensor

    def __init__(self, num_features: int, rank: int, shrinkage: float = 1.0):
        super().__init__()
        self.shrinkage, rank = shrinkage, min(rank, num_features)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("components", torch.zeros(rank, num_features))
        self.register_buffer("scales", torch.zeros(rank))
        self.register_buffer("rest_scale", torch.zeros(()))

    def fit(self, mean: Tensor, covariance: Tensor) -> None:
        """Takes the mean (D,) and the covariance (D, D), not all zero, of the features of normal images."""
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        rank = len(self.scales)
        if rank < len(values):
            values[rank:] = values[rank:].mean()
        shrunk = values + self.shrinkage * values.mean()
        # The mean of d² over the images of the fit, up to the bias of the covariance.
        typical = (values / shrunk).sum()
        scales = (shrunk * typical).rsqrt()
        found = {
            "mean": mean,
            "components": vectors[:, :rank].T,
            "scales": scales[:rank],
            "rest_scale": scales[-1],
        }
        for name, value in found.items():
            self.get_buffer(name).copy_(value)

    def forward(self, features: Tensor) -> Tensor:
        """Whitened features (batch, D); the distance is the sum of their squares, and 1 for a typical image."""
        components = at_least_float32(self.components)
        centered = at_least_float32(features) - self.mean
        coefficients = centered @ components.T
        return self.rest_scale * centered + (coefficients * (self.scales - self.rest_scale)) @ components


class AnomalyDetector(nn.Module):
    """Compares how images differ from their reconstructions with how normal images do.

    What a model of normal images reconstructs is more normal than the image, so the difference is what is strange in
    it. Three distances have a third of the score each: of the difference in edges, on a grid of cells and on one half
    as fine, and of the difference in brightness. 1 is the score of a typical normal image.

    Args:
        image_size: (height, width).
        num_channels: of the images.
        rank: eigenvectors to keep of the covariance of each.
    """

    distances: Any  # a list of GaussianDistance
    num_images: Tensor

    def __init__(self, image_size: Sequence[int], num_channels: int, rank: int):
        super().__init__()
        self.halvings = halvings_for(image_size)
        fine, coarse = (_num_cells(image_size, self.halvings + more) for more in (0, 1))
        # Coarse edges gain most from whitening, fine ones less, and brightness nothing: measured on training images of
        # MNIST, see training/tools/autoencoder_rows/one_class.py.
        sizes = ((ORIENTATIONS * fine, 10.0), (ORIENTATIONS * coarse, 1.0), (num_channels * fine, 100.0))
        self.distances = nn.ModuleList(GaussianDistance(size, rank, shrinkage) for size, shrinkage in sizes)
        self.register_buffer("num_images", torch.zeros((), dtype=torch.long))

    @property
    def is_fitted(self) -> bool:
        return bool(self.num_images > 0)

    def reset(self) -> None:
        """Forgets what was fitted."""
        for buffer in self.buffers():
            init.zeros_(buffer)

    def features(self, images: Tensor, reconstructions: Tensor) -> list[Tensor]:
        """For each distance, maps (batch, channels, rows, columns) of images (batch, channels, height, width)."""
        images, reconstructions = at_least_float32(images), at_least_float32(reconstructions)
        fine, coarse = (
            edge_maps(reconstructions, halvings) - edge_maps(images, halvings)
            for halvings in (self.halvings, self.halvings + 1)
        )
        return [fine, coarse, pool(reconstructions - images, self.halvings)]

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Learns what is normal from (images, reconstructions), both (batch, channels, height, width); what was fitted
        before is forgotten.

        Raises:
            ValueError: there are fewer than two images, or their features are not finite or all the same.
        """
        moments = [Moments() for _ in self.distances]
        for images, reconstructions in batches:
            with torch.autocast(images.device.type, enabled=False):
                for moment, features in zip(moments, self.features(images, reconstructions)):
                    moment.add(features.flatten(1))
        covariances = [moment.covariance() for moment in moments]  # all of them, before anything is changed
        for distance, moment, covariance in zip(self.distances, moments, covariances):
            distance.fit(moment.mean, covariance)
        self.num_images.fill_(moments[0].count)

    def forward(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (batch,), and maps (batch, height, width) of what adds to them. The mean of a map is the score, but
        for cells at the rim, where interpolation repeats the outermost ones."""
        scores, maps = [], []
        with torch.autocast(images.device.type, enabled=False):
            for distance, features in zip(self.distances, self.features(images, reconstructions)):
                whitened = distance(features.flatten(1)).view_as(features)
                cells = whitened.square().sum(dim=1, keepdim=True)
                scores.append(cells.flatten(1).sum(dim=1))
                spread = F.interpolate(cells, images.shape[-2:], mode="bilinear", align_corners=False)
                maps.append(spread[:, 0] * math.prod(cells.shape[-2:]))
        return torch.stack(scores).mean(dim=0), torch.stack(maps).mean(dim=0)
