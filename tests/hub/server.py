"""The test Hub as a process: two loopback ports, one for the Hub and one for its storage.

    python -m tests.hub.server --root FOLDER [--port 0]

The first line on stdout is the Hub's address, for HF_ENDPOINT. Tokens are in FOLDER/accounts.json, written at the
first start. All else is in FOLDER too: a server started there again goes on where the last one stopped or was killed.

    GET | DELETE          /_control/log       what was asked, in order; never a token
    GET | POST | DELETE   /_control/faults    what to do wrong; a POST is one FaultRule of faults.py
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .accounts import Accounts, Principal
from .api import HubApi
from .faults import FaultBook, FaultRule
from .http_messages import (
    CHUNK,
    ConnectionDropped,
    HubError,
    Request,
    RequestBody,
    Response,
    error_response,
    json_response,
    parse_object,
    pause,
)
from .repository import HubStore, parent_moved_error
from .storage import Storage


LOOPBACK = "127.0.0.1"
CONTROL = "/_control/"
STATUS_WITHOUT_ANSWER = 0


@dataclass
class LoggedRequest:
    """A request as the tests may see it. `status` is 0 where the connection was dropped without an answer."""

    number: int
    server: str
    method: str
    path: str
    query: str
    range: str | None
    user: str | None
    time: float
    status: int = STATUS_WITHOUT_ANSWER
    request_bytes: int = 0
    response_bytes: int = 0
    fault: str | None = None


class RequestLog:
    def __init__(self) -> None:
        self._entries: list[LoggedRequest] = []
        self._lock = threading.Lock()
        self._number = 0

    def open_entry(self, **known: Any) -> LoggedRequest:
        with self._lock:
            self._number += 1
            entry = LoggedRequest(number=self._number, time=time.time(), **known)
            self._entries.append(entry)
            return entry

    def describe(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(entry) for entry in self._entries]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()


class Hub:
    """What the two ports share."""

    def __init__(self, root: Path, page_size: int) -> None:
        root.mkdir(parents=True, exist_ok=True)
        store = HubStore(root)
        self.accounts = Accounts.load(root / "accounts.json")
        self.storage = Storage(store)
        self.api = HubApi(store, self.storage, page_size)
        self.faults = FaultBook()
        self.log = RequestLog()

    def control(self, method: str, path: str, body: str) -> Response:
        match method, path.removeprefix(CONTROL):
            case "GET", "log":
                return json_response(self.log.describe())
            case "DELETE", "log":
                self.log.clear()
            case "GET", "faults":
                return json_response(self.faults.describe())
            case "DELETE", "faults":
                self.faults.clear()
            case "POST", "faults":
                try:
                    self.faults.add(FaultRule.from_json(parse_object(body)))
                except (TypeError, ValueError) as error:
                    raise HubError(400, str(error)) from error
            case _:
                raise HubError(404, f"no control at {method} {path}")
        return json_response({})


class Port(ThreadingHTTPServer):
    """One listening port; every connection has a thread of its own."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, hub: Hub, name: str, port: int, answer: Callable[[Request], Response]) -> None:
        self.hub = hub
        self.name = name
        self.answer = answer
        super().__init__((LOOPBACK, port), Connection)

    @property
    def origin(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}"


