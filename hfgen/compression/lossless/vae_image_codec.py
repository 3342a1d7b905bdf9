"""What does a file of kind `LOSSLESS_IMAGES` hold? Images of one size, coded by bits back with a VAE.

Bits back with ANS (Townsend et al. 2019, https://arxiv.org/abs/1901.04866): the latents of an image are popped from
the stack by their posterior, the image is pushed given its latents, and the latents are pushed by their prior. An
image takes -log2 p(x|z) - log2 p(z) + log2 q(z|x) bits, on average its negative evidence lower bound. The bits that
the first latents are drawn from are paid once per file, however many images follow.

Images are coded in batches, of which all latents are popped first and so need bits that are there. So batches begin
with single images and grow as the stack does. All levels of a ladder's latents must be popped before the image is
pushed, since it depends on all of them: what Bit-Swap (Kingma et al. 2019, https://arxiv.org/abs/1905.06845) saves by
pushing in between is open only to models whose levels are a Markov chain from the image up.

FORMAT.md describes parameters and payload byte by byte.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from torch import Tensor

from ...models.modeling_ladder_vae import LadderVAEModel
from ...models.modeling_vae import VAEModel
from ..container import ByteReader
from ..entropy_coder import PRECISION
from ..logit_levels import Decisions, round_logits, round_logits_as
from ..self_test import check_self_test
from .image_plan import MAX_BATCH, ImagePlan
from .lattice import MAX_SPACING_BITS, Lattice
from .pixel_symbols import BinaryPixels, LogisticPixels, build_pixel_symbols
from .stack_coder import StackCoder, initial_words
from .vae_networks import VAENetworks


# Of a batch: bounds the memory.
_MAX_NUMBERS_AT_ONCE = 1 << 22
# Images that the spacings of latents are chosen by: from one to two times the standard deviation that this share of
# their posteriors is below. A finer lattice made no file of trained models smaller, and took more initial bits.
_SAMPLED_IMAGES = 64
_NARROW_SHARE = 0.1
# Of the words on the stack, a batch may be expected to need this part.
_SAFE_SHARE = 0.8


class Rounding:
    """Rounds what networks give, in an order of places that encoder and decoder share: in each batch, the numbers of
    each part follow those of the part before, and those of a batch follow those of the batch before.

    Args:
        decisions: of the encoder; None to make and record them.
    """

    def __init__(self, decisions: Decisions | None = None):
        self._given = decisions
        self._made: list[Decisions] = []

    def round(self, numbers: np.ndarray, place: int) -> np.ndarray:
        """Integers, in units of 1 / LEVELS_PER_NAT, for numbers of which the first has this place."""
        if self._given is not None:
            return round_logits_as(numbers, place, self._given)
        levels, decisions = round_logits(numbers, place)
        self._made.append(decisions)
        return levels

    def mark(self) -> int:
        """Where `forget` returns to."""
        return len(self._made)

    def forget(self, mark: int) -> None:
        """Drops the decisions since a mark, as those of a batch that is to be coded again."""
        del self._made[mark:]

    def to_bytes(self) -> bytes:
        """All decisions that were made."""
        places = np.concatenate([np.empty(0, np.int64), *(made.places for made in self._made)])
        ups = np.concatenate([np.empty(0, np.int64), *(made.ups for made in self._made)])
        order = np.argsort(places, kind="stable")
        return Decisions(places[order], ups[order]).to_bytes()


class BitsBackCoder:
    """Pushes and pops batches of images.

    Args:
        networks, symbols: of the model.
        stack: the coder.
        spacing_bits: of each level of latents.
        rounding: for what the networks give.
    """

    def __init__(
        self,
        networks: VAENetworks,
        symbols: BinaryPixels | LogisticPixels,
        stack: StackCoder,
        spacing_bits: list[int],
        rounding: Rounding,
    ):
        self.stack = stack
        self.rounding = rounding
        self._networks, self._symbols = networks, symbols
        self._lattices = [Lattice(bits) for bits in spacing_bits]
        self._latents = networks.level_sizes
        self._numbers_per_image = networks.count_numbers(symbols.numbers_per_pixel)

    @property
    def most_words_per_image(self) -> int:
        """Words on the stack that suffice for the latents of any image: no symbol takes more than 24 bits."""
        return sum(self._latents) * PRECISION // 32 + 4

    def push(self, pixels: np.ndarray, first_image: int) -> int:
        """Pushes images (batch, channels, height, width), uint8; `first_image` is the index in the file of the first.

        Returns:
            the words that were on the stack when all latents had been popped. Below 0: too few, and what is on the
            stack is of no use.
        """
        batch, encoded = len(pixels), self._networks.encode(pixels)
        place = first_image * self._numbers_per_image
        latents: list[np.ndarray] = []

        def draw(level: int, above: Tensor | None) -> Tensor:
            means, scales = self._round_posterior(encoded, level, above, batch, place)
            latents.append(self._lattices[level].pop_posterior(self.stack, means, scales))
            return self._values(latents[-1], level, batch)

        parameters = self._networks.decode(draw)
        spare = self.stack.spare_words
        if spare < 0:
            return spare
        self._symbols.push(self.stack, pixels, self._round_pixels(parameters, batch, place))
        for lattice, indices in reversed([*zip(self._lattices, latents)]):
            lattice.push_prior(self.stack, indices)
        return spare

    def pop(self, batch: int, first_image: int) -> np.ndarray:
        """The images that `push` pushed, (batch, channels, height, width), uint8; restores the stack before it."""
        place = first_image * self._numbers_per_image
        latents = [
            lattice.pop_prior(self.stack, batch * count) for lattice, count in zip(self._lattices, self._latents)
        ]
        above: list[Tensor | None] = []

        def known(level: int, features: Tensor | None) -> Tensor:
            above.append(features)
            return self._values(latents[level], level, batch)

        parameters = self._networks.decode(known)
        pixels = self._symbols.pop(self.stack, self._round_pixels(parameters, batch, place))
        if self.stack.spare_words < 0:
            raise ValueError("The stack must hold all images, got too few bits. The file was damaged.")
        encoded = self._networks.encode(pixels)
        for level in reversed(range(len(latents))):
            means, scales = self._round_posterior(encoded, level, above[level], batch, place)
            self._lattices[level].push_posterior(self.stack, latents[level], means, scales)
        return pixels

    def _values(self, indices: np.ndarray, level: int, batch: int) -> Tensor:
        values = self._lattices[level].to_values(indices)
        return torch.from_numpy(values.reshape(batch, *self._networks.level_shapes[level]))

    def _round_posterior(
        self, encoded: Any, level: int, above: Tensor | None, batch: int, place: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means and scales for a `Lattice`, (batch * latents,) each."""
        posterior = self._networks.posterior(encoded, level, above)
        means, scales = self._lattices[level].scaled(*(part.ravel() for part in posterior))
        place += 2 * batch * sum(self._latents[:level])
        return self.rounding.round(means, place), self.rounding.round(scales, place + means.size)

    def _round_pixels(self, parameters: Tensor, batch: int, place: int) -> np.ndarray:
        return self.rounding.round(self._symbols.scaled(parameters), place + 2 * batch * sum(self._latents))


