"""What the page shows beside the samples that the run drew: real images, and the frames between two images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.embedding import is_conditional
from hfgen.image_processing import image_grid
from hfgen.models.latents import slerp

from ...data.feeds.batches import Batch
from ..pictures import find_pairs


REAL_IMAGES = 64
WAYS, FRAMES = 6, 25
# Decoded for all frames together: fewer ways are shown between large images, and the frames are shrunk.
MOST_PIXELS = 4_000_000
LARGEST_SIDE = 160


@dataclass
class Ways:
    """Ways from one image to another, as one picture: a row for each way and a column for each frame.

    Attributes:
        picture: without padding.
        count, frames: rows and columns.
        size: (height, width) of an image.
        between_real_images: False if both ends were drawn by the model.
    """

    picture: PIL.Image.Image
    count: int
    frames: int
    size: tuple[int, int]
    between_real_images: bool


def draw_real_images(images: Tensor) -> PIL.Image.Image:
    """Draws images of the data as a run draws its samples.

    Args:
        images: (batch, channels, height, width) in [0, 1].
    """
    return image_grid(images[:REAL_IMAGES], columns=8)


@torch.no_grad()
def draw_ways(model: Any, batch: Batch) -> Ways | None:
    """Draws ways between pairs of images, or, of a model that encodes none, between pairs of latents.

    Args:
        model: one of hfgen's models of images, in evaluation mode.
        batch: evaluation images on the model's device, with their classes if there are any.

    Returns:
        None for a model whose latents do not make an image by themselves, as those of a codec, and for fewer than two
        images.
    """
    images = batch["pixel_values"]
    height, width = images.shape[2:]
    most = max(1, min(WAYS, MOST_PIXELS // (FRAMES * height * width)))
    path: Tensor | None = None
    if hasattr(model, "discriminate"):
        path = _between_latents(model, most)
    elif hasattr(model, "encode"):
        labels = batch["labels"] if is_conditional(model.config) else None
        path = _between_images(model, images, labels, most)
    if path is None:
        return None
    frames = path.flatten(0, 1)
    if max(height, width) > LARGEST_SIDE:
        scale = LARGEST_SIDE / max(height, width)
        frames = F.interpolate(frames, (round(height * scale) or 1, round(width * scale) or 1), mode="area")
    picture = image_grid(frames, columns=FRAMES, padding=0, scale=1)
    return Ways(picture, len(path), FRAMES, (height, width), not hasattr(model, "discriminate"))


def _between_images(model: Any, images: Tensor, labels: Tensor | None, most: int) -> Tensor | None:
    """Images (ways, FRAMES, channels, height, width), decoded from the latents between those of two images."""
    # In any order but the split's, which may be sorted by class.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(images.device)
    images, labels = images[order], None if labels is None else labels[order]
    pairs = find_pairs(len(images), labels)[:most]
    if not pairs:
        return None
    left, right = torch.tensor(pairs, device=images.device).unbind(1)
    if hasattr(model, "interpolate"):
        return model.interpolate(images[left], images[right], FRAMES, None if labels is None else labels[left])
    start, end = model.encode(images[left]), model.encode(images[right])
    return torch.stack([model.decode(torch.lerp(start, end, t)) for t in _times()], dim=1)


def _between_latents(model: Any, most: int) -> Tensor:
    """Images in the same shape, generated along great circles: a straight line would leave the latents that the model
    knows."""
    classes = model.config.num_labels or 0
    labels = torch.arange(most, device=model.device) % classes if classes else None
    latents = torch.randn(2, most, model.config.latent_dim, generator=torch.Generator().manual_seed(0))
    start, end = latents.to(model.device)
    return torch.stack([model(slerp(start, end, t), labels) for t in _times()], dim=1)


def _times() -> list[float]:
    return torch.linspace(0, 1, FRAMES).tolist()
