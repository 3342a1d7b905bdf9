"""Quality of generated images, measured on samplers whose quality is known."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.config.flags import DataArguments
from training.data.images import ImageData, load_images
from training.evaluation import sample_quality as module
from training.evaluation.sample_quality import sample_quality, train_classifier


class Sampler(nn.Module):
    """Stands in for a model: returns given images, of the right class or of any."""

    def __init__(self, data: ImageData, kind: str):
        super().__init__()
        self.config = SimpleNamespace(num_labels=10)
        self.weight = nn.Parameter(torch.zeros(1))
        self.kind = kind
        self.pixels, self.labels = data.train.pixels.float() / 255, data.train.labels  # type: ignore[attr-defined]

    def sample(self, n: int, labels: Tensor, generator: torch.Generator) -> Tensor:
        if self.kind == "noise":
            return torch.rand(n, *self.pixels.shape[1:], generator=generator)
        if self.kind == "wrong class":
            labels = (labels + 1) % 10
        rows = [torch.nonzero(self.labels == label).flatten() for label in labels]
        if self.kind == "one image per class":
            return torch.stack([self.pixels[row[0]] for row in rows])
        return torch.stack([self.pixels[row[torch.randint(len(row), (), generator=generator)]] for row in rows])


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_images(DataArguments(dataset_name="digits"), seed=0)


@pytest.fixture(scope="module")
def quality(data: ImageData) -> dict[str, dict[str, float]]:
    kinds = ("real", "noise", "wrong class", "one image per class")
    samplers: dict[str, Any] = {kind: Sampler(data, kind) for kind in kinds}
    classifier = train_classifier(data, torch.device("cpu"))  # the same for all four
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_classifier", lambda *_: classifier)
        return {kind: sample_quality(sampler, data, 10_000).values for kind, sampler in samplers.items()}


def test_real_images_of_the_training_split_score_best(quality: dict[str, dict[str, float]]) -> None:
    real = quality["real"]
    assert all(real["classifier_fid"] < other["classifier_fid"] for kind, other in quality.items()
               if kind not in ("real", "wrong class"))  # fmt: skip
    assert real["precision"] > 0.7 and real["recall"] > 0.7 and real["coverage"] > 0.7


def test_noise_is_nowhere_near_real_images(quality: dict[str, dict[str, float]]) -> None:
    assert quality["noise"]["precision"] < 0.2
    assert quality["noise"]["label_accuracy"] < 0.3


def test_missing_variety_costs_recall_and_coverage_but_not_precision(quality: dict[str, dict[str, float]]) -> None:
    collapsed = quality["one image per class"]
    assert collapsed["precision"] > 0.7
    assert collapsed["coverage"] < 0.3 and collapsed["recall"] < 0.3


def test_images_of_the_wrong_class_are_detected(quality: dict[str, dict[str, float]]) -> None:
    assert quality["real"]["label_accuracy"] > 0.9
    assert quality["wrong class"]["label_accuracy"] < 0.1


def test_the_classifier_is_the_same_for_every_run_on_a_dataset(data: ImageData) -> None:
    torch.manual_seed(1)
    first = train_classifier(data, torch.device("cpu"), steps=5)
    torch.manual_seed(2)
    second = train_classifier(data, torch.device("cpu"), steps=5)
    for a, b in zip(first.parameters(), second.parameters()):
        assert torch.equal(a, b)


EVERY_METRIC = {"classifier_fid", "precision", "recall", "density", "coverage", "classifier_accuracy",
                "label_accuracy"}  # fmt: skip


@pytest.mark.parametrize("names", [[], ["zero"]])
def test_a_dataset_without_two_classes_has_no_classifier_and_says_so(names: list[str], data: ImageData) -> None:
    unnamed = ImageData(**{**vars(data), "label_names": names})
    metrics = sample_quality(Sampler(data, "real"), unnamed, 100)  # type: ignore[arg-type]
    assert not metrics.values and set(metrics.missing) == EVERY_METRIC
    (reason,) = set(metrics.missing.values())
    assert f"at least 2, got {len(names)}" in reason


@pytest.mark.parametrize(
    ("examples", "samples", "missing"),
    [(1, 100, {"classifier_fid", "precision", "recall", "density", "coverage"}),
     (5, 100, {"precision", "recall", "density", "coverage"}),
     (100, 5, {"precision", "recall", "density", "coverage"}),
     (6, 6, set())],
)  # fmt: skip
def test_what_takes_more_images_than_there_are_is_missing_and_the_rest_measured(
    examples: int, samples: int, missing: set[str], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.eval_labels is not None
    few = ImageData(
        **{**vars(data), "eval_pixels": data.eval_pixels[:examples], "eval_labels": data.eval_labels[:examples]}
    )
    monkeypatch.setattr(module, "train_classifier", partial(train_classifier, steps=1))
    metrics = sample_quality(Sampler(data, "real"), few, samples)  # type: ignore[arg-type]
    assert set(metrics.missing) == missing and set(metrics.values) == EVERY_METRIC - missing
    assert all(f"got {examples} and {min(examples, samples)}" in reason for reason in metrics.missing.values())


def test_an_error_costs_the_metrics_and_is_their_reason(data: ImageData) -> None:
    class Broken(Sampler):
        def sample(self, n: int, labels: Tensor, generator: torch.Generator) -> Tensor:
            raise RuntimeError("no images today.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_classifier", partial(train_classifier, steps=1))
        metrics = sample_quality(Broken(data, "real"), data, 100)  # type: ignore[arg-type]
    assert not metrics.values
    assert metrics.missing == dict.fromkeys(EVERY_METRIC, "RuntimeError: no images today")
