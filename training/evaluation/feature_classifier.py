"""The network in whose features images are compared: a classifier of the dataset itself, trained once and kept.

It learns the dataset's own classes. Images without two classes are changed in ways that can be told apart, and the
classifier learns which way it was: quarter turns (Gidaris et al. 2018, "Unsupervised representation learning by
predicting image rotations") or, for images that are not square, mirror images. Where a turned image looks like any
other, as in a texture, it learns to tell images from inverted, blurred and rearranged ones.

Training takes some seconds, so the weights are kept in the cache of Hugging Face, by the checksum of the images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data.feeds.batches import GlobalBatch, image_batch
from ..data.feeds.indexed import TensorFeed
from ..data.images import ImageData
from ..distributed.processes import Processes


logger = logging.getLogger(__name__)
Task = Literal["classes", "turns", "reflections", "distortions"]
# Changes with what is trained: weights of other versions are trained again.
FORMAT = 1
FEATURES = 64
LARGEST_SIDE = 64  # larger images are averaged down to it, so that the classifier stays cheap
MOST_READ = 10_000  # training images that are read of those that are not held in memory
MOST_STREAMED = 4096  # of a stream, which does not say when all of them have been read
WAYS = 4  # of changing an image
# If the classifier is right about a smaller share of held-out images, the changes leave no visible trace, as turns of
# round shapes do not, and it learned nothing. Guessing is right in 1 / WAYS.
LEAST_ACCURACY = 0.5


class Classifier(nn.Module):
    """Two strided stages and a hidden layer of 64 features.

    Attributes:
        task: what it tells apart.
    """

    def __init__(
        self, num_channels: int, image_size: tuple[int, int], num_classes: int, task: Task = "classes"
    ) -> None:  # fmt: skip
        super().__init__()
        self.task = task
        self.pooling = -(-max(image_size) // LARGEST_SIDE)
        height, width = (side // self.pooling for side in image_size)
        self.conv1 = nn.Conv2d(num_channels, 32, kernel_size=4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=4, stride=2, padding=1)
        self.hidden = nn.Linear(64 * (height // 4) * (width // 4), FEATURES)
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Returns the last hidden layer before its activation, (batch, 64)."""
        if self.pooling > 1:
            pixel_values = F.avg_pool2d(pixel_values, self.pooling)
        hidden = F.relu(self.conv2(F.relu(self.conv1(2 * pixel_values - 1))))
        return self.hidden(hidden.flatten(1))

    def classify(self, features: Tensor) -> Tensor:
        """Returns the logits of the classes, (batch, classes), from the features."""
        return self.head(F.relu(features))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classify(self.features(pixel_values))

    def checksum(self) -> str:
        """Returns the SHA-256 of the weights: numbers of two runs compare if it is the same in both."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def task_of(data: ImageData) -> Task:
    """Returns what a classifier of these images learns first."""
    if len(data.label_names) > 1:
        return "classes"
    return "turns" if data.image_size[0] == data.image_size[1] else "reflections"


def changed(images: Tensor, ways: Tensor, task: Task) -> Tensor:
    """Returns each image changed in its way; way 0 leaves it as it is.

    Args:
        images: (batch, channels, height, width).
        ways: (batch,) from 0 to 3.
        task: "turns" by quarters; "reflections" in the vertical axis, the horizontal one, and both; or "distortions":
            inverted, blurred, or with its halves exchanged.
    """
    if task == "turns":
        versions = [torch.rot90(images, way, (2, 3)) for way in range(WAYS)]
    elif task == "reflections":
        versions = [images, images.flip(3), images.flip(2), images.flip(2, 3)]
    else:
        halves = [side // 2 for side in images.shape[2:]]
        blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        versions = [images, 1 - images, blurred, images.roll(halves, (2, 3))]
    return torch.stack(versions)[ways, torch.arange(len(images), device=images.device)]


def train_classifier(
    data: ImageData, device: torch.device, steps: int = 600, batch_size: int = 128, task: Task | None = None
) -> Classifier:
    """Trains a classifier on the training images, always in the same order, so that it is the same in every run.

    Args:
        data: has the images.
        device: to train on.
        steps, batch_size: of the training.
        task: what to learn; by default the classes, or [`changed`] images if there are no two.
    """
    return _train(*training_pixels(data), data, device, steps, batch_size, task or task_of(data))


def _train(
    pixels: Tensor, labels: Tensor | None, data: ImageData, device: torch.device, steps: int, batch_size: int,
    task: Task,
) -> Classifier:  # fmt: skip
    num_classes = len(data.label_names) if task == "classes" else WAYS
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(data.num_channels, data.image_size, num_classes, task).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    batches = TensorFeed(pixels, labels, seed=0).batches(0, GlobalBatch(batch_size), device)
    ways = torch.arange(batch_size, device=device) % WAYS
    with torch.enable_grad():
        for _ in range(steps):
            batch = next(batches)
            images, targets = batch["pixel_values"], ways
            if task == "classes":
                targets = batch["labels"]
            else:
                images = changed(images, ways, task)
            F.cross_entropy(classifier(images), targets).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return classifier.eval()


def training_pixels(data: ImageData) -> tuple[Tensor, Tensor | None]:
    """Returns training images, uint8 (images, channels, height, width), and their classes, if they have any.

    They are all images that are held in memory; else the first ones, at most 10,000, or 4,096 of a stream.
    """
    if isinstance(data.train, TensorFeed):
        return data.train.pixels, data.train.labels
    count = MOST_STREAMED if data.train.num_examples is None else min(MOST_READ, data.train.num_examples)
    batches = list(data.train.first_batches(count))
    pixels = torch.cat([(255 * batch["pixel_values"]).round().byte() for batch in batches])
    if "labels" not in batches[0]:
        return pixels, None
    labels = torch.cat([batch["labels"] for batch in batches])
    return pixels[labels >= 0], labels[labels >= 0]  # those of a stream may be none of the classes


@torch.no_grad()
def accuracy(classifier: Classifier, data: ImageData, device: torch.device) -> float:
    """Returns the share of the evaluation images about which the classifier is right."""
    right, start = 0, 0
    for batch in data.eval_batches(500, device):
        images, targets = batch["pixel_values"], batch.get("labels")
        if classifier.task != "classes" or targets is None:
            targets = torch.arange(start, start + len(images), device=device) % WAYS
            images = changed(images, targets, classifier.task)
        right += int((classifier(images).argmax(1) == targets).sum())
        start += len(images)
    return right / start


def load_classifier(
    data: ImageData, device: torch.device, steps: int = 600, batch_size: int = 128, processes: Processes | None = None
) -> Classifier:
    """Returns the classifier of a dataset, from the cache or trained now.

    Args:
        data, device, steps, batch_size: as in [`train_classifier`].
        processes: if there are several, the main one reads or trains it, and the others receive its weights.
            Collective call.
    """
    if processes is None or processes.count == 1:
        return _read_or_train(data, device, steps, batch_size)
    held: list[Classifier] = []

    def build() -> Task:
        held.append(_read_or_train(data, device, steps, batch_size))
        return held[0].task

    task = processes.on_main(build)
    num_classes = len(data.label_names) if task == "classes" else WAYS
    received = held[0] if held else Classifier(data.num_channels, data.image_size, num_classes, task).to(device).eval()
    with torch.no_grad():
        for tensor in received.state_dict().values():
            sent = processes.broadcast_tensor(tensor.cpu, tuple(tensor.shape), tensor.dtype)
            tensor.copy_(sent)
    return received


def _read_or_train(data: ImageData, device: torch.device, steps: int, batch_size: int) -> Classifier:
    pixels, labels = training_pixels(data)
    key = _key(pixels, labels, data, steps, batch_size)
    with contextlib.suppress(Exception):  # absent or damaged
        return _read(_cache_file(key), data).to(device)
    task = task_of(data)
    classifier = _train(pixels, labels, data, device, steps, batch_size, task)
    if task != "classes" and accuracy(classifier, data, device) < LEAST_ACCURACY:
        logger.info("%s: images look alike in all %s, so the classifier learns distortions", data.name, task)
        classifier = _train(pixels, labels, data, device, steps, batch_size, "distortions")
    with contextlib.suppress(OSError, ValueError, SafetensorError):  # cannot be written: trained again next time
        _write(_cache_file(key), classifier)
    return classifier


def _key(pixels: Tensor, labels: Tensor | None, data: ImageData, steps: int, batch_size: int) -> str:
    """Everything that the weights follow from, as a checksum."""
    digest = hashlib.sha256()
    settings = [FORMAT, list(pixels.shape), data.label_names, steps, batch_size]
    for tensor in [pixels, labels] if labels is not None and task_of(data) == "classes" else [pixels]:
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()[:32]


def _cache_file(key: str) -> Path:
    folder = cached_assets_path(library_name="hfgen", namespace="evaluation", subfolder="classifiers")
    return folder / f"{key}.safetensors"


def _read(path: Path, data: ImageData) -> Classifier:
    with safe_open(path, "pt") as file:
        task = file.metadata()["task"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    classifier = Classifier(data.num_channels, data.image_size, len(tensors["head.bias"]), task)
    classifier.load_state_dict(tensors)
    return classifier.eval()


def _write(path: Path, classifier: Classifier) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    try:
        save_file(tensors, temporary, {"task": classifier.task})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def image_batches(pixels: Tensor, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yields uint8 images as `pixel_values` in [0, 1], `batch_size` at a time."""
    for part in pixels.split(batch_size):
        yield image_batch(part.to(device), None)["pixel_values"]
