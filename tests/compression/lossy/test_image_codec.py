"""Images in files: any symbols come back with any tables, and nothing else than what was coded is decoded."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfgen.compression.lossy import image_codec
from hfgen.models.modeling_codec import LARGEST_SYMBOL, CodecModel

from .image_data import tiny_codec


def random_image(height: int, width: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(256, (1, channels, height, width), generator=generator, dtype=torch.uint8)


def with_symbols(
    model: CodecModel, symbols: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, Tensor]]:
    """Images that the model encodes as these symbols, (channels, h, w) each, one after the other."""
    left = iter(symbols)
    monkeypatch.setattr(model, "encode_symbols", lambda pixels, quality: next(left)[None])
    monkeypatch.setattr(image_codec, "_PIXELS_AT_ONCE", 1)  # one image at a time
    return [(f"{i}.png", torch.zeros(1, 1, 4 * of.shape[1], 4 * of.shape[2]).byte()) for i, of in enumerate(symbols)]


def decoded_symbols(
    parameters: bytes, payload: bytes, model: CodecModel, digest: bytes, monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    found: list[Tensor] = []

    def decode(symbols: Tensor, quality: float, size: tuple[int, int]) -> Tensor:
        found.extend(symbols)
        return torch.zeros(len(symbols), 1, *size)

    monkeypatch.setattr(model, "decode_symbols", decode)
    list(image_codec.decode(parameters, payload, model, digest))
    return found


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_symbols_come_back(data: st.DataObject) -> None:
    """In images of several sizes, and beyond the tables up to the largest symbol."""
    model = tiny_codec()
    values = st.one_of(st.integers(-4, 4), st.integers(-LARGEST_SYMBOL, LARGEST_SYMBOL))
    symbols = []
    for height, width in data.draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3)):
        count = 3 * height * width
        numbers = data.draw(st.lists(values, min_size=count, max_size=count))
        symbols.append(torch.tensor(numbers, dtype=torch.int32).view(3, height, width))

    with pytest.MonkeyPatch.context() as monkeypatch:
        images = with_symbols(model, symbols, monkeypatch)
        parameters, payload, digest = image_codec.encode(images, model, quality=0.5)
        found = decoded_symbols(parameters, payload, model, digest, monkeypatch)

    assert len(found) == len(symbols) and all(map(torch.equal, found, symbols))
    assert digest == sha256(b"".join(of.numpy().astype("<i4").tobytes() for of in symbols)).digest()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_as_the_model_decodes_them(channels: int) -> None:
    model = tiny_codec(num_channels=channels)
    images = [("b.png", random_image(5, 9, channels)), ("ä.png", random_image(1, 1, channels)),
              ("a.png", random_image(12, 8, channels)), ("c.png", random_image(12, 8, channels) // 2)]  # fmt: skip

    parameters, payload, digest = image_codec.encode(images, model, quality=1.0)
    found = list(image_codec.decode(parameters, payload, model, digest))

    assert [name for name, _ in found] == [name for name, _ in images]
    for (_, decoded), (_, original) in zip(found, images):
        symbols = model.encode_symbols(original / 255, 1.0)
        expected = model.decode_symbols(symbols, 1.0, tuple(original.shape[2:]))
        torch.testing.assert_close(decoded, expected)
    described = image_codec.describe(parameters)
    assert described["sizes"] == [[5, 9], [1, 1], [12, 8], [12, 8]] and described["images"] == 4


def test_a_file_takes_what_the_tables_say() -> None:
    """Range coding adds a few words, and tables of 24 bits differ little from those of 16."""
    model, image = tiny_codec(), random_image(128, 128)

    _, payload, _ = image_codec.encode([("a.png", image)], model, quality=1.0)

    expected = float(model.code_lengths(model.encode_symbols(image / 255, 1.0), 1.0)) / 8
    assert expected <= len(payload) + 1 and len(payload) < 1.001 * expected + 12


def test_other_symbols_than_those_coded_are_refused() -> None:
    model = tiny_codec()
    parameters, payload, digest = image_codec.encode([("a.png", random_image(16, 16))], model, quality=0.5)

    for position in range(len(payload) - 4):  # the last word may hold bits that no symbol needs
        damaged = bytearray(payload)
        damaged[position] ^= 0x10
        with pytest.raises(ValueError, match="symbols must"):
            image_codec.decode(parameters, bytes(damaged), model, digest)


def test_a_file_that_claims_more_symbols_than_it_can_hold_is_refused() -> None:
    """Before memory is taken for them."""
    model = tiny_codec()
    _, payload, digest = image_codec.encode([("a.png", random_image(16, 16))], model, quality=0.5)
    huge = image_codec._pack_parameters(1, [image_codec.Picture("a.png", 1 << 20, 1 << 20)])

    with pytest.raises(ValueError, match="The payload must hold"):
        image_codec.decode(huge, payload, model, digest)


def test_parameters_of_something_else_are_refused() -> None:
    parameters, _, _ = image_codec.encode([("a.png", random_image(16, 16))], tiny_codec(), quality=0.5)

    for wrong in (b"", parameters[:-1], parameters + b"\0", b"\0\0", parameters[:-2] + b"\0\0"):
        with pytest.raises(ValueError):
            image_codec.unpack_parameters(wrong)


@pytest.mark.parametrize("name", ["../a.png", "a/b.png", "a\\b.png", ".png", ".a.png", "a.jpg", "a\n.png", "C:a.png"])
def test_names_that_lead_out_of_a_folder_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name of an image must"):
        image_codec.encode([(name, random_image(4, 4))], tiny_codec(), quality=0.5)


def test_names_that_become_one_file_are_refused() -> None:
    images = [("a.png", random_image(4, 4)), ("A.png", random_image(4, 4))]
    with pytest.raises(ValueError, match="names that differ"):
        image_codec.encode(images, tiny_codec(), quality=0.5)


def test_a_model_without_tables_is_refused() -> None:
    model = tiny_codec()
    model.tables.zero_()
    with pytest.raises(ValueError, match="Finish its training"):
        image_codec.encode([("a.png", random_image(4, 4))], model, quality=0.5)


def test_no_symbol_is_coded_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of calls of the coder is limited by the tables, whatever the size of the image."""
    model, calls, plain = tiny_codec(), [], image_codec.SymbolEncoder.encode_alike

    def encode_alike(self: Any, symbols: np.ndarray, weights: np.ndarray) -> None:
        calls.append(len(symbols))
        plain(self, symbols, weights)

    monkeypatch.setattr(image_codec.SymbolEncoder, "encode_alike", encode_alike)
    image_codec.encode([("a.png", random_image(256, 256))], model, quality=1.0)

    assert sum(calls) >= 3 * 64 * 64 and len(calls) <= 3 * (3 * 13 + 17)
