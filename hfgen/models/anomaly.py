"""How strange images are beside normal ones: features of an image, and their distance from those of normal images.

The features are coarse maps: edges of the image by direction, and how they differ from the edges that the model
reconstructs. A normal distribution is fitted to the features of normal images, and the squared Mahalanobis distance
from it is the score. It is computed from features that are whitened in place (ZCA, Bell & Sejnowski 1997), so each
cell of the maps has a share of the score, and the shares show where the image is strange.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


def edge_maps(images: Tensor, halvings: int) -> Tensor:
    """Oriented gradients, pooled, (batch, 8, rows, columns). Their square root makes faint and strong edges count more
    equally, which is what Hellinger's distance does to histograms."""
    return pool(oriented_gradients(images), halvings).relu().sqrt()


class GaussianDistance(nn.Module):
    """Squared Mahalanobis distance of features from those of normal images, divided by the number of features.

    The covariance is shrunk: the mean of its eigenvalues is added to each. Directions in which normal images hardly
    differ then cannot decide alone, and fewer images than features are enough. Of the eigenvectors, `rank` are kept;
    the others share their mean eigenvalue (probabilistic PCA, Tipping & Bishop 1999):

        d² = sum_i y_i² / (e_i + s) + (|f - mean|² - sum_i y_i²) / (e_rest + s),    y = components (f - mean)

    Args:
        num_features: D, of an image.
        rank: eigenvectors to keep; with D or more, nothing is approximated.
    """

    mean: Tensor
    components: Tensor
    scales: Tensor
    rest_scale: Tensor
    num_images: Tensor

    def __init__(self, num_features: int, rank: int):
        super().__init__()
        rank = min(rank, num_features)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("components", torch.zeros(rank, num_features))
        self.register_buffer("scales", torch.zeros(rank))  # 1 / sqrt(e_i + s)
        self.register_buffer("rest_scale", torch.zeros(()))
        self.register_buffer("num_images", torch.zeros((), dtype=torch.long))

    def reset(self) -> None:
        """Forgets what was fitted."""
        for buffer in self.buffers():
            init.zeros_(buffer)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Takes mean and covariance of features (batch, D) of normal images; what was fitted before is forgotten.

        Raises:
            ValueError: there are fewer than two images, or their features are not finite or all the same.
        """
        count, mean, covariance = _mean_and_covariance(batches)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        shrinkage, rank = values.mean(), len(self.scales)
        if not shrinkage > 0:
            raise ValueError("batches must hold images that differ, got features that are all the same. Check them.")
        rest = values[rank:].mean() if rank < len(values) else values.new_zeros(())
        found = {
            "mean": mean,
            "components": vectors[:, :rank].T,
            "scales": (values[:rank] + shrinkage).rsqrt(),
            "rest_scale": (rest + shrinkage).rsqrt(),
            "num_images": torch.tensor(count),
        }
        for name, value in found.items():
            self.get_buffer(name).copy_(value)

    def forward(self, features: Tensor) -> Tensor:
        """Whitened features (batch, D): the distance is the mean of their squares."""
        components = at_least_float32(self.components)
        centered = at_least_float32(features) - self.mean
        coefficients = centered @ components.T
        return self.rest_scale * centered + (coefficients * (self.scales - self.rest_scale)) @ components


def _mean_and_covariance(batches: Iterable[Tensor]) -> tuple[int, Tensor, Tensor]:
    """Number of rows, mean (D,) and unbiased covariance (D, D) of batches (batch, D), in float64. Each batch is merged
    into what came before (Chan et al. 1983), so only one is held."""
    count, mean, scatter = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for batch in batches:
        rows = batch.to("cpu", torch.float64)
        if not rows.isfinite().all():
            raise ValueError("batches must have finite features, got NaN or infinity. Check the images and the model.")
        own, total = len(rows), count + len(rows)
        if not own:
            continue
        own_mean = rows.mean(dim=0)
        centered, step = rows - own_mean, own_mean - mean
        scatter = scatter + centered.T @ centered + torch.outer(step, step) * (count * own / total)
        count, mean = total, mean + step * (own / total)
    if count < 2:
        raise ValueError(f"batches must hold at least two images, got {count}. Give normal images of the training.")
    return count, mean, scatter / (count - 1)


class AnomalyDetector(nn.Module):
    """Edges of images and of their reconstructions, compared with those of normal images.

    Args:
        image_size: (height, width).
        rank: eigenvectors of the features' covariance to keep.
    """

    def __init__(self, image_size: list[int], rank: int):
        super().__init__()
        self.halvings = halvings_for(image_size)
        cells = math.prod(math.ceil(side / 2**self.halvings) for side in image_size)
        self.distance = GaussianDistance(2 * ORIENTATIONS * cells, rank)

    @property
    def is_fitted(self) -> bool:
        return bool(self.distance.num_images > 0)

    def features(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """(batch, 16, rows, columns): the edges of images, and how much stronger they are in the reconstructions."""
        with torch.autocast(images.device.type, enabled=False):
            edges, reconstructed = (
                edge_maps(at_least_float32(each), self.halvings) for each in (images, reconstructions)
            )
        return torch.cat([edges, reconstructed - edges], dim=1)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Learns what is normal from (images, reconstructions), both (batch, channels, height, width)."""
        self.distance.fit(self.features(*batch).flatten(1) for batch in batches)

    def forward(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (batch,), and the shares of cells in them as maps (batch, height, width) of the images' size."""
        features = self.features(images, reconstructions)
        with torch.autocast(images.device.type, enabled=False):
            shares = self.distance(features.flatten(1)).view_as(features).square()
        cells = shares.mean(dim=1, keepdim=True)
        maps = F.interpolate(cells, images.shape[-2:], mode="bilinear", align_corners=False)
        return cells.flatten(1).mean(dim=1), maps[:, 0]
