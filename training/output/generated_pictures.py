"""Pictures that show how good the samples of a generator are: beside real images, beside the training images that they
resemble most, and on the way from one to another."""

from __future__ import annotations

from typing import Any

import PIL.Image
import torch
from torch import Tensor

from hfgen.image_processing import image_grid

from ..evaluation.memorization import nearest
from ..evaluation.reference import Reference, features_of
from .pictures import draw_reconstructions, enlargement, how_many_fit, join


COMPARED = 8  # rows and columns of real images, and of samples
WALKS, STEPS = 6, 10


@torch.no_grad()
def draw_generated(model: Any, reference: Reference, with_nearest: bool = True) -> dict[str, PIL.Image.Image]:
    """Draws what only the finished model is worth.

    Args:
        model: in evaluation mode, with the method `sample` of [`hfgen.GANModel`], and called with latents.
        reference: the real images.
        with_nearest: whether to look for the nearest training images, which takes the classifier.

    Returns:
        "comparison", real images on the left and samples on the right; "interpolation", paths between latents; and
        "nearest", samples with the nearest training image below each.
    """
    device = next(model.parameters()).device
    side = how_many_fit(reference.data.image_size[1], COMPARED)
    real = next(iter(reference.data.eval_batches(side * side, device, side * side)))["pixel_values"]
    samples = model.sample(len(real), generator=torch.Generator().manual_seed(2))
    pictures = {"comparison": draw_beside(real, samples, side), "interpolation": draw_walks(model)}
    if with_nearest and len(reference.training()):
        pictures["nearest"] = draw_nearest(samples, reference)
    return pictures


def draw_beside(left: Tensor, right: Tensor, columns: int) -> PIL.Image.Image:
    """Draws two grids of images side by side, at one scale.

    Args:
        left, right: (images, channels, height, width) in [0, 1], of one size.
        columns: images in a row of each.
    """
    scale = enlargement(2 * columns * left.shape[3])
    return join([image_grid(images, columns, scale=scale) for images in (left, right)], vertically=False)


def draw_nearest(samples: Tensor, reference: Reference) -> PIL.Image.Image:
    """Draws rows of samples, each above a row of the training images that are nearest in the classifier's features."""
    features = features_of(reference.classifier, [samples]).vectors
    _, indices = nearest(features, reference.training().vectors)
    pixels, _ = reference.training_set()
    return draw_reconstructions(samples.cpu(), pixels[indices].float() / 255)


def draw_walks(model: Any) -> PIL.Image.Image:
    """Draws a path in each row, from one random latent vector to another; of a conditional model, within one class.

    The paths are arcs, because normal latents of many dimensions all have about the same length: a straight line would
    pass through shorter ones than the generator has ever seen (White 2016, https://arxiv.org/abs/1609.04468).
    """
    config, device = model.config, next(model.parameters()).device
    generator = torch.Generator().manual_seed(3)
    first, last = torch.randn(2, WALKS, 1, config.latent_dim, generator=generator)
    latents = spherical_path(first, last, STEPS).flatten(0, 1).to(device)
    labels = None
    if config.num_labels:
        labels = (torch.arange(WALKS, device=device) % config.num_labels).repeat_interleave(STEPS)
    images = model(latents, labels)
    rows = how_many_fit(images.shape[2], WALKS)
    return image_grid(images[: rows * STEPS], STEPS, scale=enlargement(STEPS * images.shape[3]))


def spherical_path(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Returns points at equal angles between two, ends included.

    Args:
        first, last: (..., 1, dimensions), not opposite to each other.
        steps: at least 2.

    Returns:
        (..., steps, dimensions).
    """
    cosine = torch.nn.functional.cosine_similarity(first, last, dim=-1, eps=1e-12)[..., None]
    angle = cosine.clamp(-1, 1).arccos().clamp(min=1e-4)
    share = torch.linspace(0, 1, steps)[:, None]
    return (((1 - share) * angle).sin() * first + (share * angle).sin() * last) / angle.sin()
