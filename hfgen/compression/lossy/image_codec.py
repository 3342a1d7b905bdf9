"""What does a file of kind `IMAGES` hold? Pictures, as the symbols of a CodecModel.

Symbols are coded with tables of integers that are stored with the model, so they are decoded exactly on every machine,
whatever its arithmetic. FORMAT.md describes parameters and payload byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models.modeling_codec import LARGEST_SYMBOL, CodecModel
from ...models.symbol_tables import NUM_CONTEXTS, coding_passes, symbol_contexts, table_entries
from ..container import ByteReader, pack_integer, pack_text
from ..entropy_coder import SymbolDecoder, SymbolEncoder
from ..new_files import check_image_name


_MAX_SIDE = 1 << 20
# Of the networks at a time: more need more memory, and are not faster.
_PIXELS_AT_ONCE = 1 << 20
# An escaped symbol takes this many bits at most, besides their number.
_ESCAPE_BITS = 16
_ESCAPE_WEIGHTS = np.array([1 << (_ESCAPE_BITS - bits) for bits in range(_ESCAPE_BITS + 1)], np.int64)
_HALVES = np.ones(2, np.int64)


@dataclass(frozen=True)
class Picture:
    """One image of a file: its name, which is that of a PNG file, and its size in pixels."""

    name: str
    height: int
    width: int


def encode(images: Sequence[tuple[str, Tensor]], model: CodecModel, quality: float) -> tuple[bytes, bytes, bytes]:
    """Codes images.

    Args:
        images: names, and pixels (1, channels, height, width), uint8.
        model: with tables.
        quality: in [0, 1]; rounded to the nearest level of the model.

    Returns:
        parameters and payload of a `Container`, and the SHA-256 of the symbols.

    Raises:
        ValueError: a name, the quality or the model does not fit.
    """
    level = model.quality_level(quality)
    tables = _tables(model, level)
    pictures = [Picture(check_image_name(name), *pixels.shape[2:]) for name, pixels in images]
    if len({picture.name.casefold() for picture in pictures}) < len(pictures):
        raise ValueError("IMAGE must have names that differ before the suffix, as all become PNG files. Rename some.")
    symbols: list[np.ndarray] = []
    for part in _batches([picture.height * picture.width for picture in pictures], pictures):
        pixels = torch.cat([images[index][1] for index in part]).to(torch.float32) / 255
        symbols.extend(model.encode_symbols(pixels.contiguous(memory_format=torch.channels_last), quality).numpy())
    encoder = SymbolEncoder()
    contexts = [symbol_contexts(torch.from_numpy(of_image)).numpy() for of_image in symbols]
    for masks in zip(*map(_passes, symbols)):
        _encode_pass(encoder, _join(symbols, masks), _join(contexts, masks), _channels(symbols, masks), tables)
    return _pack_parameters(level, pictures), encoder.to_bytes(), _digest(symbols)


def decode(parameters: bytes, payload: bytes, model: CodecModel, digest: bytes) -> Iterator[tuple[str, Tensor]]:
    """The images that `encode` coded, with the same model. All symbols are decoded and checked before the first image.

    Args:
        parameters, payload: of a `Container`.
        model: the one that coded them.
        digest: SHA-256 of the symbols.

    Yields:
        names, and pixels (1, channels, height, width), float32 in [0, 1].

    Raises:
        ValueError: parameters or payload are not what `encode` wrote, or the model is another.
    """
    level, pictures = unpack_parameters(parameters)
    if level >= model.config.num_levels:
        raise ValueError(f"The level of quality must be below {model.config.num_levels}, got {level}.")
    tables = _tables(model, level)
    cells = model.config.downsampling
    shapes = [(model.config.latent_dim, -(-image.height // cells), -(-image.width // cells)) for image in pictures]
    # A foreign file must not claim memory without end.
    count = sum(channels * height * width for channels, height, width in shapes)
    if count > _most_symbols(payload, tables):
        raise ValueError(f"The payload must hold {count:,} symbols, got {len(payload):,} bytes. It was damaged.")
    symbols = [np.zeros(shape, np.int32) for shape in shapes]
    decoder = SymbolDecoder(payload)
    for masks in zip(*map(_passes, symbols)):
        contexts = [symbol_contexts(torch.from_numpy(of_image)).numpy() for of_image in symbols]
        values = _decode_pass(decoder, _join(contexts, masks), _channels(symbols, masks), tables)
        for of_image, mask in zip(symbols, masks):
            count = len(of_image) * int(mask.sum())
            of_image[:, mask], values = values[:count].reshape(len(of_image), -1), values[count:]
    if _digest(symbols) != digest:
        raise ValueError(
            f"The decoded symbols must have the SHA-256 {digest.hex()}, got {_digest(symbols).hex()}. The file was "
            "damaged, or written by another version of hfgen. Nothing was written."
        )
    return _images(pictures, symbols, model, level)


def describe(parameters: bytes) -> dict[str, Any]:
    """What the parameters say of the images."""
    level, pictures = unpack_parameters(parameters)
    return {
        "images": len(pictures),
        "level": level,
        "pixels": sum(picture.height * picture.width for picture in pictures),
        "names": [picture.name for picture in pictures],
        "sizes": [[picture.height, picture.width] for picture in pictures],
    }


def unpack_parameters(parameters: bytes) -> tuple[int, list[Picture]]:
    """Level of quality and images of a file.

    Raises:
        ValueError: the parameters are not those of a file of images.
    """
    reader = ByteReader(parameters, "The parameters")
    level, count = reader.integer(), reader.integer(len(parameters))
    pictures = [
        Picture(check_image_name(reader.text()), reader.integer(_MAX_SIDE), reader.integer(_MAX_SIDE))
        for _ in range(count)
    ]
    if reader.rest() or not pictures or min(min(picture.height, picture.width) for picture in pictures) < 1:
        raise ValueError(
            "The parameters must describe images of at least one pixel, got others. hfgen did not write it."
        )
    return level, pictures


def _pack_parameters(level: int, pictures: list[Picture]) -> bytes:
    parts = [pack_integer(level), pack_integer(len(pictures))]
    for picture in pictures:
        parts += [pack_text(picture.name), pack_integer(picture.height), pack_integer(picture.width)]
    return b"".join(parts)


def _images(
    pictures: list[Picture], symbols: list[np.ndarray], model: CodecModel, level: int
) -> Iterator[tuple[str, Tensor]]:
    quality = level / (model.config.num_levels - 1)
    for part in _batches([picture.height * picture.width for picture in pictures], pictures):
        size = (pictures[part[0]].height, pictures[part[0]].width)
        stacked = torch.from_numpy(np.stack([symbols[index] for index in part]))
        for index, image in zip(part, model.decode_symbols(stacked, quality, size).split(1)):
            yield pictures[index].name, image


def _batches(pixels: list[int], pictures: list[Picture]) -> Iterator[list[int]]:
    """Positions of images that go through the networks together: of one size, one after the other."""
    for _, group in groupby(range(len(pictures)), key=lambda i: (pictures[i].height, pictures[i].width)):
        positions = list(group)
        count = max(1, _PIXELS_AT_ONCE // pixels[positions[0]])
        yield from (positions[start : start + count] for start in range(0, len(positions), count))


def _tables(model: CodecModel, level: int) -> np.ndarray:
    """The frequencies of a level, (channels * contexts, entries)."""
    if not model.has_tables:
        raise ValueError("The model must have tables of symbols, got one without. Finish its training.")
    return model.tables[level].flatten(0, 1).numpy()


def _most_symbols(payload: bytes, tables: np.ndarray) -> float:
    """More symbols than a payload can hold, even if each is the likeliest one: at least twice as many, because the
    coder's tables, of 24 bits, are not quite these."""
    likeliest = tables.max() / tables[0].sum()
    return 2 * (8 * len(payload) + 64) / -np.log2(likeliest)


