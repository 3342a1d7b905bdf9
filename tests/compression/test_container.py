"""The bytes of a `.hfz` file: what was written is read, and nothing else is."""

from __future__ import annotations

import re
import struct
import zlib
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfgen.compression import container
from hfgen.compression.container import ByteReader, Container, pack_integer, pack_text, parse


# A busy machine may be slow to draw examples.
QUICK = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
EXAMPLE = Container(1, "me/gpt", "0" * 40, bytes(range(32)), 3, sha256(b"abc").digest(), b"parameters", b"payload")


def damaged_checksums_repaired(content: bytes) -> bytes:
    """The file with checksums that fit its bytes again, as nobody but its writer makes them."""
    header_size, payload_size = struct.unpack_from("<IQ", content, 10)
    end = 22 + header_size
    payload = content[end + 4 : end + 4 + payload_size]
    checksums = [struct.pack("<I", zlib.crc32(part)) for part in (content[:end], payload)]
    return content[:end] + checksums[0] + payload + checksums[1]


@QUICK
@given(
    st.builds(
        Container,
        st.just(1),
        st.text(max_size=20),
        st.text(max_size=20),
        st.binary(min_size=32, max_size=32),
        st.integers(0, 2**63 - 1),
        st.binary(min_size=32, max_size=32),
        st.binary(max_size=50),
        st.binary(max_size=50),
    )
)
def test_every_content_is_read_as_it_was_written(content: Container) -> None:
    assert parse(content.to_bytes(), "file") == content


def test_the_bytes_are_those_of_the_description() -> None:
    header = b"\x06me/gpt" + b"\x28" + b"0" * 40 + bytes(range(32)) + b"\x03" + sha256(b"abc").digest() + b"parameters"
    start = b"\x89HFZ\r\n\x1a\n" + b"\x01\x01" + struct.pack("<IQ", len(header), 7) + header
    expected = start + struct.pack("<I", zlib.crc32(start)) + b"payload" + struct.pack("<I", zlib.crc32(b"payload"))
    assert EXAMPLE.to_bytes() == expected


def test_every_changed_byte_is_found() -> None:
    content = EXAMPLE.to_bytes()
    for place in range(len(content)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= change
            with pytest.raises(ValueError):
                parse(bytes(damaged), "file")


def test_every_lost_and_added_byte_is_found() -> None:
    content = EXAMPLE.to_bytes()
    for size in range(len(content)):
        with pytest.raises(ValueError, match="must"):
            parse(content[:size], "file")
    with pytest.raises(ValueError, match=rf"file must have {len(content)} bytes, got {len(content) + 1}"):
        parse(content + b"\0", "file")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "book.hfz must be a .hfz file, got one that begins with b''"),
        (b"PK\x03\x04 a zip file", "got one that begins with b'PK"),
        (EXAMPLE.to_bytes()[:8] + b"\x02" + EXAMPLE.to_bytes()[9:], "version of book.hfz must be 1, got 2. Install a"),
        (EXAMPLE.to_bytes().replace(b"me/gpt", b"me/gpu"), "The header of book.hfz must match its checksum"),
        (EXAMPLE.to_bytes().replace(b"payload", b"payloaD"), "The payload of book.hfz must match its checksum"),
        (damaged_checksums_repaired(EXAMPLE.to_bytes()[:9] + b"\x07" + EXAMPLE.to_bytes()[10:]),
         "kind of content of book.hfz must be 1 (text), 2 (images), 3 (lossless images), got 7. Install a"),
        (damaged_checksums_repaired(EXAMPLE.to_bytes().replace(b"\x06me", b"\xffme")), "The header of book.hfz must"),
        (damaged_checksums_repaired(EXAMPLE.to_bytes().replace(b"me", b"\xffe")), "book.hfz must hold UTF-8"),
    ],
)  # fmt: skip
def test_an_error_says_what_is_wrong(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(content, "book.hfz")


def test_another_original_is_refused() -> None:
    assert EXAMPLE.check_original(b"abc") == b"abc"
    for other in (b"abd", b"abc\n", b""):
        with pytest.raises(ValueError, match=r"must have the SHA-256 ba7816bf.* Nothing was written"):
            EXAMPLE.check_original(other)


@pytest.mark.parametrize("value, packed", [(0, "00"), (127, "7f"), (128, "8001"), (624485, "e58e26"),
                                           (2**63 - 1, "ff" * 8 + "7f")])  # fmt: skip
def test_integers_are_leb128(value: int, packed: str) -> None:
    assert pack_integer(value).hex() == packed
    assert ByteReader(bytes.fromhex(packed), "It").integer() == value


@pytest.mark.parametrize("value", [-1, 2**63])
def test_an_integer_out_of_range_is_not_written(value: int) -> None:
    with pytest.raises(ValueError, match=rf"value must be from 0 to 2\^63 - 1, got {value}"):
        pack_integer(value)


def test_reader_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="It must have 3 more bytes, got 2"):
        ByteReader(b"ab", "It").take(3)
    with pytest.raises(ValueError, match="A number in It must be at most 9, got 10"):
        ByteReader(b"\x0a", "It").integer(most=9)
    for endless in (b"\xff" * 9, b"\xff" * 20):
        with pytest.raises(ValueError):
            ByteReader(endless, "It").integer()
    reader = ByteReader(pack_text("é") + b"rest", "It")
    assert (reader.text(), reader.rest(), reader.rest()) == ("é", b"rest", b"")


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file.hfz").write_bytes(EXAMPLE.to_bytes())
    assert container.read(tmp_path / "file.hfz") == EXAMPLE