def encode(pixels: np.ndarray, names: list[str], model: VAEModel | LadderVAEModel) -> tuple[bytes, bytes]:
    """Codes images.

    Args:
        pixels: (images, channels, height, width), uint8, at least one.
        names: of the images, as those of PNG files.
        model: in float64.

    Returns:
        parameters and payload of a `Container`.

    Raises:
        ValueError: the images or the model do not fit.
    """
    networks, symbols = VAENetworks(model), build_pixel_symbols(model.likelihood)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != networks.image_shape or not len(pixels):
        raise ValueError(
            f"Images must have the shape {networks.image_shape} of the model (channels, height, width), got "
            f"{pixels.dtype} of shape {pixels.shape}. Resize them, or train a model on such images."
        )
    if symbols.is_binary and not np.isin(pixels, (0, 255)).all():
        raise ValueError(
            "Images must be black and white, got other pixels. The model has Bernoulli pixels: use one that was "
            "trained with --likelihood discretized_logistic or logistic_mixture."
        )
    self_test = networks.self_test()
    spacing_bits = _choose_spacings(networks, pixels[:_SAMPLED_IMAGES])
    coder = BitsBackCoder(networks, symbols, StackCoder(), spacing_bits, Rounding())
    at_once = _MAX_NUMBERS_AT_ONCE // networks.count_numbers(symbols.numbers_per_pixel)
    batches, words = _push_all(coder, pixels, max(1, min(MAX_BATCH, at_once)))
    plan = ImagePlan(networks.image_shape, symbols.is_binary, self_test, spacing_bits, batches, words, names)
    return plan.to_bytes(), coder.rounding.to_bytes() + coder.stack.to_bytes()


