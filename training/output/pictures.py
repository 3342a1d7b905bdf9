"""Pictures of what the latents of a model have learned, drawn with nothing but its public methods.

A run shows the same images each time, so that its pictures can be compared.
"""

from __future__ import annotations

import math
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from hfgen.image_processing import image_grid, overlay_maps


# In pixels: small images are enlarged until a picture is this wide, and of large ones fewer are shown.
LEAST_WIDTH, LARGEST_SIDE = 512, 1024
# Between groups of images, in pixels, besides the padding of each image.
GAP = 10
RECONSTRUCTIONS = 32
# Of the aggregate posterior, from the left of a traversal to its right.
DEVIATIONS = torch.arange(-3.0, 4.0)


def images_needed(height: int, width: int) -> int:
    """Returns how many images to give to [`draw_latents`]: 256, or fewer large ones, but at least 16.

    Not all are shown, but all say in which directions latents vary.
    """
    return max(16, min(256, 2**20 // (height * width)))


@torch.no_grad()
def draw_latents(model: Any, images: Tensor, labels: Tensor | None = None) -> dict[str, PIL.Image.Image]:
    """Draws reconstructions, paths between images, and a traversal of the latents.

    Args:
        model: in evaluation mode, with the methods `encode`, `decode` and `interpolate` of [`hfgen.VAEModel`].
        images: (batch, channels, height, width) in [0, 1], on the model's device.
        labels: (batch,) classes of the images, for a conditional model.

    Returns:
        name -> picture: "reconstructions"; "interpolation", if there are two images (of one class, for a conditional
        model); "traversal", if there are two images.
    """
    posterior = model.encode(images, labels).latent_dist
    means = posterior.mode()
    shown_labels = None if labels is None else labels[:RECONSTRUCTIONS]
    decoded = model.decode(means[:RECONSTRUCTIONS], shown_labels).sample
    pictures = {"reconstructions": draw_reconstructions(images[:RECONSTRUCTIONS], decoded)}
    if pairs := find_pairs(len(images), labels):
        pictures["interpolation"] = _draw_interpolation(model, images, labels, pairs)
    if len(images) > 1:
        samples = posterior.sample(generator=torch.Generator().manual_seed(0))
        number = min(how_many_fit(images.shape[2], 8), len(images) - 1)
        pictures["traversal"] = _draw_traversal(model, means, samples, number, None if labels is None else labels[:1])
    return pictures


def draw_reconstructions(images: Tensor, reconstructions: Tensor) -> PIL.Image.Image:
    """Draws rows of images, each above a row of their reconstructions: eight pairs in a row and four rows of them, or
    fewer of large images.

    Args:
        images: (batch, channels, height, width) in [0, 1].
        reconstructions: in the same shape.
    """
    height, width = images.shape[2:]
    columns = how_many_fit(width, 8)
    rows = list(zip(images.split(columns), reconstructions.split(columns)))[: how_many_fit(2 * height, 4)]
    scale = enlargement(columns * width)
    return join([image_grid(torch.cat(pair), len(pair[0]), scale=scale) for pair in rows], vertically=True)


@torch.no_grad()
def draw_anomalies(model: Any, strange: Tensor, normal: Tensor, threshold: float | None = None) -> PIL.Image.Image:
    """Draws the strangest images and the most normal ones, a row each, above the same images painted with their maps.

    Args:
        model: with the method `predict_anomaly` of [`hfgen.AutoencoderModel`].
        strange: (batch, channels, height, width) in [0, 1], the strangest first.
        normal: in the same form, the most normal first.
        threshold: what maps of normal images rarely exceed; by default, the largest value of all maps is as red as
            one and a half times a threshold.
    """
    columns = how_many_fit(strange.shape[3], 8)
    rows = [images[:columns] for images in (strange, normal)]
    maps = [model.predict_anomaly(images).maps for images in rows]
    threshold = threshold or float(torch.cat(maps).max()) * 2 / 3
    scale = enlargement(columns * strange.shape[3])
    grids = []
    for images, of_images in zip(rows, maps):
        pair = torch.cat([images.expand(-1, 3, -1, -1), overlay_maps(images, of_images, threshold)])
        grids.append(image_grid(pair, len(images), scale=scale))
    return join(grids, vertically=True)


def find_pairs(count: int, labels: Tensor | None) -> list[tuple[int, int]]:
    """Pairs up images by their positions; with labels, within a class, as a path is decoded for one class."""
    alone: dict[int, int] = {}  # class -> position
    pairs = []
    for position, label in enumerate([0] * count if labels is None else labels.tolist()):
        if label in alone:
            pairs.append((alone.pop(label), position))
        else:
            alone[label] = position
    return pairs


def _draw_interpolation(
    model: Any, images: Tensor, labels: Tensor | None, pairs: list[tuple[int, int]]
) -> PIL.Image.Image:
    """Draws a pair per row: the images themselves at the ends, and the path between their latents, decoded."""
    height, width = images.shape[2:]
    columns = max(5, how_many_fit(width, 10))
    left, right = torch.tensor(pairs[: how_many_fit(height, 6)], device=images.device).unbind(1)
    steps = columns - 2
    path = model.interpolate(images[left], images[right], steps, None if labels is None else labels[left])
    scale = enlargement(columns * width)
    parts = [(images[left], 1), (path.flatten(0, 1), steps), (images[right], 1)]
    return join([image_grid(part, number, scale=scale) for part, number in parts], vertically=False)


def _draw_traversal(model: Any, means: Tensor, samples: Tensor, number: int, label: Tensor | None) -> PIL.Image.Image:
    """Draws a direction per row: the first image's latents, moved along it through the aggregate posterior.

    Args:
        model: has `decode`.
        means: (batch, ...) of the images' posteriors.
        samples: of the same posteriors, in the same shape.
        number: of directions.
        label: (1,) class of the first image.
    """
    latents, samples = (tensor.flatten(1).float().cpu() for tensor in (means, samples))
    directions = principal_directions(latents, number)
    middles, deviations = (samples @ directions.T).mean(0), (samples @ directions.T).std(0)
    targets = middles[:, None] + deviations[:, None] * DEVIATIONS
    moves = targets - (directions @ latents[0])[:, None]
    moved = (latents[0] + moves[..., None] * directions[:, None]).view(-1, *means.shape[1:]).to(means)
    images = model.decode(moved, None if label is None else label.expand(len(moved))).sample
    return image_grid(images, len(DEVIATIONS), scale=enlargement(len(DEVIATIONS) * images.shape[3]))


def principal_directions(points: Tensor, number: int) -> Tensor:
    """Returns the directions of the largest variance, strongest first.

    Args:
        points: (batch, dimensions).
        number: of directions.

    Returns:
        (number, dimensions) orthonormal rows, or fewer, if there are fewer points or dimensions. The largest
        component of each is positive, so that a direction does not turn around from one picture to the next.
    """
    directions = torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh[:number]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * largest.sign()


def how_many_fit(side: int, most: int) -> int:
    """How many images of this side fit into a picture, at least 1 and at most `most`."""
    return max(1, min(most, LARGEST_SIDE // side))


def enlargement(width: int) -> int:
    """The factor that enlarges a picture of this width to `LEAST_WIDTH` or more."""
    return math.ceil(LEAST_WIDTH / width)


def join(parts: list[PIL.Image.Image], vertically: bool) -> PIL.Image.Image:
    """Puts pictures side by side or below each other, on white."""
    axis = 1 if vertically else 0
    size = [max(part.size[other] for part in parts) for other in (0, 1)]
    size[axis] = sum(part.size[axis] + GAP for part in parts) - GAP
    joined, place = PIL.Image.new(parts[0].mode, (size[0], size[1]), "white"), [0, 0]
    for part in parts:
        joined.paste(part, (place[0], place[1]))
        place[axis] += part.size[axis] + GAP
    return joined