def _passes(symbols: np.ndarray) -> list[np.ndarray]:
    return [mask.numpy() for mask in coding_passes(*symbols.shape[1:])]


def _join(grids: list[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
    """The values of a pass: image by image, channel by channel, row by row."""
    return np.concatenate([grid[:, mask].ravel() for grid, mask in zip(grids, masks)])


def _channels(symbols: list[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
    """The channel of each value that `_join` returns."""
    return np.concatenate([np.repeat(np.arange(len(grid)), mask.sum()) for grid, mask in zip(symbols, masks)])


def _encode_pass(
    encoder: SymbolEncoder, values: np.ndarray, contexts: np.ndarray, channels: np.ndarray, tables: np.ndarray
) -> None:
    largest = tables.shape[1] // 2 - 1
    entries = table_entries(torch.from_numpy(values), largest).numpy()
    for table, places in _by_table(channels, contexts):
        encoder.encode_alike(entries[places], tables[table])
    beyond = values[np.abs(values) > largest].astype(np.int64)
    codes = 2 * (np.abs(beyond) - largest - 1) + (beyond < 0) + 1
    lengths = np.frexp(codes)[1] - 1
    encoder.encode_alike(lengths, _ESCAPE_WEIGHTS)
    for bit in range(_ESCAPE_BITS):
        encoder.encode_alike(codes[lengths > bit] >> bit & 1, _HALVES)


def _decode_pass(decoder: SymbolDecoder, contexts: np.ndarray, channels: np.ndarray, tables: np.ndarray) -> np.ndarray:
    largest = tables.shape[1] // 2 - 1
    values = np.zeros(len(contexts), np.int64)
    for table, places in _by_table(channels, contexts):
        values[places] = decoder.decode_alike(len(places), tables[table]).astype(np.int64) - largest
    is_beyond = values > largest
    lengths = decoder.decode_alike(int(is_beyond.sum()), _ESCAPE_WEIGHTS).astype(np.int64)
    codes = 1 << lengths
    for bit in range(_ESCAPE_BITS):
        chosen = lengths > bit
        codes[chosen] |= decoder.decode_alike(int(chosen.sum()), _HALVES).astype(np.int64) << bit
    magnitudes = (codes - 1 >> 1) + largest + 1
    values[is_beyond] = np.where((codes - 1) % 2, -magnitudes, magnitudes)
    if np.abs(values).max(initial=0) > LARGEST_SYMBOL:
        raise ValueError(f"Symbols must be at most {LARGEST_SYMBOL}, got a larger one. The file was damaged.")
    return values


def _by_table(channels: np.ndarray, contexts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Tables in ascending order, and where the values that they code are."""
    numbers = channels * NUM_CONTEXTS + contexts
    # 16 bits are sorted by their digits, many times faster than by comparisons.
    narrow = np.uint16 if numbers.max(initial=0) < 1 << 16 else np.int64
    order = np.argsort(numbers.astype(narrow), kind="stable")
    found, starts = np.unique(numbers[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]))


def _digest(symbols: list[np.ndarray]) -> bytes:
    found = sha256()
    for grid in symbols:
        found.update(grid.astype("<i4").tobytes())
    return found.digest()
