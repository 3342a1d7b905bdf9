"""What is a `.hfz` file? Its bytes, as FORMAT.md beside this file describes them, whatever they stand for."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path


SUFFIX = ".hfz"
# As in PNG: a byte that is not text, and line breaks that a transfer as text would change.
MAGIC = b"\x89HFZ\r\n\x1a\n"
VERSION = 1
TEXT = 1
IMAGES = 2
LOSSLESS_IMAGES = 3
KINDS = {TEXT: "text", IMAGES: "images", LOSSLESS_IMAGES: "lossless images"}

# Magic number, version, kind of content, bytes of the header, bytes of the payload.
_PREFIX = struct.Struct("<8sBBIQ")
_CHECKSUM = struct.Struct("<I")
_DIGEST_BYTES = 32
_VARINT_BITS = 63


@dataclass(frozen=True)
class Container:
    """The content of a `.hfz` file.

    Attributes:
        kind: of content, a key of `KINDS`.
        model: the repository on the Hub, or the name of the folder, that the content was compressed with.
        revision: the commit of the repository; empty for a folder.
        weights_sha256: 32 bytes, of the model's weights (`files.hash_weights`).
        original_size: bytes of the original; of images, those of their pixels.
        original_sha256: 32 bytes, of the original; of images, of their symbols.
        parameters: what the kind of content needs to be read, besides the payload.
        payload: what the entropy coder wrote, and what belongs to it.
    """

    kind: int
    model: str
    revision: str
    weights_sha256: bytes
    original_size: int
    original_sha256: bytes
    parameters: bytes
    payload: bytes

    def to_bytes(self) -> bytes:
        """Returns the bytes of the file."""
        header = b"".join([
            pack_text(self.model),
            pack_text(self.revision),
            self.weights_sha256,
            pack_integer(self.original_size),
            self.original_sha256,
            self.parameters,
        ])  # fmt: skip
        start = _PREFIX.pack(MAGIC, VERSION, self.kind, len(header), len(self.payload)) + header
        return b"".join([start, _checksum(start), self.payload, _checksum(self.payload)])

    def check_original(self, original: bytes) -> bytes:
        """Returns what was decoded, if it is the original.

        Raises:
            ValueError: it is not.
        """
        if len(original) != self.original_size or sha256(original).digest() != self.original_sha256:
            raise ValueError(
                f"The decoded content must have the SHA-256 {self.original_sha256.hex()}, got "
                f"{sha256(original).hexdigest()}. The model, its tokenizer or this machine's arithmetic differs from "
                "the one that compressed it. Nothing was written."
            )
        return original


def parse(content: bytes, name: str) -> Container:
    """The container in the bytes of a file.

    Args:
        content: all bytes of the file.
        name: of the file, for errors.

    Raises:
        ValueError: the file is foreign, damaged, cut off, or of a newer version.
    """
    if content[: len(MAGIC)] != MAGIC:
        raise ValueError(
            f"{name} must be a {SUFFIX} file, got one that begins with {content[: len(MAGIC)]!r}. `hfgen compress` "
            "writes such files."
        )
    if len(content) < _PREFIX.size:
        raise ValueError(f"{name} must have at least {_PREFIX.size} bytes, got {len(content)}. Copy the file again.")
    _, version, kind, header_size, payload_size = _PREFIX.unpack_from(content)
    if version != VERSION:
        raise ValueError(
            f"The format version of {name} must be {VERSION}, got {version}. Install a newer hfgen, or copy the file "
            "again if it may be damaged."
        )
    size = _PREFIX.size + header_size + payload_size + 2 * _CHECKSUM.size
    if len(content) != size:
        raise ValueError(f"{name} must have {size:,} bytes, got {len(content):,}. Copy the file again.")
    header_end = _PREFIX.size + header_size
    payload_start = header_end + _CHECKSUM.size
    payload_end = payload_start + payload_size
    payload = content[payload_start:payload_end]
    for part, start, stop, found in (
        ("header", 0, header_end, content[header_end:payload_start]),
        ("payload", payload_start, payload_end, content[payload_end:]),
    ):
        if _checksum(content[start:stop]) != found:
            raise ValueError(f"The {part} of {name} must match its checksum, got other bytes. Copy the file again.")
    if kind not in KINDS:
        known = ", ".join(f"{number} ({title})" for number, title in KINDS.items())
        raise ValueError(f"The kind of content of {name} must be {known}, got {kind}. Install a newer hfgen.")
    return _parse_header(kind, ByteReader(content[_PREFIX.size : header_end], f"The header of {name}"), payload)


def _parse_header(kind: int, header: ByteReader, payload: bytes) -> Container:
    return Container(
        kind,
        model=header.text(),
        revision=header.text(),
        weights_sha256=header.take(_DIGEST_BYTES),
        original_size=header.integer(),
        original_sha256=header.take(_DIGEST_BYTES),
        parameters=header.rest(),
        payload=payload,
    )


def read(path: Path) -> Container:
    """The container in a file.

    Raises:
        ValueError: see [`parse`].
        OSError: the file cannot be read.
    """
    return parse(path.read_bytes(), str(path))


def pack_integer(value: int) -> bytes:
    """A number from 0 to 2^63 - 1 in LEB128: seven bits per byte, the lowest first; the top bit says that more follow.

    Raises:
        ValueError: the number is out of range.
    """
    if value < 0 or value >> _VARINT_BITS:
        raise ValueError(f"value must be from 0 to 2^{_VARINT_BITS} - 1, got {value}.")
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def pack_text(text: str) -> bytes:
    """The number of bytes of a text in UTF-8, and these bytes."""
    encoded = text.encode("utf-8")
    return pack_integer(len(encoded)) + encoded


class ByteReader:
    """Reads what `pack_integer` and `pack_text` wrote. Every method raises ValueError where the bytes do not fit.

    Args:
        content: the bytes.
        name: of what they are, which begins an error.
    """

    def __init__(self, content: bytes, name: str):
        self._content = content
        self._name = name
        self._position = 0

    def take(self, size: int) -> bytes:
        """Returns the next `size` bytes."""
        left = len(self._content) - self._position
        if size > left:
            raise ValueError(f"{self._name} must have {size} more bytes, got {left}. It was not written by hfgen.")
        self._position += size
        return self._content[self._position - size : self._position]

    def integer(self, most: int = (1 << _VARINT_BITS) - 1) -> int:
        """A number in LEB128 that is at most `most`."""
        value = shift = 0
        more = True
        while more:
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            shift += 7
            more = byte > 0x7F and shift <= _VARINT_BITS
        if value > most:
            raise ValueError(f"A number in {self._name} must be at most {most}, got {value}. hfgen did not write it.")
        return value

    def text(self) -> str:
        """A text."""
        try:
            return self.take(self.integer()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._name} must hold UTF-8, got other bytes: {error}.") from None

    def rest(self) -> bytes:
        """Everything that was not read."""
        return self.take(len(self._content) - self._position)


def _checksum(content: bytes) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(content))
