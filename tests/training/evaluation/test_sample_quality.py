"""Quality of generated images, measured on samplers whose quality is known."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.config.flags import DataArguments
from training.data.images import ImageData, load_images
from training.evaluation.feature_classifier import train_classifier
from training.evaluation.reference import Reference
from training.evaluation.sample_quality import class_divergence, sample_quality


CPU = torch.device("cpu")


COLLAPSED = "one image per class"


class Sampler(nn.Module):
    """Stands in for a model: returns given images, of the right class or of any."""

    def __init__(self, data: ImageData, kind: str):
        super().__init__()
        self.config = SimpleNamespace(num_labels=0 if kind == "any" else 10)
        self.weight = nn.Parameter(torch.zeros(1))
        self.kind = kind
        self.pixels, self.labels = data.train.pixels.float() / 255, data.train.labels  # type: ignore[attr-defined]

    def sample(self, n: int, labels: Tensor | None = None, *, generator: torch.Generator) -> Tensor:
        if self.kind == "noise":
            return torch.rand(n, *self.pixels.shape[1:], generator=generator)
        if labels is None:
            return self.pixels[torch.randint(len(self.pixels), (n,), generator=generator)]
        if self.kind == "one class":
            labels = torch.full_like(labels, 3)
        if self.kind == "wrong class":
            labels = (labels + 1) % 10
        rows = [torch.nonzero(self.labels == label).flatten() for label in labels]
        if self.kind == COLLAPSED:
            return torch.stack([self.pixels[row[0]] for row in rows])
        return torch.stack([self.pixels[row[torch.randint(len(row), (), generator=generator)]] for row in rows])


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_images(DataArguments(dataset_name="digits"), seed=0)


@pytest.fixture(scope="module")
def quality(data: ImageData) -> dict[str, dict[str, float]]:
    kinds = ("real", "noise", "wrong class", COLLAPSED)
    samplers: dict[str, Any] = {kind: Sampler(data, kind) for kind in kinds}
    reference = Reference(data, CPU)
    return {kind: sample_quality(sampler, data, 10_000, reference).values for kind, sampler in samplers.items()}


def quick_reference(data: ImageData) -> Reference:
    """One whose classifier has hardly learned anything."""
    reference = Reference(data, CPU)
    reference._classifier = train_classifier(data, CPU, steps=1)
    return reference


def test_real_images_of_the_training_split_score_best(quality: dict[str, dict[str, float]]) -> None:
    real = quality["real"]
    assert all(real["classifier_fid"] < other["classifier_fid"] for kind, other in quality.items()
               if kind not in ("real", "wrong class"))  # fmt: skip
    assert real["precision"] > 0.7 and real["recall"] > 0.7 and real["coverage"] > 0.7


def test_noise_is_nowhere_near_real_images(quality: dict[str, dict[str, float]]) -> None:
    assert quality["noise"]["precision"] < 0.2
    assert quality["noise"]["label_accuracy"] < 0.3


def test_missing_variety_costs_recall_and_coverage_but_not_precision(quality: dict[str, dict[str, float]]) -> None:
    collapsed = quality[COLLAPSED]
    assert collapsed["precision"] > 0.7
    assert collapsed["coverage"] < 0.3 and collapsed["recall"] < 0.3


def test_images_of_the_wrong_class_are_detected(quality: dict[str, dict[str, float]]) -> None:
    assert quality["real"]["label_accuracy"] > 0.9
    assert quality["wrong class"]["label_accuracy"] < 0.1


def test_kernel_distance_agrees_and_the_floor_is_that_of_training_images(quality: dict[str, dict[str, float]]) -> None:
    real = quality["real"]
    # Not 0: the held-out digits are by other writers than the training images.
    assert abs(real["classifier_kid"]) < 0.5 * min(quality[kind]["classifier_kid"] for kind in ("noise", COLLAPSED))
    # The sampler draws training images with repetition, the floor takes each once.
    assert 0 < real["classifier_fid_floor"] < 1.5 * real["classifier_fid"]
    assert len({metrics["classifier_fid_floor"] for metrics in quality.values()}) == 1


def test_copies_of_training_images_are_found_and_noise_is_no_copy(quality: dict[str, dict[str, float]]) -> None:
    assert quality["real"]["memorized"] > 0.95 and quality["noise"]["memorized"] < 0.05
    assert 0.1 < quality["real"]["memorized_floor"] < 0.8


def test_a_fresh_critic_tells_noise_and_not_real_images(quality: dict[str, dict[str, float]]) -> None:
    assert quality["noise"]["fresh_critic_accuracy"] > 0.95
    # A copy of the training images is no different from them: 60 test images of each kind, within three errors.
    assert 0.3 < quality["real"]["fresh_critic_accuracy"] < 0.7


def test_the_classes_of_samples_are_counted(data: ImageData) -> None:
    reference = Reference(data, CPU)
    metrics = sample_quality(Sampler(data, "one class"), data, 10_000, reference)  # type: ignore[arg-type]
    rows = metrics.details["class_histogram"]
    assert [row["name"] for row in rows] == data.label_names
    assert sum(row["real"] for row in rows) == pytest.approx(1) and rows[3]["generated"] > 0.9
    assert metrics.values["class_kl"] > 1.5
    assert metrics.details["classifier_task"] == "classes" and len(metrics.details["classifier_sha256"]) == 64


def test_class_divergence_of_known_histograms() -> None:
    even, one = torch.arange(1000) % 10, torch.zeros(1000, dtype=torch.long)
    assert class_divergence(even, even, 10) == pytest.approx(0)
    assert class_divergence(even, one, 10) == pytest.approx(math.log(10), abs=0.05)


EVERY_METRIC = {
    "classifier_fid", "classifier_fid_floor", "classifier_kid", "precision", "recall", "density", "coverage",
    "class_kl", "classifier_accuracy", "label_accuracy", "memorized", "memorized_floor", "fresh_critic_accuracy",
}  # fmt: skip


def test_a_dataset_without_classes_is_measured_by_a_classifier_of_turned_images(data: ImageData) -> None:
    unnamed = replace(data, label_names=[], eval_labels=None)
    metrics = sample_quality(Sampler(data, "any"), unnamed, 200, quick_reference(unnamed))  # type: ignore[arg-type]
    assert set(metrics.values) == EVERY_METRIC - {"class_kl", "label_accuracy"} and not metrics.missing
    assert metrics.details["classifier_task"] == "turns"


NEIGHBORHOODS = {"precision", "recall", "density", "coverage"}


@pytest.mark.parametrize(
    ("examples", "samples", "missing"),
    [(1, 100, {"classifier_fid", "classifier_kid", *NEIGHBORHOODS}), (5, 100, NEIGHBORHOODS), (100, 5, NEIGHBORHOODS),
     (6, 6, set())],
)  # fmt: skip
def test_what_takes_more_images_than_there_are_is_missing_and_the_rest_measured(
    examples: int, samples: int, missing: set[str], data: ImageData
) -> None:
    assert data.eval_labels is not None
    few = replace(data, eval_pixels=data.eval_pixels[:examples], eval_labels=data.eval_labels[:examples])
    metrics = sample_quality(Sampler(data, "real"), few, samples, quick_reference(few))  # type: ignore[arg-type]
    missing = missing | {"fresh_critic_accuracy"}  # which takes 10 images for its test, and 20 to learn from
    without_floor = {"classifier_fid_floor"} if "classifier_fid" in missing else set()
    assert set(metrics.missing) == missing and set(metrics.values) == EVERY_METRIC - missing - without_floor
    of_features = {reason for name, reason in metrics.missing.items() if name != "fresh_critic_accuracy"}
    assert all(f"got {examples} and {min(examples, samples)}" in reason for reason in of_features)


def test_an_error_costs_the_metrics_and_is_their_reason(data: ImageData) -> None:
    class Broken(Sampler):
        def sample(self, *_: Any, **__: Any) -> Tensor:
            raise RuntimeError("no images today.")

    metrics = sample_quality(Broken(data, "real"), data, 100, quick_reference(data))  # type: ignore[arg-type]
    assert not metrics.values and set(metrics.missing) >= {"classifier_fid", "coverage", "label_accuracy"}
    assert set(metrics.missing.values()) == {"RuntimeError: no images today"}
