"""How the game of a GAN stands in the middle of a run: what its discriminator tells apart, and how samples are.

All of it is measured on some hundred or thousand images, to follow the run; the finished model is measured on all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hfgen.metrics import frechet_distance, precision_recall_density_coverage

from ..data.feeds.batches import evenly_spread, image_batch
from ..distributed.processes import Processes
from ..objective import Metrics, Steps
from ..randomness import derive_seed
from .feature_classifier import FEATURES
from .reference import Reference
from .sample_quality import NEIGHBORS, class_divergence


LEAST_SAMPLES = 1000  # fewer say little about quality
MOST_SAMPLES = 5000
MOST_AT_END = 2000  # they tell the discriminator's accuracy to about 0.01
MOST_PAIRED = 2000  # samples whose distances from each other are averaged
BLOCKS = 10  # of the jackknife


class AdversarialEstimator:
    """Measures discriminator and generator on held-out, training and generated images; a
    [`training.objective.Estimator`].

    Every process draws and measures its share of the images. They are the same ones at every evaluation.

    Args:
        model: with the methods `sample` and `discriminate` of [`hfgen.GANModel`].
        reference: the real images.
        processes: of the run.
        seed: of the samples.
        batch_size: images measured at a time.
        limit: number of held-out images; None for a finished model, and 2,000.
        quality_samples: largest number of samples whose quality is measured as well; 0 for none, as the final
            evaluation does it by itself.
    """

    def __init__(
        self, model: Any, reference: Reference, processes: Processes, seed: int, batch_size: int,
        limit: int | None = None, quality_samples: int = MOST_SAMPLES,
    ):  # fmt: skip
        self.model, self.reference, self.processes = model, reference, processes
        self.seed, self.batch_size, self.with_quality = seed, batch_size, quality_samples > NEIGHBORS
        if limit is None:
            limit = MOST_AT_END
        elif self.with_quality:
            limit = min(max(limit, LEAST_SAMPLES), MOST_SAMPLES, quality_samples)
        data = reference.data
        self.limit = limit
        self.rows = evenly_spread(data.num_eval_examples, limit)
        self.training_pixels, self.training_labels = reference.training_sample(len(self.rows))
        self.is_conditional = bool(model.config.num_labels)
        # What other processes measure is 0 here until it is summed.
        self._held_out, self._fake = torch.zeros(2, len(self.rows), dtype=torch.float64)
        self._training = torch.zeros(len(self.training_pixels), dtype=torch.float64)
        self._features = torch.zeros(len(self.rows), FEATURES if self.with_quality else 0)
        self._classes = torch.zeros(len(self.rows), dtype=torch.long)
        self._failure: Exception | None = None
        if self.with_quality:
            try:
                reference.prepare(processes)
            except Exception as error:  # raised in every process
                self._failure, self.with_quality = error, False

    def steps(self) -> Steps:
        """Does the work of this process in pieces; see [`training.objective.Estimator`]."""
        data, device = self.reference.data, self.reference.device
        for index, places in self._own(len(self.rows)):
            yield 0.0
            if not len(places):
                continue
            batch = data.eval_batch(self.rows[places], device)
            labels = batch["labels"] if self.is_conditional else None
            self._held_out[places] = self._logits(batch["pixel_values"], labels)
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "samples of an evaluation", index))
            images = self.model.sample(len(places), labels, generator=generator)
            self._fake[places] = self._logits(images, labels)
            if self.with_quality:
                features = self.reference.classifier.features(images.float())
                self._features[places] = features.float().cpu()
                self._classes[places] = self.reference.classifier.classify(features).argmax(1).cpu()
        for _, places in self._own(len(self.training_pixels)):
            yield 0.0
            if not len(places):
                continue
            labels = self.training_labels[places].to(device) if self.is_conditional else None  # type: ignore[index]
            images = image_batch(self.training_pixels[places].to(device), None)["pixel_values"]
            self._training[places] = self._logits(images, labels)

    def result(self) -> Metrics:
        """Returns the metrics, the same in every process. Collective call, after the steps of all processes."""
        parts = (self._held_out, self._fake, self._training, self._features, self._classes)
        held_out, fake, training, features, classes = (self.processes.sum(part) for part in parts)
        metrics = self._measure_discriminator(held_out, fake, training)
        names = ("quick_fid", "quick_coverage", "feature_distance_ratio")
        if self._failure is not None:
            return metrics | Metrics.failed(names, self._failure)
        if not self.with_quality or len(self.rows) <= NEIGHBORS:
            return metrics
        try:
            return metrics | self._measure_samples(features, classes)
        except Exception as error:
            return metrics | Metrics.failed(names, error)

    def _logits(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return self.model.discriminate(images, labels).double().cpu()

    def _measure_discriminator(self, held_out: Tensor, fake: Tensor, training: Tensor) -> Metrics:
        labels = self.reference.data.eval_labels[self.rows] if self.is_conditional else None  # type: ignore[index]
        values = {
            "pair_accuracy": pair_accuracy(held_out, fake, labels, labels),
            "pair_accuracy_train": pair_accuracy(training, fake, self.training_labels if self.is_conditional else None,
                                                 labels),
        }  # fmt: skip
        ratio = overfitting_ratio(training, held_out, fake)
        if math.isfinite(ratio):
            values["overfitting_ratio"] = ratio
        if getattr(self.model.config, "loss_type", "") != "wasserstein":  # whose scores have no scale of their own
            values["largest_logit"] = float(torch.cat([held_out, fake]).abs().max())
        return Metrics(values)

    def _measure_samples(self, features: Tensor, classes: Tensor) -> Metrics:
        real = self.reference.held_out(self.limit)
        distance, error = distance_with_error(real.vectors, features)
        coverage = precision_recall_density_coverage(real.vectors, features, NEIGHBORS).coverage
        ratio = _mean_distance(features) / max(_mean_distance(real.vectors), 1e-12)
        metrics = Metrics({"quick_fid": distance, "quick_coverage": coverage, "feature_distance_ratio": ratio})
        metrics.details = {
            "quick_fid_standard_error": error,
            "quick_coverage_standard_error": math.sqrt(coverage * (1 - coverage) / len(real)),
            "quick_images": len(features),
        }
        if self.reference.classifier.task == "classes":
            names = self.reference.data.label_names
            metrics.values["class_kl"] = class_divergence(real.classes, classes, len(names))
        return metrics

    def _own(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """Yields (index, places) of this process's batches, and no places in a round without one: every process takes
        part in as many rounds."""
        batches = torch.arange(count).split(self.batch_size) if count else ()
        for first in range(0, len(batches), self.processes.count):
            index = first + self.processes.rank
            yield index, batches[index] if index < len(batches) else torch.arange(0)


def pair_accuracy(
    real: Tensor, fake: Tensor, real_labels: Tensor | None = None, fake_labels: Tensor | None = None
) -> float:
    """Returns the share of pairs of a real and a generated image, of one class, in which the real one has the larger
    logit; ties count half.

    Args:
        real, fake: logits, (images,) each.
        real_labels, fake_labels: classes, (images,) each; None to pair all with all.
    """
    if real_labels is None or fake_labels is None:
        real_labels, fake_labels = torch.zeros(len(real)), torch.zeros(len(fake))
    wins, total = 0.0, 0
    for label in real_labels.unique():
        ours, theirs = real[real_labels == label].contiguous(), fake[fake_labels == label].sort().values
        if len(theirs):
            below = [torch.searchsorted(theirs, ours, right=right).double().sum() for right in (False, True)]
            wins += float(sum(below)) / (2 * len(theirs))
            total += len(ours)
    return wins / total if total else math.nan


def overfitting_ratio(training: Tensor, held_out: Tensor, fake: Tensor) -> float:
    """Returns (E D_train - E D_held_out) / (E D_train - E D_fake) of the logits (Karras et al. 2020,
    https://arxiv.org/abs/2006.06676, eq. 1): 0 if the discriminator takes held-out images for real, 1 if it takes them
    for generated; NaN if it does not even tell training images from generated ones."""
    of_training, of_held_out, of_fake = (float(logits.mean()) for logits in (training, held_out, fake))
    gap = of_training - of_fake
    spread = float(torch.cat([training, fake]).std())
    return (of_training - of_held_out) / gap if gap > 1e-3 * spread else math.nan


def distance_with_error(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Returns the Fréchet distance, and its standard error over the choice of samples, by a jackknife over tenths.

    Args:
        real, fake: features, (images, dimensions).
    """
    tenths = torch.arange(len(fake)) * BLOCKS // len(fake)
    without = [frechet_distance(real, fake[tenths != block]) for block in range(BLOCKS)]
    center = sum(without) / BLOCKS
    variance = (BLOCKS - 1) / BLOCKS * sum((value - center) ** 2 for value in without)
    return frechet_distance(real, fake), math.sqrt(variance)


def _mean_distance(features: Tensor) -> float:
    """Of all pairs."""
    points = features[:MOST_PAIRED].double()
    count = len(points)
    return float(torch.cdist(points - points.mean(0), points - points.mean(0)).sum()) / (count * (count - 1))
