"""Files at a URL, downloaded once into the cache of `datasets`.

    path = download("https://example.org/input.txt", sha256="86c4...")       # the second call asks no server

A file takes its place in the cache when it is whole and has its checksum; until then its name ends in `.incomplete`.
One process of a machine downloads, and the others wait for its lock.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from ...durable_files import flush


logger = logging.getLogger(__name__)
MAX_FAILURES = 5  # in a row, without a byte in between
SECONDS_BETWEEN_FAILURES = 1.0
INSTEAD = "or use a copy (--dataset_path) or another server (--dataset_mirror)"


def download(url: str, sha256: str | None = None, mirror: str | None = None) -> Path:
    """The local copy of a file, downloaded if there is none yet.

    Where a connection breaks off it is resumed, if the server can and the file is known to be the same. A file with a
    checksum is also resumed where an earlier run left it. Anything else starts again.

    Args:
        url: Its http or https address.
        sha256: Checksum of the file, 64 hexadecimal digits. None takes what the server sends.
        mirror: Server to ask in place of the original one: `https://host/path` is read from `MIRROR/host/path`.

    Returns:
        A file named as in the URL. A copy in the cache is found without a network.

    Raises:
        ValueError: The address cannot be used, the server cannot be reached or has no such file, the file is not the
            one with that checksum, or the disk is full.
    """
    from huggingface_hub.utils import WeakFileLock

    path = _place_in_cache(url, sha256)
    source = url if mirror is None else _mirrored(url, mirror)
    if path.is_file():
        logger.info("%s is read from its copy, %s.", url, path)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_name(f"{path.name}.lock")):
            if not path.is_file():  # else another process downloaded it while this one waited
                _download(source, path, sha256)
    except OSError as error:
        raise ValueError(
            f"{source} cannot be saved as {path}: {error}. Free some space, or set HF_DATASETS_CACHE to a folder on "
            "another disk."
        ) from error
    return path


def local_file(name: str, sha256: str | None = None, mirror: str | None = None) -> str:
    """The path of the local copy if `name` is a URL, else `name`, checked if there is a checksum.

    Args:
        name: A URL, a path, or the name of a dataset.
        sha256, mirror: As in [`download`].

    Raises:
        ValueError: As in [`download`], or `name` has a checksum and is not a file, or another one.
    """
    if re.match(r"[A-Za-z][\w+.-]*://", name):
        return str(download(name, sha256, mirror))
    if sha256 is None:
        return name
    if not Path(name).is_file():
        raise ValueError(
            f"--dataset_sha256 must be the checksum of a file, got one for {name}, which is no file. Leave it out; a "
            "dataset on the Hub is pinned by --dataset_revision."
        )
    found = _sha256_of(Path(name))
    if found != sha256.lower():
        raise ValueError(
            f"The file {name} must have the SHA-256 {sha256.lower()}, got {found}. Give an unchanged copy, or the "
            "checksum of this one to --dataset_sha256."
        )
    return name


class _WrongFileError(ValueError):
    """The server has another file than the one that was asked for, or than the one whose beginning is here."""


def _place_in_cache(url: str, sha256: str | None) -> Path:
    """Where the file is or will be. Raises ValueError for an address that cannot be that of a file of a dataset."""
    import datasets

    parts = urlsplit(url)
    page = re.fullmatch(r"https?://huggingface\.co/datasets/([^/]+/[^/]+)(/|/tree/.*|/viewer.*)?", url)
    if page:
        raise ValueError(
            f"--dataset_name must be the id of a dataset on the Hub, got its page, {url}. Give {page[1]}."
        )
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"--dataset_name must begin with http:// or https:// and the name of a server, got {url}. Check the "
            f"address, {INSTEAD}."
        )
    if parts.username or parts.password:
        raise ValueError(
            f"--dataset_name must not contain a user or password, got one for {parts.hostname}: results and cards "
            "would publish it. Put it into ~/.netrc."
        )
    # `datasets` takes some characters for patterns, and files that begin with a dot for hidden ones.
    name = re.sub(r"[^\w.-]", "_", unquote(parts.path).rpartition("/")[2]).lstrip(".")[-100:]
    if not Path(name).suffix:
        raise ValueError(
            f"--dataset_name must end in the name of a file, such as input.txt or train.parquet, got {url}. Give the "
            f"address of the file itself, {INSTEAD}."
        )
    key = hashlib.sha256(f"{url} {(sha256 or '').lower()}".encode()).hexdigest()[:16]
    return Path(datasets.config.DOWNLOADED_DATASETS_PATH) / "hfgen" / key / name


def _mirrored(url: str, mirror: str) -> str:
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    return f"{mirror.rstrip('/')}/{parts.netloc}{parts.path}{query}"


def _download(source: str, path: Path, sha256: str | None) -> None:
    """Downloads and checks a file, and only then gives it its name."""
    part = path.with_name(f"{path.name}.incomplete")
    if sha256 is None:  # what an earlier run left may belong to another version of the file
        part.unlink(missing_ok=True)
    was_begun = part.is_file()
    logger.info("Downloading %s to %s.", source, path)
    try:
        _complete(source, part, sha256)
    except _WrongFileError:
        if not was_begun:
            raise
        _complete(source, part, sha256)
    flush(part)
    part.replace(path)
    flush(path.parent)


def _complete(source: str, part: Path, sha256: str | None) -> None:
    """Downloads what is missing and checks the whole. What nobody can use is not kept."""
    try:
        with open(part, "ab") as file:
            _receive(source, file, is_checked=sha256 is not None)
        _check(source, part, sha256)
    except (ValueError, OSError) as error:
        if sha256 is None or isinstance(error, OSError | _WrongFileError):
            part.unlink(missing_ok=True)
        raise


def _check(source: str, part: Path, sha256: str | None) -> None:
    """Raises ValueError if it is not the file with that checksum; without one, if it is a page for a browser."""
    found, size = _sha256_of(part), f"{part.stat().st_size:,} bytes"
    if sha256 is None:
        with open(part, "rb") as file:
            begin = file.read(1000).lstrip().lower()
        if begin.startswith((b"<!doctype html", b"<html")):  # a login, an error, a preview
            raise ValueError(
                f"--dataset_name must be the address of the file itself, got that of a web page, {source}. Use its "
                f"raw or download link, {INSTEAD}."
            )
        logger.info("Its SHA-256 is %s (%s). --dataset_sha256 pins it.", found, size)
    elif found != sha256.lower():
        raise _WrongFileError(
            f"The file at {source} must have the SHA-256 {sha256.lower()}, got {found} ({size}), and was not kept: it "
            f"has changed, or was altered on the way. Try again, {INSTEAD}."
        )


def _receive(source: str, file: BinaryIO, is_checked: bool) -> None:
    """Appends what is missing of the file at a URL."""
    from datasets.utils import tqdm

    with tqdm(desc="Downloading", unit="B", unit_scale=True, initial=file.tell(), delay=0.5) as bar:
        _Transfer(source, file, is_checked, bar).complete()


@dataclass
class _Transfer:
    """A file on its way from a URL to the end of a local file.

    Attributes:
        url, file, bar: From where, to where, and how far.
        is_checked: Whether a checksum will tell if the parts belong together.
        version: The server's name for what it sent last, if it has one.
    """

    url: str
    file: BinaryIO
    is_checked: bool
    bar: Any
    version: str | None = None

    def complete(self) -> None:
        """Reads until the file is whole, and asks again where the connection breaks off."""
        from huggingface_hub.errors import OfflineModeIsEnabled

        first = furthest = self.file.tell()
        failures = 0
        while True:
            try:
                return self._read_rest()
            except OfflineModeIsEnabled as error:
                raise self._unreachable(error) from error
            except (ValueError, OSError):  # an answer, or the disk
                raise
            except Exception as error:  # of httpx or httpx2, whichever huggingface_hub uses
                failures = 1 if self.file.tell() > furthest else failures + 1
                furthest = max(furthest, self.file.tell())
                if furthest == first or failures > MAX_FAILURES:
                    raise self._unreachable(error) from error
                logger.warning("The connection to %s broke off: %s. Trying again.", self.url, _reason(error))
                time.sleep(SECONDS_BETWEEN_FAILURES)

    def _read_rest(self) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        if self.version is None and not self.is_checked:
            self._start_again()
        start = self.file.tell()
        # As the server stores it: pieces of what is compressed on the way would not fit together.
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        if start and self.version:
            headers["If-Range"] = self.version
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", self.url, headers=headers, timeout=timeout) as response:
            if response.status_code == 200:
                self._start_again()
            elif response.status_code != 206:
                raise self._refused(response.status_code)
            self.version = _strong_validator(response.headers)
            self.bar.total = self._length(response.headers)
            for piece in response.iter_raw():
                self.file.write(piece)
                self.bar.update(len(piece))

    def _start_again(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.bar.reset()

    def _length(self, headers: Mapping[str, str]) -> int | None:
        """Bytes of the whole file; None if only its end will tell. Raises ValueError if nothing would."""
        if "Content-Length" in headers:
            return self.file.tell() + int(headers["Content-Length"])
        if headers.get("Transfer-Encoding") != "chunked" and not self.is_checked:
            raise ValueError(
                f"The server must say how long the file at {self.url} is, because a part could not be told from the "
                f"whole. Give its checksum to --dataset_sha256, {INSTEAD}."
            )
        return None

    def _refused(self, status: int) -> ValueError:
        if status in (404, 410):
            return ValueError(f"There is no file at {self.url} (HTTP {status}). Check the address, {INSTEAD}.")
        # 416: the file is shorter than what is here of it.
        return (_WrongFileError if status == 416 else ValueError)(
            f"The server must send the file at {self.url}, got HTTP {status}. Check the address, try again later, "
            f"{INSTEAD}."
        )

    def _unreachable(self, error: Exception) -> ValueError:
        return ValueError(
            f"{self.url} cannot be downloaded, and no whole copy is in the cache. Check the network and try again, "
            f"{INSTEAD}. ({_reason(error)})"
        )


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _strong_validator(headers: Mapping[str, str]) -> str | None:
    """What identifies the bytes of a file for If-Range: a strong ETag, or the time of its last change."""
    tag = headers.get("ETag", "W/")
    return headers.get("Last-Modified") if tag.startswith("W/") else tag


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
