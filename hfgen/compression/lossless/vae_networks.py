"""What does a VAE say of images and of latents? The numbers that the image codec turns into tables.

Whoever encodes knows the image and draws the latents from the top down; whoever decodes knows the latents first, then
the image, and then what the posteriors were. Both run the same networks on the same numbers, but at other moments and
in other batches, so what they get may differ in its last bits; logit_levels.py takes care of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models.latents import DiagonalGaussianDistribution
from ...models.modeling_ladder_vae import ImageFeatures, LadderVAEModel
from ...models.modeling_vae import VAEModel
from ..self_test import check_independence, mix


# Called with the number of a level and the features above it (None for the first level); returns its latents.
LatentsOf = Callable[[int, Tensor | None], Tensor]
_TESTED_IMAGES = 3


class VAENetworks:
    """The networks of a VAE, in float64.

    Args:
        model: in float64, without classes, and with the prior N(0, I).

    Attributes:
        image_shape: (channels, height, width).
        level_shapes: shape of each level's latents, from the top down.

    Raises:
        ValueError: the model has classes or another prior.
    """

    def __init__(self, model: VAEModel | LadderVAEModel):
        config = model.config
        if config.prior != "normal":
            raise ValueError(
                f'The prior of the model must be "normal", got {config.prior!r}, under which latents depend on each '
                "other and cannot be coded one by one. Train a model with --prior normal."
            )
        if config.num_labels:
            raise ValueError(
                f"The model must have no classes, got {config.num_labels}. Train one with --num_labels 0."
            )
        self._model = model
        self.image_shape = (config.num_channels, *config.image_size)
        self._levels: list[Any] = []
        self.level_shapes: list[tuple[int, ...]] = [config.latent_shape]
        if isinstance(model, LadderVAEModel):
            stages: Any = model.decoder.stages
            self._levels = [level for stage in stages for level in stage.levels]
            self.level_shapes = config.level_shapes

    @property
    def level_sizes(self) -> list[int]:
        """Latents of each level."""
        return [math.prod(shape) for shape in self.level_shapes]

    def count_numbers(self, numbers_per_pixel: int) -> int:
        """Numbers that are rounded for an image: means and standard deviations of latents, and those of pixels."""
        return 2 * sum(self.level_sizes) + numbers_per_pixel * math.prod(self.image_shape[1:])

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> Any:
        """What the encoder says of images (batch, channels, height, width), uint8, for `posterior`."""
        return self._model.encoder(torch.from_numpy(pixels).to(torch.float64) / 127.5 - 1, None)

    @torch.inference_mode()
    def posterior(self, encoded: Any, level: int, above: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Means and logarithms of standard deviations of a level's latents, float64, (batch, *level_shapes[level])."""
        if level > 0:
            distribution = self._levels[level - 1].infer(above, encoded.levels[level - 1])
        else:
            distribution = encoded.top if isinstance(encoded, ImageFeatures) else DiagonalGaussianDistribution(encoded)
        return distribution.mean.numpy(), distribution.logvar.numpy() / 2

    @torch.inference_mode()
    def decode(self, latents_of: LatentsOf) -> Tensor:
        """Parameters of p(x|z), (batch, parameters per pixel, height, width), float64.

        Args:
            latents_of: called once for each level, from the top down.
        """
        top = latents_of(0, None)
        if not self._levels:
            return self._model.decoder(top, None)
        numbers = {id(level): number for number, level in enumerate(self._levels, start=1)}
        return self._model.decoder(top, lambda level, above: latents_of(numbers[id(level)], above), None)

    def self_test(self) -> np.ndarray:
        """Numbers in which the last bits of all that the networks compute add up.

        Raises:
            ValueError: they depend on how many images are computed at once.
        """
        pixels = _pattern((_TESTED_IMAGES, *self.image_shape), 256).astype(np.uint8)
        latents = [(_pattern((_TESTED_IMAGES, *shape), 33) - 16) / 8 for shape in self.level_shapes]
        at_once = self._test(pixels, latents)
        one_by_one = [self._test(pixels[[i]], [level[[i]] for level in latents]) for i in range(_TESTED_IMAGES)]
        found = mix(np.concatenate(one_by_one))
        check_independence(mix(at_once), found, "images")
        return found

    def _test(self, pixels: np.ndarray, latents: list[np.ndarray]) -> np.ndarray:
        """All that the networks say of images and of latents that need not belong to them, (images, numbers)."""
        found: list[np.ndarray] = []
        encoded = self.encode(pixels)

        def latents_of(level: int, above: Tensor | None) -> Tensor:
            found.extend(self.posterior(encoded, level, above))
            return torch.from_numpy(latents[level])

        parameters = self.decode(latents_of)
        return np.concatenate([part.reshape(len(pixels), -1) for part in [*found, parameters.numpy()]], axis=1)


def _pattern(shape: tuple[int, ...], alphabet: int) -> np.ndarray:
    """Integers from 0 to `alphabet` - 1 that look random, by a multiplicative hash of the place."""
    places = np.arange(int(np.prod(shape)), dtype=np.uint64)
    return (places * 2654435761 % 2**32 * alphabet >> 32).astype(np.int64).reshape(shape)
