"""Dynamic binarization: gray images become black and white at random, with new draws every time they are seen.

A pixel of value p becomes 1 with probability p (Salakhutdinov & Murray 2008). Redrawing the training images in every
epoch keeps a model from memorizing one binarization of them, so likelihoods under this protocol are better than, and
not comparable with, those on Larochelle's fixed binarization (`binarized-mnist`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..randomness import BatchRNG, derive_seed
from .feeds.batches import Batch, Feed, GlobalBatch
from .images import ImageData


# Of the evaluation split, which is the same in all runs, whatever their --seed.
EVALUATION_SEED = 0


def binarized(data: ImageData, seed: int) -> ImageData:
    """Returns gray data whose training images are binarized every time they are seen, evaluation images only once.

    Args:
        data: of one channel; pixels that are 0 or 1 stay what they are.
        seed: determines the training images, together with the step.

    Raises:
        ValueError: the images have color.
    """
    if data.num_channels != 1:
        raise ValueError(
            f"--dynamic_binarization must be left out for images of {data.num_channels} channels, got true. It needs "
            "gray images; convert them with --num_channels 1."
        )
    return replace(
        data,
        train=BinarizedFeed(data.train, seed),
        eval_pixels=BinarizedPixels(data.eval_pixels),
        eval_split=f"{data.eval_split}, binarized once",
    )


class BinarizedFeed(Feed):
    """A feed of gray images, binarized by random numbers that follow from the seed, the step and the row.

    Args:
        feed: its batches have `pixel_values` in [0, 1].
        seed: of the run.
    """

    def __init__(self, feed: Feed, seed: int):
        self.feed, self.seed = feed, seed
        self.num_examples = feed.num_examples

    def batches(
        self, first_step: int, global_batch: GlobalBatch, device: torch.device, state: dict[str, Any] | None = None
    ) -> Iterator[Batch]:
        feed = self.feed.batches(first_step, global_batch, device, state)
        for step in count(first_step):
            for micro_step in range(global_batch.accumulation):
                batch = next(feed)
                gray = batch["pixel_values"]
                key = (self.seed, "binarization", step)
                rng = BatchRNG(key, global_batch.size, global_batch.rows(micro_step), device)
                yield {**batch, "pixel_values": (rng.uniform(*gray.shape[1:]) < gray).to(gray.dtype)}

    def state(self) -> dict[str, Any]:
        return self.feed.state()


class BinarizedPixels:
    """Evaluation pixels, binarized by random numbers that belong to each image: the same whenever it is asked for.

    Args:
        pixels: uint8 (examples, 1, height, width), or rows that are decoded when they are asked for.
    """

    def __init__(self, pixels: Any):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The images with these indices, uint8 (rows, 1, height, width), all 0 or 255."""
        gray = self.pixels[rows]
        draws = torch.empty(gray.shape)
        for draw, row in zip(draws, rows.tolist()):
            generator = torch.Generator().manual_seed(derive_seed(EVALUATION_SEED, "evaluation binarization", row))
            draw.uniform_(generator=generator)
        return (draws < gray / 255).to(torch.uint8) * 255
