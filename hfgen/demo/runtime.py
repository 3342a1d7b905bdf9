"""onnxruntime-web, which runs the networks in the browser: two files beside the page, or their address in the network.

They come from the npm registry, by npm, once, into a cache. A version is pinned with the hash of each file, so that
whatever the registry or the cache holds, the page runs these bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path


VERSION = "1.30.0"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
# SHA-256 of the files of this version.
HASHES = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
NETWORK_ORIGIN = "https://cdn.jsdelivr.net"
_NETWORK_FOLDER = f"{NETWORK_ORIGIN}/npm/onnxruntime-web@{VERSION}/dist"
_WASM_BYTES = 14_239_897
_SECONDS = 600


class RuntimeMissingError(ValueError):
    """The runtime is not there and cannot be fetched. The message says why and what to do."""


@dataclass(frozen=True)
class Runtime:
    """Where a page finds the runtime.

    Attributes:
        script, wasm: addresses, relative to the page or in the network.
        size: bytes of both together, for the progress bar.
        is_local: whether the files lie beside the page, so that it needs no network.
    """

    script: str
    wasm: str
    size: int
    is_local: bool


def cache_folder() -> Path:
    """Where the runtime is kept: in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "hfgen" / f"onnxruntime-web-{VERSION}"


def fetch_runtime() -> Path:
    """A folder with the files of the pinned version: the cache, which npm fills if it has to.

    Raises:
        RuntimeMissingError: npm is not installed, cannot reach its registry, or brought other bytes.
    """
    folder = cache_folder()
    if all(_is_right(folder / name) for name in HASHES):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeMissingError(
            f"The page's runtime, onnxruntime-web {VERSION}, is not in {folder}, and npm, which fetches it, is not "
            "installed. Install npm, or give --runtime a folder that holds its files."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as home:
        package = _pack(npm, Path(home))
        with tarfile.open(package) as archive:
            for name in HASHES:
                fresh = Path(home) / name
                with open(fresh, "wb") as target:
                    source = archive.extractfile(f"package/dist/{name}")
                    assert source is not None
                    shutil.copyfileobj(source, target)
                if not _is_right(fresh):
                    raise RuntimeMissingError(
                        f"{name} of onnxruntime-web {VERSION} must have the SHA-256 {HASHES[name]}, got another file "
                        "from npm's registry. Check which registry npm uses (npm config get registry)."
                    )
                fresh.replace(folder / name)
    return folder


def place_runtime(target: Path, given: Path | None = None) -> Runtime:
    """Puts the runtime beside a page, or leaves it in the network if npm is not there to fetch it.

    Args:
        target: the page's folder.
        given: a folder that holds the files, of this or another version; fetched if None.

    Raises:
        RuntimeMissingError: the given folder does not hold them, or npm failed.
    """
    if given is None and not all(_is_right(cache_folder() / name) for name in HASHES) and shutil.which("npm") is None:
        return Runtime(f"{_NETWORK_FOLDER}/{SCRIPT}", f"{_NETWORK_FOLDER}/{WASM}", _WASM_BYTES, is_local=False)
    folder = _find(given) if given is not None else fetch_runtime()
    (target / "runtime").mkdir()
    for name in HASHES:
        shutil.copyfile(folder / name, target / "runtime" / name)
    return Runtime(f"runtime/{SCRIPT}", f"runtime/{WASM}", (folder / WASM).stat().st_size, is_local=True)


def _find(given: Path) -> Path:
    """The folder itself, or the place of the files in an unpacked or installed package."""
    for folder in (given, given / "dist", given / "package" / "dist", given / "onnxruntime-web" / "dist"):
        if all((folder / name).is_file() for name in HASHES):
            return folder
    raise RuntimeMissingError(
        f"--runtime must be a folder with {SCRIPT} and {WASM}, got {str(given)!r}, which lacks them. They are "
        "in dist/ of the npm package onnxruntime-web."
    )


def _pack(npm: str, home: Path) -> Path:
    """Downloads the package. npm checks it against its registry."""
    command = [npm, "pack", "--silent", "--pack-destination", str(home), f"onnxruntime-web@{VERSION}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=home, timeout=_SECONDS, check=False)
        problem = done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    packages = list(home.glob("*.tgz"))
    if not packages:
        words = " ".join(problem.split())[-300:] or "it says nothing"
        raise RuntimeMissingError(
            f"npm could not fetch onnxruntime-web {VERSION}, the page's runtime: {words}. Check the network, or give "
            "--runtime a folder that holds its files."
        )
    return packages[0]


def _is_right(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == HASHES[path.name]
