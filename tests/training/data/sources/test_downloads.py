"""A file at a URL is downloaded once, whole and with its checksum, from a server that may do anything but that."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from hfgen.cards import is_hub_id
from tests.training.data.file_server import Behavior, running_server
from tests.training.data.tiny_data import ROOT, text_of, write_text
from training.data.sources import downloads
from training.data.sources.built_in import BUILT_INS
from training.data.sources.downloads import download


URL = "https://example.org/books/input.txt"
PATH = "/example.org/books/input.txt"
TEXT = b"".join(b"Line %d of a text that is long enough to break off.\n" % number for number in range(5000))
OTHER = TEXT.replace(b"long", b"LONG")
SHA256 = hashlib.sha256(TEXT).hexdigest()


pytestmark = pytest.mark.usefixtures("online")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN_FAILURES", 0.0)


def cache() -> Path:
    return Path(datasets.config.DOWNLOADED_DATASETS_PATH)


def kept() -> list[str]:
    """The files of the cache that another run would take, or complete."""
    return sorted(path.name for path in cache().rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("sha256", [None, SHA256, SHA256.upper()])
@pytest.mark.parametrize("length", ["known", "chunked"])
def test_a_file_is_downloaded_once(sha256: str | None, length: str) -> None:
    with running_server({PATH: TEXT}, Behavior(length=length)) as server:
        path = download(URL, sha256, server.url)
        assert path.read_bytes() == TEXT and path.name == "input.txt"
        assert download(URL, sha256, server.url) == path
        assert len(server.requests) == 1
    assert download(URL, sha256, server.url) == path  # the server is gone
    assert kept() == ["input.txt"]


def test_without_a_mirror_the_address_itself_is_asked() -> None:
    with running_server({"/a/b%20[c].txt?raw=1": TEXT}) as server:
        path = download(f"{server.url}/a/b%20[c].txt?raw=1", SHA256)
    assert path.read_bytes() == TEXT and path.name == "b__c_.txt"


def test_each_address_and_checksum_is_a_file_of_its_own() -> None:
    with running_server({PATH: TEXT, PATH.replace("books", "more"): OTHER}) as server:
        paths = [download(URL, None, server.url), download(URL, SHA256, server.url)]
        paths.append(download(URL.replace("books", "more"), None, server.url))
    assert [path.read_bytes() for path in paths] == [TEXT, TEXT, OTHER] and len({*paths}) == 3


# ---------------------------------------------------------------------------------------------------- broken off, slow


@pytest.mark.parametrize("sha256", [None, SHA256])
@pytest.mark.parametrize("behavior", [
    Behavior(break_after=70_000, times=3),
    Behavior(break_after=70_000, times=3, etag=None, last_modified="Mon, 01 Jan 2024 00:00:00 GMT"),
    Behavior(break_after=70_000, times=3, length="chunked"),
    Behavior(break_after=70_000, stalls=True),
], ids=["etag", "date", "chunked", "stalled"])  # fmt: skip
def test_a_download_that_breaks_off_is_resumed(
    behavior: Behavior, sha256: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1.0 if behavior.stalls else 10.0)
    times = behavior.times
    behavior = Behavior(**vars(behavior))  # it counts
    with running_server({PATH: TEXT}, behavior) as server:
        assert download(URL, sha256, server.url).read_bytes() == TEXT
    expected = [None, *(f"bytes={70_000 * (number + 1)}-" for number in range(times))]
    assert [request.range for request in server.requests] == expected
    assert kept() == ["input.txt"]


@pytest.mark.parametrize(("behavior", "sha256"), [
    (Behavior(break_after=70_000, takes_ranges=False), SHA256),
    (Behavior(break_after=70_000, takes_ranges=False), None),
    (Behavior(break_after=70_000, etag='W/"1"'), None),
    (Behavior(break_after=70_000, etag=None), None),
], ids=["no_ranges_but_checksum", "no_ranges", "weak_etag", "no_etag"])  # fmt: skip
def test_a_download_that_cannot_be_resumed_starts_again(behavior: Behavior, sha256: str | None) -> None:
    with running_server({PATH: TEXT}, Behavior(**vars(behavior))) as server:
        assert download(URL, sha256, server.url).read_bytes() == TEXT
    assert len(server.requests) == 2


def test_a_file_that_changes_while_it_breaks_off_is_not_mixed() -> None:
    behavior = Behavior(break_after=70_000)
    with running_server({PATH: TEXT}, behavior) as server:
        # The first connection is under way when the file changes.
        class Changing(dict):
            def get(self, path: str, default: Any = None) -> Any:
                if server.requests[1:]:
                    behavior.etag = '"2"'
                    return OTHER
                return TEXT

        server.files = Changing()
        assert download(URL, None, server.url).read_bytes() == OTHER


def test_a_slow_download_is_not_given_up_and_shows_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1.0)
    datasets.enable_progress_bars()
    with running_server({PATH: TEXT}, Behavior(piece=len(TEXT) // 12, pause=0.1)) as server:
        assert download(URL, SHA256, server.url).read_bytes() == TEXT
    assert len(server.requests) == 1
    shown = re.findall(r"Downloading:\s+(\d+)%[^\r]*/269k", capsys.readouterr().err)
    assert shown[-1] == "100" and len(set(shown)) > 3


@pytest.mark.parametrize("behavior", [
    Behavior(break_after=0, times=10**6),
    Behavior(break_after=70_000, times=10**6, takes_ranges=False),
], ids=["nothing", "same_part"])  # fmt: skip
def test_a_server_that_only_breaks_off_is_given_up(behavior: Behavior) -> None:
    with running_server({PATH: TEXT}, behavior) as server:
        with pytest.raises(ValueError, match=rf"{server.url}{PATH} cannot be downloaded, and no whole copy is in"):
            download(URL, None, server.url)
        assert kept() == [] and len(server.requests) <= 1 + downloads.MAX_FAILURES


def test_no_end_of_a_file_is_guessed() -> None:
    with running_server({PATH: TEXT}, Behavior(length="unknown", break_after=70_000, times=2)) as server:
        with pytest.raises(ValueError, match=r"must say how long the file at .* is.* Give its checksum"):
            download(URL, None, server.url)
        with pytest.raises(ValueError, match=rf"must have the SHA-256 {SHA256}, got [0-9a-f]{{64}} \(70,000 bytes\)"):
            download(URL, SHA256, server.url)
        assert download(URL, SHA256, server.url).read_bytes() == TEXT
    assert kept() == ["input.txt"]


@pytest.mark.parametrize(("left", "requests"), [(TEXT[:70_000], 1), (b"else", 2), (TEXT, 2), (TEXT + b"more", 2)],
                         ids=["begun", "foreign", "whole", "longer"])  # fmt: skip
def test_what_a_killed_run_left_is_resumed_if_a_checksum_tells_that_it_fits(left: bytes, requests: int) -> None:
    with running_server({PATH: TEXT}) as server:
        for sha256 in (None, SHA256):
            path = download(URL, sha256, server.url)
            path.rename(path.with_name("input.txt.incomplete")).write_bytes(left)
        server.requests.clear()
        assert download(URL, SHA256, server.url).read_bytes() == TEXT
        assert server.requests[0].range == f"bytes={len(left)}-" and len(server.requests) == requests
        server.requests.clear()
        assert download(URL, None, server.url).read_bytes() == TEXT
        assert [request.range for request in server.requests] == [None]
    assert kept() == ["input.txt"] * 2


# ------------------------------------------------------------------------------------------------ refused, unreachable


def test_a_file_with_another_checksum_is_refused_and_not_kept() -> None:
    with running_server({PATH: OTHER}) as server:
        for _ in range(2):
            found = hashlib.sha256(OTHER).hexdigest()
            with pytest.raises(
                ValueError, match=rf"must have the SHA-256 {SHA256}, got {found} \({len(OTHER):,} bytes"
            ):
                download(URL, SHA256, server.url)
            assert kept() == []
        assert len(server.requests) == 2
        server.files[PATH] = TEXT
        assert download(URL, SHA256, server.url).read_bytes() == TEXT


@pytest.mark.parametrize(("status", "message"), [
    (404, "There is no file at {url} (HTTP 404). Check the address, or use a copy (--dataset_path) or another"),
    (403, "The server must send the file at {url}, got HTTP 403. Check the address, try again later, or use a copy"),
    (304, "The server must send the file at {url}, got HTTP 304"),
    (503, "The server must send the file at {url}, got HTTP 503"),
])  # fmt: skip
def test_a_server_that_refuses_is_quoted(status: int, message: str) -> None:
    with running_server({PATH: TEXT}, Behavior(status=status)) as server, pytest.raises(ValueError) as caught:
        download(URL, SHA256, server.url)
    assert str(caught.value).startswith(message.format(url=server.url + PATH))
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None
    assert len(server.requests) == 1 and "input.txt" not in kept()


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_only_a_copy_in_the_cache_is_found(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server({PATH: TEXT}) as server:
        path = download(URL, SHA256, server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    assert download(URL, SHA256, server.url) == path
    with pytest.raises(
        ValueError, match=rf"{server.url}{PATH} cannot be downloaded, and no whole copy is in the cache"
    ):
        download(URL, None, server.url)


@pytest.mark.parametrize(("url", "message"), [
    ("https://huggingface.co/datasets/me/texts", "must be the id of a dataset on the Hub, got its page"),
    ("https://huggingface.co/datasets/me/texts/tree/main", "Give me/texts."),
    ("s3://bucket/input.txt", "must begin with http:// or https:// .*, got s3://bucket/input.txt"),
    ("https:///input.txt", "must begin with http:// or https:// and the name of a server"),
    ("https://me:secret@example.org/input.txt", "must not contain a user or password, got one for example.org:"),
    ("https://example.org/", r"must end in the name of a file, such as input.txt or train.parquet, got https"),
    ("https://example.org/download?file=input.txt", "must end in the name of a file"),
])  # fmt: skip
def test_an_address_that_names_no_file_is_refused_without_asking(url: str, message: str) -> None:
    with running_server({}) as server, pytest.raises(ValueError, match=message) as caught:
        text_of(url, dataset_mirror=server.url)
    assert server.requests == [] and "secret" not in str(caught.value)


@pytest.mark.parametrize("page", [b"<!DOCTYPE html>\n<title>Log in</title>", b"\n <HTML><body>"])
def test_a_web_page_is_not_taken_for_a_text(page: bytes) -> None:
    expected = "must be the address of the file itself, got that of a web page"
    with running_server({PATH: page * 99}) as server, pytest.raises(ValueError, match=expected):
        download(URL, None, server.url)
    assert kept() == []


def test_a_full_disk_is_named_and_not_kept_full() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with running_server({PATH: TEXT}) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, limits[1]))
        try:
            with pytest.raises(ValueError, match=r"cannot be saved as .*File too large.* set HF_DATASETS_CACHE"):
                download(URL, SHA256, server.url)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept() == []


# --------------------------------------------------------------------------------------------------- several processes

IN_ANOTHER_PROCESS = "import sys; from training.data.sources.downloads import download; download(*sys.argv[1:])"


@pytest.mark.parametrize("is_killed", [False, True])
def test_of_two_processes_one_waits_for_the_other_and_completes_what_a_killed_one_began(is_killed: bool) -> None:
    folders = {"PYTHONPATH": str(ROOT), "HF_DATASETS_DOWNLOADED_DATASETS_PATH": str(cache()), "HF_HUB_OFFLINE": "0"}
    with running_server({PATH: TEXT}, Behavior(piece=len(TEXT) // 10, pause=0.1)) as server:
        command = [sys.executable, "-c", IN_ANOTHER_PROCESS, URL, SHA256, server.url]
        with subprocess.Popen(command, env={**os.environ, **folders}) as process:
            while not any(path.stat().st_size for path in cache().rglob("*.incomplete")):
                assert process.poll() is None
                time.sleep(0.01)
            if is_killed:
                threading.Timer(0.2, process.kill).start()
            assert download(URL, SHA256, server.url).read_bytes() == TEXT
        assert process.returncode == (-signal.SIGKILL if is_killed else 0)
    assert [request.range is not None for request in server.requests] == [False, True][: 1 + is_killed]


# ------------------------------------------------------------------------------------------------------ from the flags


@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_is_trained_on_by_its_url(streaming: bool) -> None:
    paragraphs = "\n\n".join(f"Paragraph {number} of a text." for number in range(500))
    sha256 = hashlib.sha256(paragraphs.encode()).hexdigest()
    with running_server({PATH: paragraphs.encode()}) as server:
        flags: dict[str, Any] = {
            "dataset_sha256": sha256.upper(),
            "dataset_mirror": server.url,
            "streaming": streaming,
        }
        data = text_of(URL, **flags)
    assert len(server.requests) == 1
    assert data.describe()["dataset"] == URL and data.describe()["dataset_revision"] == f"sha256:{sha256}"
    assert "Paragraph" in data.tokenizer.decode(data.eval_tokens[:].tolist())


def test_a_local_copy_is_read_instead_if_it_is_the_same_file(tmp_path: Path) -> None:
    copy = str(write_text(tmp_path / "copy.txt", TEXT.decode()))
    with running_server({}) as server:
        flags: dict[str, Any] = {"dataset_path": copy, "dataset_mirror": server.url}
        assert text_of(URL, **flags, dataset_sha256=SHA256).name == URL
        assert text_of(copy, dataset_sha256=SHA256).name == copy
        for name in (URL, copy):
            with pytest.raises(
                ValueError, match=rf"The file .*copy.txt must have the SHA-256 {'0' * 64}, got {SHA256}"
            ):
                text_of(name, **flags, dataset_sha256="0" * 64)
    assert server.requests == []


@pytest.mark.parametrize("name", ["digits", "me/texts", "."])
def test_a_checksum_of_something_other_than_a_file_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"--dataset_sha256 must be the checksum of a file, got one for .* Leave it out"
    ):
        text_of(name, dataset_sha256=SHA256)


# ------------------------------------------------------------------------------------------------------- the recipes

RECIPE = yaml.safe_load((ROOT / "training" / "recipes" / "gpt-tiny-shakespeare.yaml").read_text(encoding="utf-8"))
SHAKESPEARE = ROOT.parent / "shared" / "data" / "tiny_shakespeare" / "input.txt"


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_names_data_that_any_machine_can_get(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    name = recipe["dataset_name"]
    assert name in BUILT_INS or is_hub_id(name) or (name.startswith("https://") and "dataset_sha256" in recipe)


def test_the_recipe_of_tiny_shakespeare_takes_no_other_text() -> None:
    name, sha256 = RECIPE["dataset_name"], RECIPE["dataset_sha256"]
    expected = f"must have the SHA-256 {sha256}, got {SHA256}"
    with running_server({name.removeprefix("https:/"): TEXT}) as server, pytest.raises(ValueError, match=expected):
        text_of(name, dataset_sha256=sha256, dataset_mirror=server.url)


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="needs a copy of tiny Shakespeare beside the checkout")
def test_the_recipe_of_tiny_shakespeare_takes_the_1115394_characters_of_the_copy() -> None:
    name, sha256 = RECIPE["dataset_name"], RECIPE["dataset_sha256"]
    with running_server({name.removeprefix("https:/"): SHAKESPEARE.read_bytes()}) as server:
        data = text_of(name, dataset_sha256=sha256, dataset_mirror=server.url)
    assert len(data.eval_tokens) == 111_540
