"""Where the runtime comes from."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from hfgen.demo import runtime
from hfgen.demo.runtime import SCRIPT, WASM, RuntimeMissingError, fetch_runtime, place_runtime


CONTENT = {SCRIPT: b"export const env = {};", WASM: b"\0asm"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a small package instead of the real one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(runtime, "HASHES", hashes)
    return tmp_path / "cache"


def use_npm(monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes] | None) -> list[list[str]]:
    """An npm whose registry has a package of this content, or cannot be reached; the list gets its calls."""
    calls: list[list[str]] = []

    def run(command: list[str], cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "npm error network")
        with tarfile.open(cwd / "onnxruntime-web.tgz", "w:gz") as archive:
            for name, data in content.items():
                entry = tarfile.TarInfo(f"package/dist/{name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        return subprocess.CompletedProcess(command, 0, "onnxruntime-web.tgz", "")

    monkeypatch.setattr(runtime.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(runtime.subprocess, "run", run)
    return calls


def test_npm_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = use_npm(monkeypatch, CONTENT)

    first, second = fetch_runtime(), fetch_runtime()

    assert first == second and len(calls) == 1 and calls[0][-1] == f"onnxruntime-web@{runtime.VERSION}"
    (tmp_path / "page").mkdir()
    placed = place_runtime(tmp_path / "page")
    assert placed.is_local and placed.size == len(CONTENT[WASM])
    assert {name: (tmp_path / "page" / "runtime" / name).read_bytes() for name in CONTENT} == CONTENT


def test_a_changed_cache_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = use_npm(monkeypatch, CONTENT)
    (fetch_runtime() / SCRIPT).write_text("evil()")

    assert (fetch_runtime() / SCRIPT).read_bytes() == CONTENT[SCRIPT] and len(calls) == 2


def test_other_bytes_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_npm(monkeypatch, {**CONTENT, SCRIPT: b"evil()"})

    with pytest.raises(RuntimeMissingError, match="must have the SHA-256"):
        fetch_runtime()
    assert not list(cache.rglob(SCRIPT))


def test_a_registry_out_of_reach_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    use_npm(monkeypatch, None)

    with pytest.raises(RuntimeMissingError, match=r"could not fetch onnxruntime-web .*npm error network"):
        fetch_runtime()


def test_without_npm_the_runtime_stays_in_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)

    placed = place_runtime(tmp_path)

    assert not placed.is_local and placed.script.startswith(f"{runtime.NETWORK_ORIGIN}/npm/onnxruntime-web@")
    assert list(tmp_path.iterdir()) == []


def test_a_given_folder_is_used(tmp_path: Path) -> None:
    given = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    given.mkdir(parents=True)
    with pytest.raises(RuntimeMissingError, match="--runtime must be a folder with"):
        place_runtime(tmp_path, tmp_path / "node_modules")
    for name, content in CONTENT.items():
        (given / name).write_bytes(content)

    assert place_runtime(tmp_path, tmp_path / "node_modules").is_local
