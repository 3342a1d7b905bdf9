"""The test Hub can be trusted: the real client, the `hf` command and transformers against it, and what it promises.

Clients run in processes of their own (see fixture.py); many checks share one, because starting it is what takes time.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from .client_checks import CHECKS, WEIGHTS
from .fixture import PACKAGE_HOME, HubProcess, running_hub


PACKAGE = __package__ or "hub"
MEBIBYTE = 2**20


@dataclass
class Answer:
    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    url: str, method: str = "GET", *, token: str | None = None, body: Any = None, headers: dict[str, str] | None = None
) -> Answer:
    """One request, exactly as given: no redirects, no repetition."""
    parts = urlsplit(url)
    headers = {"Authorization": f"Bearer {token}", **(headers or {})} if token else headers or {}
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=60)
    try:
        # An iterator without a Content-Length is sent in chunks.
        connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def create(hub: HubProcess, name: str) -> None:
    answer = ask(f"{hub.url}/api/repos/create", "POST", token=hub.token, body=json.dumps({"name": name}))
    assert answer.status == 200, answer.body


def upload_address(hub: HubProcess, repo: str, content: bytes | None = None, sha256: str = "", size: int = 0) -> str:
    sha256, size = (hashlib.sha256(content).hexdigest(), len(content)) if content is not None else (sha256, size)
    body = json.dumps({"operation": "upload", "objects": [{"oid": sha256, "size": size}]})
    answer = ask(f"{hub.url}/alice/{repo}.git/info/lfs/objects/batch", "POST", token=hub.token, body=body)
    return answer.json["objects"][0]["actions"]["upload"]["href"]


def commit(hub: HubProcess, repo: str, *operations: dict[str, Any], **header: str) -> Answer:
    lines = [{"key": "header", "value": {"summary": "Test", **header}}, *operations]
    body = "\n".join(json.dumps(line) for line in lines)
    return ask(f"{hub.url}/api/models/alice/{repo}/commit/main", "POST", token=hub.token, body=body)


def text_file(path: str, content: str) -> dict[str, Any]:
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "utf-8"}}


def lfs_file(path: str, content: bytes) -> dict[str, Any]:
    return {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": hashlib.sha256(content).hexdigest()}}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """Pages of four entries: every list in these tests has to be turned over."""
    with running_hub(tmp_path_factory.mktemp("hub"), page_size=4) as hub:
        yield hub


@pytest.fixture(autouse=True)
def no_faults_left(hub: HubProcess) -> Iterator[None]:
    yield
    hub.clear_faults()


# The real clients


@pytest.fixture(scope="module")
def client_problems(hub: HubProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    command = [sys.executable, "-m", f"{PACKAGE}.client_checks", str(hub.root), hub.url]
    result = hub.run([*command, tmp_path_factory.mktemp("checks")], cwd=PACKAGE_HOME)
    found = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return {entry["name"]: entry["problem"] for entry in found}


@pytest.mark.parametrize("name", CHECKS)
def test_client(client_problems: dict[str, str], name: str) -> None:
    assert client_problems[name] == "", client_problems[name]


def test_every_repository_is_valid_git(hub: HubProcess, client_problems: dict[str, str]) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is the reference here")
    folders = [path.parent for path in hub.root.glob("*/*/*/HEAD")]
    assert len(folders) > 20
    for folder in folders:
        result = subprocess.run(["git", "fsck", "--strict"], cwd=folder, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{folder}: {result.stderr}"


@pytest.mark.slow
def test_hf_command_line(hub: HubProcess, tmp_path: Path) -> None:
    def hf(*arguments: str, account: str = "alice", check: bool = True) -> str:
        """What the command wrote on its standard output, or why it failed."""
        code = "import sys; from huggingface_hub.cli.hf import main; sys.exit(main())"
        result = hub.run_python(code, *arguments, env=environments[account], cwd=tmp_path, check=check)
        return result.stderr if result.returncode else result.stdout

    environments = {account: hub.client_env(account) for account in ("alice", "bob")}
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(WEIGHTS)
    assert "alice" in hf("auth", "whoami")
    hf("repos", "create", "cli-model", "--private")
    hf("upload", "alice/cli-model", "model", ".", "--commit-message", "From the command line")
    hf("upload", "alice/cli-model", "model/config.json", "sub/config.json", "--revision", "dev")
    hf("repos", "tag", "create", "alice/cli-model", "v1")
    tags = json.loads(hf("repos", "tag", "list", "alice/cli-model", "--json"))
    assert [tag["name"] for tag in tags] == ["v1"]
    hf("download", "alice/cli-model", "--revision", "v1", "--local-dir", "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == WEIGHTS
    hf("download", "alice/cli-model", "sub/config.json", "--revision", "dev", "--local-dir", "copy")
    assert (tmp_path / "copy" / "sub" / "config.json").read_text() == "{}"
    hf("repos", "delete-files", "alice/cli-model", "*.json")
    assert "not found" in hf("models", "info", "alice/cli-model", account="bob", check=False).lower()
    hf("repos", "settings", "alice/cli-model", "--public")
    assert "alice/cli-model" in hf("models", "info", "alice/cli-model", account="bob")
    info = json.loads(hf("models", "info", "alice/cli-model", "--json"))
    assert info["private"] is False
    assert [item["rfilename"] for item in info["siblings"]] == [".gitattributes", "model.safetensors"]
    hf("repos", "move", "alice/cli-model", "alice/cli-moved")
    assert "alice/cli-moved" in hf("models", "ls", "--author", "alice", "--search", "cli-", "--json")
    hf("repos", "delete", "alice/cli-moved", "--yes")
    assert "not found" in hf("models", "info", "alice/cli-moved", check=False).lower()


@pytest.mark.slow
def test_transformers_push_load_and_load_offline(hub: HubProcess) -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.transformers_checks"]
    pushed = json.loads(hub.run([*command, "push"], cwd=PACKAGE_HOME).stdout)
    shards = [name for name in pushed["files"] if name.endswith(".safetensors")]
    assert len(shards) > 2 and "model.safetensors.index.json" in pushed["files"]
    assert pushed["model_type"] == "bert" and pushed["architectures"] == ["BertModel"]
    assert not pushed["changed_by_second_push"]
    assert pushed["before"] == pushed["outputs"] == pushed["outputs_pinned"] != pushed["outputs_of_zeros"]
    offline_env = hub.client_env(home=Path(hub.env["HF_HOME"]), HF_HUB_OFFLINE="1")
    offline = hub.run([*command, "offline"], cwd=PACKAGE_HOME, env=offline_env)
    assert json.loads(offline.stdout) == {"outputs": pushed["outputs"], "tokens": pushed["tokens"]}


# Files over HTTP


@pytest.mark.parametrize(
    ("header", "status", "content_range", "expected"),
    [
        (None, 200, None, slice(None)),
        ("bytes=0-9", 206, "bytes 0-9/512000", slice(0, 10)),
        ("bytes=511990-", 206, "bytes 511990-511999/512000", slice(511990, None)),
        ("bytes=-5", 206, "bytes 511995-511999/512000", slice(-5, None)),
        ("bytes=511990-9999999", 206, "bytes 511990-511999/512000", slice(511990, None)),
        ("bytes=512000-", 416, "bytes */512000", None),
        ("bytes=5-2", 200, None, slice(None)),
        ("lines=1-2", 200, None, slice(None)),
    ],
)
def test_ranges(
    hub: HubProcess, header: str | None, status: int, content_range: str | None, expected: slice | None
) -> None:
    if ask(f"{hub.url}/api/models/alice/ranges", token=hub.token).status == 404:
        create(hub, "ranges")
        assert ask(upload_address(hub, "ranges", WEIGHTS), "PUT", body=WEIGHTS).status == 200
        commit(hub, "ranges", lfs_file("large.bin", WEIGHTS), text_file("small.txt", WEIGHTS.decode("latin-1")))
    large = ask(f"{hub.url}/alice/ranges/resolve/main/large.bin")
    assert large.status == 302 and not large.headers["Location"].startswith(hub.url)
    answer = ask(large.headers["Location"], headers={"Range": header} if header else {})
    assert (answer.status, answer.headers["Content-Range"]) == (status, content_range)
    if expected:
        assert answer.body == WEIGHTS[expected]


def test_range_of_a_regular_file(hub: HubProcess) -> None:
    create(hub, "small-ranges")
    commit(hub, "small-ranges", text_file("a.txt", "0123456789"))
    url = f"{hub.url}/alice/small-ranges/resolve/main/a.txt"
    part = ask(url, headers={"Range": "bytes=2-4"})
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    head = ask(url, "HEAD")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "10")
    assert len(head.headers["X-Repo-Commit"]) == 40
    missing = ask(f"{hub.url}/alice/small-ranges/resolve/main/b.txt", "HEAD")
    assert (missing.status, missing.headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert missing.headers["X-Repo-Commit"] == head.headers["X-Repo-Commit"]


def test_corrupt_upload_is_refused(hub: HubProcess) -> None:
    """Bytes that are wrong, too few or too many are not stored, and no commit can name them."""
    create(hub, "corrupt")
    address = upload_address(hub, "corrupt", WEIGHTS)
    for wrong in (b"x" + WEIGHTS[1:], WEIGHTS[:-1], WEIGHTS + b"x", b""):
        assert ask(address, "PUT", body=wrong).status == 400
    refused = commit(hub, "corrupt", lfs_file("a.bin", WEIGHTS))
    assert refused.status == 400 and "does not exist" in refused.json["error"]
    verify = json.dumps({"oid": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS)})
    url = f"{hub.url}/alice/corrupt.git/info/lfs/objects/verify"
    assert ask(url, "POST", token=hub.token, body=verify).status == 404
    assert ask(address, "PUT", body=iter([WEIGHTS[:1000], WEIGHTS[1000:]])).status == 200
    assert ask(url, "POST", token=hub.token, body=verify).status == 200
    assert commit(hub, "corrupt", lfs_file("a.bin", WEIGHTS)).status == 200


def test_storage_wants_a_signature_and_no_token(hub: HubProcess) -> None:
    create(hub, "signed")
    address = upload_address(hub, "signed", WEIGHTS)
    assert ask(address, "PUT", body=WEIGHTS, token=hub.token).status == 400
    assert ask(address, "GET").status == 403
    assert ask(address.partition("?")[0], "PUT", body=WEIGHTS).status == 403
    assert ask(address.replace("size=512000", "size=1"), "PUT", body=b"x").status == 403


def test_large_file_is_never_held_in_memory(hub: HubProcess) -> None:
    def peak_memory() -> int:
        assert hub.process
        status = Path(f"/proc/{hub.process.pid}/status")
        if not status.exists():
            pytest.skip("needs /proc")
        return next(
            int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")
        )

    create(hub, "large")
    piece, count = os.urandom(MEBIBYTE), 160
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(piece)
    size, before = count * MEBIBYTE, peak_memory()
    address = upload_address(hub, "large", sha256=digest.hexdigest(), size=size)
    assert ask(address, "PUT", body=(piece for _ in range(count)), headers={"Content-Length": str(size)}).status == 200
    operation = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": digest.hexdigest()}}
    assert commit(hub, "large", operation).status == 200
    parts = urlsplit(ask(f"{hub.url}/alice/large/resolve/main/a.bin").headers["Location"])
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=60)
    connection.request("GET", f"{parts.path}?{parts.query}")
    response, received = connection.getresponse(), hashlib.sha256()
    while chunk := response.read(MEBIBYTE):
        received.update(chunk)
    connection.close()
    assert received.digest() == digest.digest()
    assert peak_memory() - before < 32 * MEBIBYTE


def test_pages_of_a_listing_show_one_commit(hub: HubProcess) -> None:
    create(hub, "pages")
    commit(hub, "pages", *(text_file(f"{name}.txt", name) for name in "abcdef"))
    first = ask(f"{hub.url}/api/models/alice/pages/tree/main")
    commit(hub, "pages", text_file("aa.txt", "later"), text_file("zz.txt", "later"))
    following = first.headers["Link"].removeprefix("<").partition(">")[0]
    names = [entry["path"] for entry in first.json + ask(following).json]
    assert names == [".gitattributes", *(f"{name}.txt" for name in "abcdef")]


# What it was told to do wrong


def test_fault_fires_as_often_as_it_should(hub: HubProcess) -> None:
    hub.inject("status", method="GET", path="whoami", status=429, retry_after=7, after=1, times=2)
    answers = [ask(f"{hub.url}/api/whoami-v2", token=hub.token) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 429, 429, 200]
    assert answers[1].headers["Retry-After"] == "7" and answers[0].headers["Retry-After"] is None
    assert [request.fault for request in hub.requests(path="whoami")[-4:]] == [None, "status", "status", None]


def test_fault_for_one_user(hub: HubProcess) -> None:
    hub.inject("expired_token", user="bob", times=None)
    statuses = [ask(f"{hub.url}/api/whoami-v2", token=hub.tokens[name]).status for name in ("bob", "alice", "bob")]
    assert statuses == [401, 200, 401]


@pytest.mark.parametrize("reset", [False, True])
def test_answer_is_cut_in_the_middle(hub: HubProcess, reset: bool) -> None:
    name = f"cut-{reset}".lower()
    create(hub, name)
    commit(hub, name, text_file("a.txt", "x" * 5000))
    hub.inject("drop_response", path=f"/{name}/resolve/", body_bytes=1234, reset=reset)
    with pytest.raises(ConnectionResetError if reset else http.client.IncompleteRead):
        ask(f"{hub.url}/alice/{name}/resolve/main/a.txt")
    assert hub.requests(path=f"/{name}/resolve/")[-1].response_bytes == 1234
    assert len(ask(f"{hub.url}/alice/{name}/resolve/main/a.txt").body) == 5000


def test_slow_answer(hub: HubProcess) -> None:
    create(hub, "slow")
    commit(hub, "slow", text_file("a.txt", "x" * 5000))
    hub.inject("slow", path="/slow/resolve/", seconds=0.2, bytes_per_second=20_000)
    started = time.monotonic()
    assert len(ask(f"{hub.url}/alice/slow/resolve/main/a.txt").body) == 5000
    assert time.monotonic() - started >= 0.2


def test_senseless_fault_is_refused(hub: HubProcess) -> None:
    with pytest.raises(ValueError, match="`kind` should be one of"):
        hub.inject("explode")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pth"):
        hub.inject("slow", pth="x")
    answer = ask(f"{hub.url}/_control/faults", "POST", body=json.dumps({"kind": "slow", "pth": "x"}))
    assert answer.status == 400 and "pth" in answer.json["error"]


# The process


def test_no_token_is_written_down(hub: HubProcess, client_problems: dict[str, str]) -> None:
    """Not in the log of requests, not in any file but the accounts, whatever the clients did."""
    log = ask(f"{hub.url}/_control/log").body
    files = [path for path in hub.root.rglob("*") if path.is_file() and path.name != "accounts.json"]
    assert files and log
    for token in hub.tokens.values():
        assert token.encode() not in log
        assert not [path for path in files if path.stat().st_size < MEBIBYTE and token.encode() in path.read_bytes()]
    assert b"signature" not in log


def test_killed_server_keeps_every_commit(tmp_path: Path) -> None:
    """Killed in the middle of an upload and started again: the old state, at the old address, and the upload works."""
    with running_hub(tmp_path) as hub:
        create(hub, "model")
        head = commit(hub, "model", text_file("config.json", "{}")).json["commitOid"]
        parts = urlsplit(upload_address(hub, "model", WEIGHTS))
        connection = socket.create_connection((parts.hostname or "", parts.port or 0))
        request = f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(WEIGHTS)}\r\n\r\n"
        connection.sendall(request.encode() + WEIGHTS[:300_000])
        while not list((hub.root / "tmp").iterdir()):
            time.sleep(0.01)
        url, token = hub.url, hub.token
        hub.stop(signal.SIGKILL)
        connection.close()
        hub.start()
        assert (hub.url, hub.token) == (url, token)
        assert not list((hub.root / "tmp").iterdir())
        info = ask(f"{hub.url}/api/models/alice/model").json
        assert info["sha"] == head
        assert ask(upload_address(hub, "model", WEIGHTS), "PUT", body=WEIGHTS).status == 200
        assert commit(hub, "model", lfs_file("a.bin", WEIGHTS), parentCommit=head).status == 200


def test_server_ends_with_its_parent(tmp_path: Path) -> None:
    """A test run that is killed leaves no server behind."""
    code = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from importlib import import_module; fixture = import_module(sys.argv[2]);"
        "hub = fixture.HubProcess(Path(sys.argv[3])); hub.start(); print(hub.url, flush=True); os._exit(1)"
    )
    command = [sys.executable, "-c", code, str(PACKAGE_HOME), f"{PACKAGE}.fixture", str(tmp_path / "hub")]
    url = urlsplit(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection((url.hostname or "", url.port or 0)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    pytest.fail("the server is still there")
