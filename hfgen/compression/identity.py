"""Which model is it? A `.hfz` file names its model and holds the SHA-256 of the weights, so that only the very model
decodes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import safe_open

from ..hub import fetch_model
from ..model_folder import INDEX, WEIGHTS, read_json
from .container import Container


@dataclass(frozen=True)
class FetchedModel:
    """A checked model on this machine.

    Attributes:
        folder: where it is.
        name: the repository on the Hub, or the folder's own name.
        revision: the commit of the repository; empty for a folder.
        weights_sha256: 32 bytes, see [`hash_weights`].
    """

    folder: Path
    name: str
    revision: str
    weights_sha256: bytes


def fetch(name_or_path: str, revision: str | None, model_type: str | None = None) -> FetchedModel:
    """The model to compress with: a folder, or a repository on the Hub.

    Raises:
        HubError: there is no such folder or repository, or no network and no copy.
        LoadError: the model would not load, or is of another type.
    """
    folder = fetch_model(name_or_path, revision, model_type)
    digest = hash_weights(folder)
    if Path(name_or_path).is_dir():
        return FetchedModel(folder, Path(name_or_path).resolve().name, "", digest)
    # The cache of the Hub has a folder for each commit.
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision or ""
    return FetchedModel(folder, name_or_path, commit, digest)


def fetch_for(
    container: Container, model_type: str | None, name_or_path: str | None = None, revision: str | None = None
) -> FetchedModel:
    """The model that a file was compressed with.

    Args:
        container: the file's content.
        model_type: of the model; any if None.
        name_or_path: where the model is; None: the repository and revision that the file names.
        revision: branch, tag or commit of `name_or_path`.

    Raises:
        ValueError: the file names a folder and `name_or_path` is None, the model cannot be had (HubError, LoadError),
            or it has other weights.
    """
    wanted = container.weights_sha256.hex()
    if name_or_path is None and not container.revision:
        raise ValueError(
            f"The model must be given: the file was compressed with a local folder named {container.model!r}, whose "
            f"weights have the SHA-256 {wanted}. Name the folder, or a repository with these weights, by --model."
        )
    if name_or_path is None:
        found = fetch(container.model, container.revision, model_type)
    else:
        found = fetch(name_or_path, revision, model_type)
    if found.weights_sha256 != container.weights_sha256:
        origin = f"{container.model!r}" + (f" at {container.revision!r}" if container.revision else "")
        raise ValueError(
            f"The weights of {found.name} must have the SHA-256 {wanted}, got {found.weights_sha256.hex()}. The file "
            f"was compressed with {origin}: name this model, and this revision of it."
        )
    return found


def hash_weights(folder: Path) -> bytes:
    """SHA-256 of a folder's weights: of each tensor in the order of their names, its name, dtype, shape and bytes.

    It does not depend on how the tensors are spread over files, nor on what else the files hold.
    """
    digest = sha256()
    for name, tensor in _tensors(folder):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if (folder / WEIGHTS).is_file():
        with safe_open(folder / WEIGHTS, framework="pt") as content:
            for name in sorted(content.keys()):
                yield name, content.get_tensor(name)
        return
    for name, file in sorted(read_json(folder / INDEX)["weight_map"].items()):
        with safe_open(folder / file, framework="pt") as content:
            yield name, content.get_tensor(name)
