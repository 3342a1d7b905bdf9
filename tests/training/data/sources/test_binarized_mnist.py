"""Binarized MNIST from its three text files, and the same images as the copies that people have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import datasets
import numpy as np
import pytest
import torch

from tests.training.data.file_server import Behavior, Server, running_server
from tests.training.data.tiny_data import ROOT, images_of, take
from training.data.feeds.batches import GlobalBatch
from training.data.sources import binarized_mnist
from training.data.sources.binarized_mnist import FILES, URL, load_binarized_mnist, read_amat


pytestmark = pytest.mark.usefixtures("online")
COPY = ROOT.parent / "shared" / "data" / "binarized_mnist"


def as_text(images: np.ndarray) -> bytes:
    """Images, bool (images, height, width), as Larochelle wrote them."""
    lines = [" ".join(map(str, image.astype(int).ravel())) for image in images]
    return "".join(f"{line}\n" for line in lines).encode()


@contextmanager
def serving(images: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, behavior: Behavior) -> Iterator[Server]:
    """Serves these images in the place of the real ones."""
    host_and_path = URL.removeprefix("http:/")
    files, checksums = {}, {}
    for split, (name, _) in FILES.items():
        content = as_text(images[split])
        files[host_and_path.format(name)] = content
        checksums[split] = (name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(binarized_mnist, "FILES", checksums)
    with running_server(files, behavior) as server:
        yield server


@pytest.fixture
def images() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {split: generator.random((count, 28, 28)) < 0.3 for split, count in zip(FILES, (50, 20, 30))}


@pytest.mark.parametrize("streaming", [False, True])
def test_binarized_mnist_is_downloaded_when_it_is_first_used(
    images: dict[str, np.ndarray], streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(images, monkeypatch, Behavior()) as server:
        for _ in range(2):
            data = images_of("binarized-mnist", dataset_mirror=server.url, streaming=streaming)
        assert len(server.requests) == 3
    assert (data.image_size, data.num_channels, data.label_names) == ((28, 28), 1, [])
    assert data.describe() == {"dataset": "binarized-mnist", "dataset_revision": None, "split": "test"}
    assert torch.equal(data.eval_pixels[:, 0], torch.from_numpy(images["test"]).byte() * 255)
    (batch,) = take(data.train, 1, GlobalBatch(50))
    shown = {image.numpy().tobytes() for image in batch["pixel_values"].bool()}
    assert shown == {image[None].tobytes() for image in images["train"]}
    assert set(batch["pixel_values"].unique().tolist()) == {0.0, 1.0} and "labels" not in batch


def test_without_a_network_it_stays_where_it_was_downloaded_and_is_refused_otherwise(
    images: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(images, monkeypatch, Behavior()) as server:
        server.behavior.status = 404
        with pytest.raises(ValueError, match=r"There is no file at .*/www.cs.toronto.edu/.*_train.amat \(HTTP 404\)"):
            images_of("binarized-mnist", dataset_mirror=server.url)
        server.behavior.status = None
        images_of("binarized-mnist", dataset_mirror=server.url)
    assert {*load_binarized_mnist()} == {"train", "validation", "test"}


def test_another_file_than_larochelles_is_refused() -> None:
    path = urlsplit(URL.format("train"))
    files, expected = {f"/{path.netloc}{path.path}": b"0 1\n"}, f"must have the SHA-256 {FILES['train'][1]}, got"
    with running_server(files) as server, pytest.raises(ValueError, match=expected):
        load_binarized_mnist(server.url)


@pytest.mark.skipif(not COPY.is_dir(), reason="needs a copy of binarized MNIST beside the checkout")
@pytest.mark.parametrize("split", FILES)
def test_the_checksums_are_those_of_the_copy_in_the_format_of_the_original(split: str, tmp_path: Path) -> None:
    """All 70,000 images, bit for bit."""
    table = datasets.load_dataset(str(COPY), split=split)
    images = np.stack([np.asarray(image) for image in table["image"]])
    assert images.dtype == bool and images.shape[1:] == (28, 28)
    text = np.full((len(images), 2 * 784), ord(" "), np.uint8)
    text[:, ::2] = images.reshape(len(images), -1) + ord("0")
    text[:, -1] = ord("\n")
    assert bytes(text[:3]) == as_text(images[:3])
    assert hashlib.sha256(text).hexdigest() == FILES[split][1]
    text.tofile(tmp_path / "file.amat")
    assert np.array_equal(read_amat(tmp_path / "file.amat"), images)
