"""Differentiable augmentation for a discriminator that has few images to learn from (Karras et al. 2020,
https://arxiv.org/abs/2006.06676; Zhao et al. 2020, https://arxiv.org/abs/2006.10738).

A discriminator that knows its training images by heart tells the generator nothing. Here it never sees an image as it
is: real and generated ones are moved, scaled, brightened and partly hidden at random, and the generator learns through
these changes. As each change is left out with a probability, a generator cannot gain by producing changed images.

How often changes happen follows from the evaluations of the run, because only held-out images tell a discriminator
that has learned from one that remembers. So a run that resumes has the same augmentation, and one with many images
has none.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.models.image_model import at_least_float32

from .evaluation.convergence import History
from .randomness import BatchRNG


Kind = Literal["none", "adaptive", "always"]

MOST = 0.8  # of the probability: beyond it, changes begin to appear in generated images
RISE, FALL = 0.2, 0.1  # of the probability, after an evaluation
# The discriminator remembers if it prefers training images to samples this much more often than held-out ones.
GAP = 0.05
SHIFT = 1 / 8  # of height and width, at most
SCALE = 0.2  # standard deviation of the binary logarithm of the size
BRIGHTNESS = 0.2  # standard deviation, of the range of pixels
CONTRAST = 0.3  # standard deviation of the binary logarithm
HIDDEN = 0.5  # side of the square that is hidden, as a share of height and width


class Augmentation:
    """Changes batches of images at random.

    Args:
        kind: "adaptive" begins without changes; "always" has them as often as is safe.
        mirror: whether real images are shown mirrored half of the time, so that samples come out both ways.

    Attributes:
        probability: of each change, for each image, in [0, 0.8].
    """

    def __init__(self, kind: Kind, mirror: bool = False):
        self.kind, self.mirror = kind, mirror
        self.probability = MOST if kind == "always" else 0.0

    def follow(self, history: History) -> None:
        """Sets the probability by all evaluations of the run so far."""
        if self.kind == "adaptive":
            self.probability = 0.0
            for row in history:
                remembers = row.get("pair_accuracy_train", 0.0) - row.get("pair_accuracy", 0.0) > GAP
                self.probability = min(max(self.probability + (RISE if remembers else -FALL), 0.0), MOST)

    def mirrored(self, real: Tensor, rng: BatchRNG) -> Tensor:
        """Real images (batch, channels, height, width), half of them mirrored if that is asked for."""
        if not self.mirror:
            return real
        return torch.where(rng.uniform().view(-1, 1, 1, 1) < 0.5, real.flip(3), real)

    def of_real(self, real: Tensor, rng: BatchRNG) -> Tensor:
        """Real images as the discriminator sees them: mirrored if that is asked for, then changed."""
        return self(self.mirrored(real, rng), rng)

    def __call__(self, images: Tensor, rng: BatchRNG) -> Tensor:
        """Changes images; differentiable with respect to them.

        Args:
            images: (batch, channels, height, width), usually in [0, 1]; the result may exceed this range.
            rng: gives other changes in each call.
        """
        if self.probability == 0:
            return images
        return self._hide(self._recolor(self._move(at_least_float32(images), rng), rng), rng)

    def _happens(self, rng: BatchRNG) -> Tensor:
        return rng.uniform() < self.probability

    def _move(self, images: Tensor, rng: BatchRNG) -> Tensor:
        """Moves and scales; what comes from outside of the image is its reflection."""
        shift = torch.where(self._happens(rng)[:, None], (2 * rng.uniform(2) - 1) * 2 * SHIFT, 0.0)
        size = torch.where(self._happens(rng), SCALE * rng.normal(), 0.0).exp2()
        matrix = torch.zeros(len(images), 2, 3, device=images.device, dtype=images.dtype)
        matrix[:, 0, 0] = matrix[:, 1, 1] = size.to(images.dtype)
        matrix[:, :, 2] = shift.to(images.dtype)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def _recolor(self, images: Tensor, rng: BatchRNG) -> Tensor:
        brightness = torch.where(self._happens(rng), BRIGHTNESS * rng.normal(), 0.0)
        contrast = torch.where(self._happens(rng), CONTRAST * rng.normal(), 0.0).exp2()
        mean = images.mean((1, 2, 3), keepdim=True)
        return (images - mean) * contrast.view(-1, 1, 1, 1) + mean + brightness.view(-1, 1, 1, 1)

    def _hide(self, images: Tensor, rng: BatchRNG) -> Tensor:
        """Blackens a rectangle whose center can be anywhere, so that corners are hidden as often as the middle."""
        center = rng.uniform(2)
        rows, columns = (
            ((torch.arange(length, device=images.device) + 0.5) / length - center[:, [i]]).abs() < HIDDEN / 2
            for i, length in enumerate(images.shape[2:])
        )
        hidden = rows[:, :, None] & columns[:, None, :] & self._happens(rng)[:, None, None]
        return images.masked_fill(hidden[:, None], 0.0)
