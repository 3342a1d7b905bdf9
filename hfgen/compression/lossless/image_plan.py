"""What must be known of a file of lossless images besides its model? The parameters of a `Container`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from ..container import ByteReader, pack_integer
from ..new_files import check_image_name
from ..self_test import SELF_TEST_NUMBERS
from .lattice import MAX_SPACING_BITS


MAX_BATCH = 128
_MAX_COUNT = 1 << 40
_MAX_SIDE = 1 << 20
_MAX_NAME_BYTES = 256 * 4
_SELF_TEST = struct.Struct(f"<{SELF_TEST_NUMBERS}d")
_IS_BINARY, _HAS_NAMES = 1, 2


@dataclass
class ImagePlan:
    """How images are coded, and what they are called.

    Attributes:
        image_shape: (channels, height, width).
        is_binary: whether pixels are 0 or 255.
        self_test: see self_test.py.
        spacing_bits: of each level of latents, from the top down; see lattice.py.
        batches: numbers of images, in the order of coding, each with how often it follows.
        initial_words: that the stack began with.
        names: those of PNG files.
    """

    image_shape: tuple[int, int, int]
    is_binary: bool
    self_test: np.ndarray
    spacing_bits: list[int]
    batches: list[tuple[int, int]]
    initial_words: int
    names: list[str]

    @property
    def num_images(self) -> int:
        """Images in the file."""
        return sum(size * times for size, times in self.batches)

    @property
    def num_pixels(self) -> int:
        """Pixels of all images."""
        return self.num_images * self.image_shape[1] * self.image_shape[2]

    def sizes_from_last(self) -> Iterator[int]:
        """Images of each batch, the last one first."""
        for size, times in reversed(self.batches):
            yield from repeat(size, times)

    def describe(self) -> dict[str, Any]:
        """What `hfgen info` shows."""
        channels, height, width = self.image_shape
        return {
            "images": self.num_images,
            "height": height,
            "width": width,
            "channels": channels,
            "pixels": self.num_pixels,
            "pixel_values": "0 and 255" if self.is_binary else "0 to 255",
            "names": self.names if len(self.names) < 10 else [self.names[0], "...", self.names[-1]],
            "levels_of_latents": len(self.spacing_bits),
            "initial_bytes": 4 * self.initial_words,
        }

    def to_bytes(self) -> bytes:
        """The parameters of a `Container`."""
        has_names = self.names != numbered_names(self.num_images)
        numbers = [*self.image_shape, len(self.spacing_bits), *self.spacing_bits, self.initial_words]
        numbers += [len(self.batches), *(number for batch in self.batches for number in batch)]
        flags = _IS_BINARY * self.is_binary + _HAS_NAMES * has_names
        stems = "\n".join(name.removesuffix(".png") for name in self.names).encode("utf-8")
        return b"".join([
            bytes([flags]),
            _SELF_TEST.pack(*self.self_test),
            *map(pack_integer, numbers),
            zlib.compress(stems, 9) if has_names else b"",
        ])  # fmt: skip

    @classmethod
    def from_bytes(cls, parameters: bytes) -> ImagePlan:
        """Reads what `to_bytes` returned.

        Raises:
            ValueError: a parameter is out of range.
        """
        reader = ByteReader(parameters, "The parameters")
        (flags,) = reader.take(1)
        self_test = np.array(_SELF_TEST.unpack(reader.take(_SELF_TEST.size)))
        channels, height, width = (reader.integer(_MAX_SIDE) for _ in range(3))
        spacing_bits = [reader.integer(MAX_SPACING_BITS) for _ in range(reader.integer(len(parameters)))]
        words = reader.integer(_MAX_COUNT)
        runs = reader.integer(len(parameters))
        batches = [(reader.integer(MAX_BATCH), reader.integer(_MAX_COUNT)) for _ in range(runs)]
        plan = cls((channels, height, width), bool(flags & _IS_BINARY), self_test, spacing_bits, batches, words, [])
        if flags > _IS_BINARY | _HAS_NAMES or not plan.num_images or min(map(min, batches)) < 1:
            raise ValueError(f"The parameters of the images must fit together, got {plan}. hfgen did not write it.")
        names = reader.rest()
        plan.names = _unpack_names(names, plan.num_images) if flags & _HAS_NAMES else numbered_names(plan.num_images)
        return plan


def numbered_names(count: int) -> list[str]:
    """Names for images that have none: "0.png" and so on, with as many digits as the last one needs."""
    digits = len(str(count - 1))
    return [f"{number:0{digits}}.png" for number in range(count)]


def _unpack_names(content: bytes, count: int) -> list[str]:
    decompressor = zlib.decompressobj()
    try:
        stems = decompressor.decompress(content, _MAX_NAME_BYTES * count).decode("utf-8")
    except (zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"The names of the images must be compressed UTF-8, got other bytes: {error}.") from None
    names = [check_image_name(f"{stem}.png") for stem in stems.split("\n")]
    if not decompressor.eof or decompressor.unused_data or len({name.casefold() for name in names}) != count:
        raise ValueError(f"The names of {count:,} images must differ, got {len(names):,}. hfgen did not write it.")
    return names