def decode(plan: ImagePlan, payload: bytes, model: VAEModel | LadderVAEModel) -> np.ndarray:
    """The images that `encode` coded, with the same model: (images, channels, height, width), uint8.

    Args:
        plan: what the parameters of the `Container` say.
        payload: of the `Container`.
        model: in float64.

    Raises:
        ValueError: the machine's arithmetic or the model is not what the images were coded with, or a file is damaged.
    """
    networks, symbols = VAENetworks(model), build_pixel_symbols(model.likelihood)
    if (plan.image_shape, len(plan.spacing_bits), plan.is_binary) != (
        networks.image_shape, len(networks.level_shapes), symbols.is_binary
    ):  # fmt: skip
        raise ValueError(
            f"The model must have images of shape {plan.image_shape} and {len(plan.spacing_bits)} levels of latents, "
            f"got {networks.image_shape} and {len(networks.level_shapes)}. It is not the model of the file."
        )
    check_self_test(plan.self_test, networks.self_test())
    reader = ByteReader(payload, "The payload")
    decisions = Decisions.from_reader(reader, networks.count_numbers(symbols.numbers_per_pixel) * plan.num_images)
    coder = BitsBackCoder(networks, symbols, StackCoder(reader.rest()), plan.spacing_bits, Rounding(decisions))
    images: list[np.ndarray] = []
    left = plan.num_images
    with tqdm(total=left, unit=" images", disable=None, leave=False) as bar:
        for size in plan.sizes_from_last():
            left -= size
            images.append(coder.pop(size, left))
            bar.update(size)
    # Their number first: a foreign file may claim any.
    num_words, words = plan.initial_words, coder.stack.words()
    if len(words) != num_words or not np.array_equal(words, initial_words(num_words)):
        raise ValueError(
            "The stack must end with its initial words, got others. The model or this machine's arithmetic differs "
            "from the one that compressed the file. Nothing was written."
        )
    return np.concatenate(images[::-1])


def _choose_spacings(networks: VAENetworks, pixels: np.ndarray) -> list[int]:
    """Spacings of latents, about as wide as the narrow ones among the posteriors of a few images."""
    encoded = networks.encode(pixels)
    chosen = []

    def most_likely(level: int, above: Tensor | None) -> Tensor:
        means, log_stds = networks.posterior(encoded, level, above)
        bits = np.floor(-np.quantile(log_stds, _NARROW_SHARE) / np.log(2))
        chosen.append(int(np.clip(bits, 0, MAX_SPACING_BITS)))
        return torch.from_numpy(means)

    networks.decode(most_likely)
    return chosen


def _push_all(coder: BitsBackCoder, pixels: np.ndarray, largest: int) -> tuple[list[tuple[int, int]], int]:
    """Pushes all images; returns the batches of an `ImagePlan` and the number of initial words."""
    sizes: list[int] = []
    start = words = added = 0
    size = 1
    with tqdm(total=len(pixels), unit=" images", disable=None, leave=False) as bar:
        while start < len(pixels):
            size = min(size, len(pixels) - start)
            before, mark = coder.stack.clone(), coder.rounding.mark()
            spare = coder.push(pixels[start : start + size], start)
            if spare < 0:
                coder.stack = before
                coder.rounding.forget(mark)
                if size > 1:
                    size //= 2
                    continue
                # Enough for any image; what it leaves is taken away again, from below, where nothing has changed.
                added = coder.most_words_per_image
                words += added
                coder.stack.put_below(initial_words(words)[:added])
                continue
            if added:
                coder.stack.take_from_below(spare)
                words, added = words - spare, 0
            sizes.append(size)
            start += size
            bar.update(size)
            words_per_image = max(1, before.spare_words - spare) / size
            fitting = int(_SAFE_SHARE * coder.stack.spare_words / words_per_image)
            size = 1 << max(1, min(largest, fitting)).bit_length() - 1
    return [(size, len([*group])) for size, group in groupby(sizes)], words