class Connection(BaseHTTPRequestHandler):
    """One client connection, which may carry many requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Port

    def serve(self) -> None:
        body = RequestBody(self.rfile, self.headers)
        path, _, query = self.path.partition("?")
        try:
            if path.startswith(CONTROL):
                self._send(self._control(path, body))
            else:
                self._serve_logged(path, query, body)
        except ConnectionDropped as dropped:
            self._drop(dropped.reset)
        except ConnectionError:
            # The client went away while it was being answered.
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = serve

    def _serve_logged(self, path: str, query: str, body: RequestBody) -> None:
        hub = self.server.hub
        is_storage = self.server.name == "storage"
        principal = None if is_storage else self._principal()
        user = principal.user if principal else None
        entry = hub.log.open_entry(
            server=self.server.name,
            method=self.command,
            path=path,
            # A query of the storage is a signature, which is as good as a token.
            query="" if is_storage else query,
            range=self.headers.get("Range"),
            user=user,
        )
        rule = hub.faults.take(self.command, path, user)
        entry.fault = rule.kind if rule else None
        request = Request(
            method=self.command,
            path=path,
            query_string=query,
            headers=self.headers,
            body=io.BufferedReader(body, CHUNK),
            principal=principal,
            origin=f"http://{self.headers.get('Host', self.server.origin.removeprefix('http://'))}",
        )
        try:
            response = self._answer(request, body, rule)
            self._read_rest(body)
        finally:
            entry.request_bytes = body.received
        response.headers["X-Request-Id"] = f"test-hub-{entry.number}"
        self._send(response, entry, rule)

    def _control(self, path: str, body: RequestBody) -> Response:
        content = io.BufferedReader(body).read().decode()
        try:
            return self.server.hub.control(self.command, path, content)
        except HubError as error:
            return error_response(error)

    def _principal(self) -> Principal | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return self.server.hub.accounts.principal(token) if scheme.lower() == "bearer" else None

    def _answer(self, request: Request, body: RequestBody, rule: FaultRule | None) -> Response:
        try:
            if rule:
                self._misbehave(request, body, rule)
            if self.server.name == "hub" and self.headers.get("Authorization") and request.principal is None:
                raise _invalid_token()
            return self.server.answer(request)
        except HubError as error:
            return error_response(error)
        except (ConnectionDropped, ConnectionError):
            raise
        except Exception as error:
            # A mistake of the test server itself must be visible as such.
            traceback.print_exc()
            return error_response(HubError(500, f"the test Hub failed: {error!r}"))

    def _misbehave(self, request: Request, body: RequestBody, rule: FaultRule) -> None:
        """What a fault does before the request is served (if it lets it be served)."""
        match rule.kind:
            case "status":
                status = rule.status or 500
                headers = {} if rule.retry_after is None else {"Retry-After": str(rule.retry_after)}
                raise HubError(status, rule.message or HTTPStatus(status).phrase, headers=headers)
            case "expired_token":
                raise _invalid_token()
            case "drop_upload":
                _discard(request, rule.body_bytes)
                raise ConnectionDropped(rule.reset)
            case "slow":
                time.sleep(rule.seconds)
                body.bytes_per_second = rule.bytes_per_second
            case "foreign_commit":
                self.server.hub.api.land_foreign_commit(request.path)
            case "parent_moved":
                self.server.hub.api.land_foreign_commit(request.path)
                raise parent_moved_error(rule.status or 412)
            case "drop_response":
                pass

    def _send(self, response: Response, entry: LoggedRequest | None = None, rule: FaultRule | None = None) -> None:
        has_body = self.command != "HEAD"
        is_cut = rule is not None and rule.kind == "drop_response"
        if rule and is_cut and rule.body_bytes == 0:
            raise ConnectionDropped(rule.reset)
        if entry:
            entry.status = response.status
        phrase = HTTPStatus(response.status).phrase
        headers = {**response.headers, "Content-Length": str(response.length)}
        head = [f"HTTP/1.1 {response.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        pending = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")
        for chunk in response.chunks(rule.body_bytes if rule and is_cut else None) if has_body else ():
            if entry:
                entry.response_bytes += len(chunk)
            # The head travels with the first piece.
            self.wfile.write(pending + chunk)
            pending = b""
            pause(len(chunk), rule.bytes_per_second if rule else None)
        if pending:
            self.wfile.write(pending)
        if rule and is_cut:
            raise ConnectionDropped(rule.reset)

    def _read_rest(self, body: RequestBody) -> None:
        """What a refused request still has to say, or it would be taken for the next request."""
        body.bytes_per_second = None
        scratch = memoryview(bytearray(CHUNK))
        while body.readinto(scratch):
            pass

    def _drop(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Past `socketserver`, which would first close in good order.
            os.close(self.connection.detach())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent: tests read /_control/log."""


def _invalid_token() -> HubError:
    return HubError(401, "Invalid credentials in Authorization header")


def _discard(request: Request, count: int) -> None:
    while count > 0 and (chunk := request.body.read(min(CHUNK, count))):
        count -= len(chunk)


def _exit_when_stdin_closes() -> None:
    while sys.stdin.buffer.read(CHUNK):
        pass
    os._exit(0)


def serve(root: Path, port: int, page_size: int) -> None:
    """Serves until the process ends."""
    hub = Hub(root, page_size)
    storage_port = Port(hub, "storage", 0, hub.storage.handle)
    hub.storage.origin = storage_port.origin
    threading.Thread(target=storage_port.serve_forever, daemon=True).start()
    hub_port = Port(hub, "hub", port, hub.api.handle)
    print(hub_port.origin, flush=True)
    hub_port.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="A Hub for tests, on loopback ports.")
    parser.add_argument("--root", type=Path, required=True, help="folder for everything the Hub stores")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--page_size", type=int, default=1000, help="entries on a page of a list")
    parser.add_argument("--until_stdin_closes", action="store_true", help="exit when the parent process is gone")
    arguments = parser.parse_args()
    if arguments.until_stdin_closes:
        threading.Thread(target=_exit_when_stdin_closes, daemon=True).start()
    serve(arguments.root.resolve(), arguments.port, arguments.page_size)


if __name__ == "__main__":
    main()
