"""Requests whose bodies are read as streams, responses that may be slices of files, and the Hub's errors."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import parse_qs

from .accounts import Principal


CHUNK = 256 * 1024
# Far above any JSON document of the API; file contents never come as one document.
LARGEST_DOCUMENT = 32 * 1024 * 1024
RANGE = re.compile(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*")


class HubError(Exception):
    """An answer that is not a success; `code` travels as X-Error-Code, which the client turns into its exceptions."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        if code:
            self.headers["X-Error-Code"] = code
        self.headers["X-Error-Message"] = message.replace("\n", " ").encode("latin-1", "replace").decode("latin-1")


class ConnectionDropped(Exception):
    """The connection is to be cut without an answer: a fault asked for it, or the client is gone."""

    def __init__(self, reset: bool = False) -> None:
        super().__init__("connection dropped")
        self.reset = reset


@dataclass(frozen=True)
class FileSlice:
    path: Path
    start: int
    length: int


@dataclass
class Response:
    status: int = 200
    body: bytes | FileSlice = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.body.length if isinstance(self.body, FileSlice) else len(self.body)

    def chunks(self, limit: int | None = None) -> Iterator[bytes]:
        """The body, or its first `limit` bytes, in pieces; a file is never held as a whole."""
        remaining = self.length if limit is None else min(limit, self.length)
        start = self.body.start if isinstance(self.body, FileSlice) else 0
        source: BinaryIO = self.body.path.open("rb") if isinstance(self.body, FileSlice) else io.BytesIO(self.body)
        with source:
            source.seek(start)
            while remaining > 0 and (chunk := source.read(min(CHUNK, remaining))):
                remaining -= len(chunk)
                yield chunk


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # `default`: YAML front matter knows dates, JSON does not.
    body = json.dumps(document, default=str).encode()
    return Response(status, body, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def error_response(error: HubError) -> Response:
    return json_response({"error": error.message}, error.status, error.headers)


class RequestBody(io.RawIOBase):
    """The body of one request, of a known length or in chunks. Raises ConnectionDropped if the client goes away."""

    def __init__(self, connection: io.BufferedIOBase, headers: Message) -> None:
        self._connection = connection
        self._is_chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        self._remaining = 0 if self._is_chunked else int(headers.get("Content-Length") or 0)
        self._is_finished = not self._is_chunked and self._remaining == 0
        self.received = 0
        self.bytes_per_second: int | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._is_chunked and not self._is_finished and self._remaining == 0:
            self._begin_chunk()
        if self._is_finished:
            return 0
        data = self._connection.read1(min(len(buffer), self._remaining))
        if not data:
            raise ConnectionDropped()
        buffer[: len(data)] = data
        self.received += len(data)
        self._remaining -= len(data)
        if self._remaining == 0:
            self._end_part()
        pause(len(data), self.bytes_per_second)
        return len(data)

    def _begin_chunk(self) -> None:
        line = self._connection.readline(1024)
        try:
            self._remaining = int(line.split(b";")[0], 16)
        except ValueError as error:
            raise ConnectionDropped() from error
        if self._remaining == 0:
            while self._connection.readline(1024).strip():
                pass  # trailers
            self._is_finished = True

    def _end_part(self) -> None:
        if self._is_chunked:
            self._connection.readline(1024)
        else:
            self._is_finished = True


def pause(moved: int, bytes_per_second: int | None) -> None:
    if bytes_per_second:
        time.sleep(moved / bytes_per_second)


class BodySource(Protocol):
    """What the routes need of a request's body."""

    def read(self, size: int = -1, /) -> bytes: ...

    def readline(self, size: int | None = -1, /) -> bytes: ...


@dataclass
class Request:
    method: str
    # As sent: still percent-encoded, because a branch name or a path may contain an encoded slash.
    path: str
    query_string: str
    headers: Message
    body: BodySource
    principal: Principal | None
    # The origin under which the client reached this server, such as http://127.0.0.1:1234.
    origin: str

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.query_string)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[-1].lower() in ("1", "true")

    def text(self) -> str:
        content = self.body.read(LARGEST_DOCUMENT + 1)
        if len(content) > LARGEST_DOCUMENT:
            raise HubError(413, "the document is too large")
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise HubError(400, "the body should be UTF-8") from error

    def json(self) -> dict[str, Any]:
        return parse_object(self.text() or "{}")


def parse_object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise HubError(400, f"the body should be JSON: {error}") from error
    if not isinstance(document, dict):
        raise HubError(400, "the body should be a JSON object")
    return document


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(start, length) of a Range header; None to send the whole file, also for the forms that a server may ignore."""
    found = RANGE.fullmatch(header) if header else None
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
    if last and first and int(last) < start:
        return None
    if start >= size or end <= start:
        headers = {"Content-Range": f"bytes */{size}"}
        raise HubError(416, "Range Not Satisfiable", headers=headers)
    return start, end - start


def ranged(request: Request, body: bytes | FileSlice, headers: dict[str, str]) -> Response:
    """The part of a file that the request asks for."""
    size = body.length if isinstance(body, FileSlice) else len(body)
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    wanted = byte_range(request.headers.get("Range"), size)
    if wanted is None:
        return Response(200, body, headers)
    start, length = wanted
    headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
    part = FileSlice(body.path, start, length) if isinstance(body, FileSlice) else body[start : start + length]
    return Response(206, part, headers)
