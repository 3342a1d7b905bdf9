"""The classifier that measures: what it learns, and that it is trained once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.config.flags import DataArguments
from training.data.feeds.indexed import TensorFeed
from training.data.images import ImageData, load_images
from training.evaluation import feature_classifier as module
from training.evaluation.feature_classifier import (
    Classifier,
    accuracy,
    changed,
    load_classifier,
    task_of,
    train_classifier,
    training_pixels,
)


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_images(DataArguments(dataset_name="digits"), seed=0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(module, "_cache_file", lambda key: tmp_path / f"{key}.safetensors")
    return tmp_path


def unlabeled(data: ImageData, pixels: Tensor | None = None) -> ImageData:
    pixels = training_pixels(data)[0] if pixels is None else pixels
    size = (pixels.shape[2], pixels.shape[3])
    return replace(data, train=TensorFeed(pixels, None, 0), eval_pixels=pixels[:200], eval_labels=None,
                   label_names=[], image_size=size)  # fmt: skip


def test_the_classifier_is_the_same_for_every_run_on_a_dataset(data: ImageData) -> None:
    torch.manual_seed(1)
    first = train_classifier(data, CPU, steps=5)
    torch.manual_seed(2)
    second = train_classifier(data, CPU, steps=5)
    assert first.checksum() == second.checksum() != train_classifier(data, CPU, steps=6).checksum()


def test_a_classifier_is_trained_once_and_a_damaged_one_again(
    cache: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_classifier(data, CPU, steps=5)
    (file,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_train", lambda *_: pytest.fail("it was trained again"))
        again = load_classifier(data, CPU, steps=5)
    assert again.checksum() == first.checksum() and not again.training
    file.write_bytes(file.read_bytes()[:100])
    assert load_classifier(data, CPU, steps=5).checksum() == first.checksum()
    assert list(cache.iterdir()) == [file]


@pytest.mark.parametrize("change", ["pixel", "label"])
def test_other_images_or_labels_have_another_classifier(change: str, cache: Path, data: ImageData) -> None:
    load_classifier(data, CPU, steps=1)
    pixels, labels = (tensor.clone() for tensor in training_pixels(data) if tensor is not None)
    if change == "pixel":
        pixels[0, 0, 0, 0] += 1
    else:
        labels[0] = (labels[0] + 1) % 10
    load_classifier(replace(data, train=TensorFeed(pixels, labels, 0)), CPU, steps=1)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    where: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()  # where the cache should be
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / where))
    assert load_classifier(data, CPU, steps=1).task == "classes"


def test_images_without_two_classes_are_told_apart_by_turns_or_reflections(data: ImageData) -> None:
    assert task_of(data) == "classes"
    assert task_of(replace(data, label_names=["zero"])) == "turns"
    assert task_of(replace(data, label_names=[], image_size=(8, 12))) == "reflections"


def test_ways_of_changing_an_image() -> None:
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    ways = torch.arange(4)
    turned = changed(image.expand(4, -1, -1, -1), ways, "turns").flatten(1).tolist()
    assert turned == [[1, 2, 3, 4], [2, 4, 1, 3], [4, 3, 2, 1], [3, 1, 4, 2]]
    mirrored = changed(image.expand(4, -1, -1, -1), ways, "reflections").flatten(1).tolist()
    assert mirrored == [[1, 2, 3, 4], [2, 1, 4, 3], [3, 4, 1, 2], [4, 3, 2, 1]]
    distorted = changed(image.expand(4, -1, -1, -1) / 4, ways, "distortions").flatten(1)
    assert (4 * distorted).tolist() == [[1, 2, 3, 4], [3, 2, 1, 0], [2.5] * 4, [4, 3, 2, 1]]


def test_turned_digits_are_recognized(cache: Path, data: ImageData) -> None:
    plain = unlabeled(data)
    classifier = load_classifier(plain, CPU, steps=150)
    assert classifier.task == "turns" and accuracy(classifier, plain, CPU) > 0.75


def test_a_texture_that_looks_alike_from_all_sides_is_told_from_distorted_ones(cache: Path, data: ImageData) -> None:
    noise = torch.randint(0, 100, (400, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    texture = unlabeled(data, noise)
    classifier = load_classifier(texture, CPU, steps=60)
    assert classifier.task == "distortions" and accuracy(classifier, texture, CPU) > 0.5


def test_large_images_are_averaged_down() -> None:
    classifier = Classifier(3, (256, 128), 10)
    assert classifier.pooling == 4 and classifier.features(torch.rand(2, 3, 256, 128)).shape == (2, 64)
    assert Classifier(1, (64, 64), 2).pooling == 1
