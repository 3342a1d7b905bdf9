"""A file server on loopback that can be slow, break off, refuse, and forget what it had.

with running_server({"/host/input.txt": b"text"}, Behavior(break_after=2)) as server:
    download("https://host/input.txt", mirror=server.url)
assert [request.range for request in server.requests] == [None, "bytes=2-"]
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behavior:
    """What the server does besides sending files.

    Attributes:
        break_after: Bytes of the body after which a connection breaks off ...
        times: ... this many times.
        stalls: Instead, it sends nothing more and stays open.
        takes_ranges: Whether a Range is obeyed.
        etag, last_modified: Headers of each answer; None for none.
        length: "known", "chunked", or "unknown" until the connection is closed.
        status: Of each answer without a file.
        piece, pause: Bytes that are sent at a time, and seconds between.
    """

    break_after: int | None = None
    times: int = 1
    stalls: bool = False
    takes_ranges: bool = True
    etag: str | None = '"1"'
    last_modified: str | None = None
    length: str = "known"
    status: int | None = None
    piece: int = 1 << 16
    pause: float = 0.0


@dataclass
class Request:
    """What a client asked for."""

    path: str
    range: str | None
    if_range: str | None


@dataclass
class Server:
    url: str
    files: dict[str, bytes]
    behavior: Behavior
    requests: list[Request] = field(default_factory=list)


@contextmanager
def running_server(files: dict[str, bytes], behavior: Behavior | None = None) -> Iterator[Server]:
    """Serves `files` by path. The attributes of the server may change while it runs."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    httpd.daemon_threads = True
    server = Server(f"http://127.0.0.1:{httpd.server_address[1]}", files, behavior or Behavior())
    httpd.shown = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Server = self.server.shown  # type: ignore[attr-defined]
        behavior = server.behavior
        asked = Request(self.path, self.headers["Range"], self.headers["If-Range"])
        server.requests.append(asked)
        content = server.files.get(self.path)
        if content is None or behavior.status is not None:
            self.send_error(behavior.status or 404)
            return
        versions = {behavior.etag, behavior.last_modified}
        is_part = (
            asked.range is not None
            and behavior.takes_ranges
            and (asked.if_range is None or asked.if_range in versions)
        )
        start = int(asked.range.removeprefix("bytes=").removesuffix("-")) if is_part and asked.range else 0
        if is_part and start >= len(content):
            self.send_error(416)
            return
        self._send(content[start:], 206 if is_part else 200, behavior)

    def _send(self, body: bytes, status: int, behavior: Behavior) -> None:
        self.send_response(status)
        headers = {"ETag": behavior.etag, "Last-Modified": behavior.last_modified}
        headers["Content-Length"] = str(len(body)) if behavior.length == "known" else None
        headers["Transfer-Encoding"] = "chunked" if behavior.length == "chunked" else None
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.send_header("Connection", "close")  # else a client is served on when the server is gone
        self.end_headers()
        breaks = behavior.break_after is not None and behavior.times > 0
        behavior.times -= breaks
        self._write(body[: behavior.break_after] if breaks else body, behavior)
        if breaks and behavior.stalls:
            time.sleep(5)
        if behavior.length == "chunked" and not breaks:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, body: bytes, behavior: Behavior) -> None:
        for first in range(0, len(body), behavior.piece):
            piece = body[first : first + behavior.piece]
            is_chunked = behavior.length == "chunked"
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            self.wfile.flush()
            time.sleep(behavior.pause)

    def log_message(self, format: str, *args: object) -> None:
        pass
