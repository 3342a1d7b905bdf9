"""Distorted copies of images, as another hand or another camera might have made them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..randomness import BatchRNG


# The largest of each, uniformly drawn.
ROTATION = math.radians(10)
SCALE = 0.1  # of either side
SHEAR = 0.15
SHIFT = 0.14  # where the image is 2 wide: 2 pixels of 28
# The elastic displacement of single points, normally drawn at the nodes of a grid and smooth between them.
ELASTIC, ELASTIC_NODES = 0.04, 5


def distorted(pixel_values: Tensor, rng: BatchRNG) -> Tensor:
    """Rotates, scales, shears and shifts each image a little, and bends it; what comes in from outside is the edge.

    Args:
        pixel_values: (batch, channels, height, width).
        rng: of these examples.

    Returns:
        The same shape.
    """
    # Under autocast, positions would be products in bf16, whose 8 bits are coarser than a pixel of a large image.
    with torch.autocast(pixel_values.device.type, enabled=False):
        points = F.affine_grid(affine_maps(2 * rng.uniform(6) - 1), list(pixel_values.shape), align_corners=False)
        nodes = ELASTIC * rng.normal(2, ELASTIC_NODES, ELASTIC_NODES)
        bent = F.interpolate(nodes, size=pixel_values.shape[-2:], mode="bicubic", align_corners=True)
        points = (points + bent.permute(0, 2, 3, 1)).to(pixel_values.dtype)
        return F.grid_sample(pixel_values, points, padding_mode="border", align_corners=False)


def affine_maps(draws: Tensor) -> Tensor:
    """From points of the copy to points of the image, (batch, 2, 3), in coordinates that go from -1 to 1.

    Args:
        draws: (batch, 6) in [-1, 1]: rotation, scale in x and in y, shear, shift in x and in y. All 0 is the identity.
    """
    angle, x_scale, y_scale, shear, x_shift, y_shift = draws.unbind(1)
    cosine, sine = (ROTATION * angle).cos(), (ROTATION * angle).sin()
    x_scale, y_scale = 1 + SCALE * x_scale, 1 + SCALE * y_scale
    x_row = torch.stack([cosine * x_scale, SHEAR * shear - sine * y_scale, SHIFT * x_shift], dim=1)
    y_row = torch.stack([sine * x_scale, cosine * y_scale, SHIFT * y_shift], dim=1)
    return torch.stack([x_row, y_row], dim=1)
