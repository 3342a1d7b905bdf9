"""How the game of a GAN stands, for discriminators and samples that are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from training.config.flags import DataArguments
from training.data.images import load_images
from training.distributed.processes import Processes
from training.evaluation.adversarial import (
    AdversarialEstimator,
    distance_with_error,
    overfitting_ratio,
    pair_accuracy,
)
from training.evaluation.feature_classifier import train_classifier
from training.evaluation.reference import Reference
from training.objective import Metrics


CPU = torch.device("cpu")


def test_pair_accuracy_counts_all_pairs_and_ties_half() -> None:
    real, fake = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])
    expected = sum((r > f) + 0.5 * (r == f) for r in real.tolist() for f in fake.tolist()) / 6
    assert pair_accuracy(real, fake) == pytest.approx(expected)
    assert pair_accuracy(real + 9, fake) == 1 and pair_accuracy(real - 9, fake) == 0
    assert pair_accuracy(real, real) == 0.5


def test_pairs_are_of_one_class() -> None:
    # Within each class the real image wins; between classes it would not.
    real, fake, labels = torch.tensor([1.0, 11.0]), torch.tensor([0.0, 10.0]), torch.tensor([0, 1])
    assert pair_accuracy(real, fake) == 0.75
    assert pair_accuracy(real, fake, labels, labels) == 1
    assert math.isnan(pair_accuracy(real, fake, labels, labels + 2))


def test_overfitting_ratio_of_known_logits() -> None:
    training, fake = torch.full((5,), 2.0), torch.full((5,), -2.0)
    assert overfitting_ratio(training, training, fake) == 0
    assert overfitting_ratio(training, fake, fake) == 1
    assert overfitting_ratio(training, torch.zeros(5), fake) == 0.5
    assert math.isnan(overfitting_ratio(training, training, training))


def test_error_of_the_distance_is_that_of_repeated_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(4000, 2, generator=generator)
    measured = [distance_with_error(real, 1 + torch.randn(400, 2, generator=generator)) for _ in range(60)]
    values, errors = torch.tensor(measured).T
    assert values.mean() == pytest.approx(2, rel=0.05)  # two unit Gaussians, a distance of √2 apart
    assert errors.mean() == pytest.approx(float(values.std()), rel=0.35)


class Game(nn.Module):
    """A generator that repeats images, and a discriminator that measures how bright they are."""

    def __init__(self, samples: Tensor):
        super().__init__()
        self.config, self.samples = SimpleNamespace(num_labels=0, loss_type="hinge"), samples

    def sample(self, n: int, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        return self.samples[torch.randint(len(self.samples), (n,), generator=generator)]

    def discriminate(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def reference() -> Reference:
    reference = Reference(load_images(DataArguments(dataset_name="digits"), seed=0), CPU)
    reference._classifier = train_classifier(reference.data, CPU, steps=30)
    return reference


@torch.no_grad()
def measure(samples: Tensor, reference: Reference, limit: int | None = 100, quality_samples: int = 1000) -> Metrics:
    estimator = AdversarialEstimator(Game(samples), reference, Processes(), 0, 32, limit, quality_samples)
    for _ in estimator.steps():
        pass
    return estimator.result()


def test_samples_that_are_real_images_are_told_apart_by_nothing(reference: Reference) -> None:
    images = reference.training_set()[0].float() / 255
    metrics = measure(images, reference)
    values = metrics.values
    assert values["pair_accuracy"] == pytest.approx(0.5, abs=0.1) and values["pair_accuracy_train"] < 0.6
    assert values["quick_coverage"] > 0.5 and values["feature_distance_ratio"] == pytest.approx(1, abs=0.1)
    assert values["class_kl"] < 0.2 and 0 < values["largest_logit"] < 1
    assert 0 < metrics.details["quick_fid_standard_error"] < values["quick_fid"]
    assert metrics.details["quick_images"] == reference.data.num_eval_examples  # fewer than at least wanted
    assert measure(images, reference) == metrics  # the same samples at every evaluation


def test_a_collapsed_generator_is_seen(reference: Reference) -> None:
    values = measure(reference.training_set()[0][:1].float() / 255, reference).values
    assert values["feature_distance_ratio"] == pytest.approx(0, abs=1e-3)
    assert values["quick_coverage"] < 0.1 and values["class_kl"] > 1


def test_dark_samples_are_told_from_real_images_with_certainty(reference: Reference) -> None:
    values = measure(torch.zeros(1, 1, 8, 8), reference, quality_samples=0).values
    assert values["pair_accuracy"] == values["pair_accuracy_train"] == 1
    assert values["overfitting_ratio"] == pytest.approx(0, abs=0.05)
    assert "quick_fid" not in values  # nobody asked for it


def test_without_a_classifier_the_discriminator_is_measured_all_the_same(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Reference(reference.data, CPU)

    def fail(*_: object) -> None:
        raise RuntimeError("no classifier.")

    monkeypatch.setattr(broken, "prepare", fail)
    metrics = measure(torch.zeros(1, 1, 8, 8), broken)
    assert metrics.values["pair_accuracy"] == 1 and metrics.missing["quick_fid"] == "RuntimeError: no classifier"
