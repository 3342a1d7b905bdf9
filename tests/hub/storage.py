"""The separate origin that stores large files, as the Hub's CDN and object storage: no tokens, only signed addresses.

It listens on a port of its own, so that the client sees a redirect to another origin and must neither follow it before
reading the headers nor send its token there. A request that carries one is refused, as object stores do.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode

from .http_messages import FileSlice, HubError, Request, Response, ranged
from .repository import HubRepository, HubStore


LIFETIME_SECONDS = 3600
OBJECT_PATH = re.compile(r"/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)/(?P<sha256>[0-9a-f]{64})")


class Storage:
    def __init__(self, store: HubStore) -> None:
        self._store = store
        self._secret = secrets.token_bytes(32)
        # Set when the storage server has its port.
        self.origin = ""

    def signed_address(
        self, method: Literal["GET", "PUT"], repository: HubRepository, sha256: str, **parameters: str | int
    ) -> str:
        """An address that allows one method on one object for an hour."""
        record = repository.record
        path = f"/{record.kind}/{quote(record.id)}/{sha256}"
        query = urlencode({**parameters, "expires": int(time.time()) + LIFETIME_SECONDS})
        return f"{self.origin}{path}?{query}&signature={self._signature(method, path, query)}"

    def handle(self, request: Request) -> Response:
        if request.headers.get("Authorization"):
            raise HubError(400, "a token must never be sent to the storage")
        found = OBJECT_PATH.fullmatch(request.path)
        method = "GET" if request.method == "HEAD" else request.method
        if found is None or method not in ("GET", "PUT"):
            raise HubError(404, f"the storage does not serve {request.method} {request.path}")
        parameters = self._check_signature(method, request)
        repository = self._store.get(found["kind"], unquote(found["repo"]))  # type: ignore[arg-type]
        if repository is None:
            raise HubError(404, "NoSuchKey")
        if method == "PUT":
            temporary = self._store.temporary_path()
            repository.store_lfs(request.body, found["sha256"], int(parameters["size"]), temporary)
            return Response(200, b"", {"ETag": f'"{found["sha256"]}"'})
        return self._send(request, repository, found["sha256"], parameters)

    def _send(self, request: Request, repository: HubRepository, sha256: str, parameters: dict[str, str]) -> Response:
        size = repository.lfs_size(sha256)
        if size is None:
            raise HubError(404, "NoSuchKey")
        headers = {"ETag": f'"{sha256}"', "Content-Disposition": disposition(parameters.get("filename", sha256))}
        return ranged(request, FileSlice(repository.lfs_path(sha256), 0, size), headers)

    def _check_signature(self, method: str, request: Request) -> dict[str, str]:
        query, _, signature = request.query_string.rpartition("&signature=")
        expected = self._signature(method, request.path, query)
        parameters = dict(parse_qsl(query))
        if not hmac.compare_digest(expected, signature) or int(parameters["expires"]) < time.time():
            raise HubError(403, "SignatureDoesNotMatch or expired")
        return parameters

    def _signature(self, method: str, path: str, query: str) -> str:
        return hmac.new(self._secret, f"{method}\n{path}\n{query}".encode(), hashlib.sha256).hexdigest()


def disposition(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    ascii_name = name.encode("ascii", "replace").decode().replace('"', "'")
    return f"inline; filename*=UTF-8''{quote(name)}; filename=\"{ascii_name}\";"
