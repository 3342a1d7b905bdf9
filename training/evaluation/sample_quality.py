"""Quality of generated images, measured in the features of a classifier.

The usual features come from Inception, which knows photographs, needs a download and says little about digits. Here, a
small convolutional classifier is trained on the dataset itself, in seconds, and its last hidden layer is the feature
space. Its numbers compare models on one dataset with one classifier, which the checksum of its weights names; they are
not Inception's. Beside them stands the distance of training images from held-out ones, the best that can be had.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hfgen.metrics import frechet_distance, kernel_distance, precision_recall_density_coverage

from ..data.feeds.batches import evenly_spread
from ..data.images import ImageData
from ..objective import Metrics
from .feature_classifier import image_batches
from .fresh_critic import RealAndFake, fresh_critic_accuracy
from .memorization import share_too_close
from .reference import BATCH_SIZE, ImageFeatures, Reference, features_of


NEIGHBORS = 5
DISTANCES = ("classifier_fid", "classifier_kid")
NEIGHBORHOODS = ("precision", "recall", "density", "coverage")
# Metric -> number of images that it takes, real and generated.
IMAGES_NEEDED = {**dict.fromkeys(DISTANCES, 2), **dict.fromkeys(NEIGHBORHOODS, NEIGHBORS + 1)}
LEAST_TESTED = 10  # images in each half of the test of a fresh critic
# Of the generated images; more would take long and say little more.
MOST_CHECKED_FOR_COPIES = 1000


def sample_quality(model: Any, data: ImageData, num_samples: int, reference: Reference | None = None) -> Metrics:
    """Compares generated images with the evaluation split. What cannot be measured is missing, with its reason.

    Args:
        model: a model of images with the method `sample`.
        data: its evaluation images are the real ones; the classifier learns from its training images.
        num_samples: number of images to generate, with the classes of the real images if the model is conditional.
        reference: of the same data, if there is one already.

    Returns:
        what [`measure_images`] returns; for a conditional model also label_accuracy, the share of generated images
        that the classifier takes for what they were meant to be.
    """
    is_conditional = bool(model.config.num_labels)
    try:
        reference = reference or Reference(data, next(model.parameters()).device)
        count = min(num_samples, data.num_eval_examples)
        labels = data.eval_labels[:count] if is_conditional and data.eval_labels is not None else None
        # Rounded to 8 bits like real images, so that the numbers of a folder of these samples are the same.
        pixels = torch.cat([(255 * images).round().byte().cpu() for images in draw_batches(model, count, labels)])
        return measure_images(pixels, reference, labels)
    except Exception as error:
        return Metrics.failed([*IMAGES_NEEDED, "classifier_accuracy", *["label_accuracy"] * is_conditional], error)


def draw_batches(model: Any, count: int, labels: Tensor | None = None) -> Iterator[Tensor]:
    """Yields `count` images that the model draws, the same each time, with these classes if there are any."""
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(1)
    for start in range(0, count, BATCH_SIZE):
        number = min(BATCH_SIZE, count - start)
        if labels is None:
            yield model.sample(number, generator=generator)
        else:
            yield model.sample(number, labels[start : start + number].to(device), generator=generator)


def measure_images(pixels: Tensor, reference: Reference, labels: Tensor | None = None) -> Metrics:
    """Compares generated images with real ones, whoever generated them.

    Args:
        pixels: uint8 (images, channels, height, width), of the size of the real images.
        reference: the real images.
        labels: classes that the images were meant to have, (images,); None if they are unknown.

    Returns:
        what [`compare_with_real`] returns, fresh_critic_accuracy, and with `labels` label_accuracy.
    """
    fake = features_of(reference.classifier, image_batches(pixels, BATCH_SIZE, reference.device))
    metrics = compare_with_real(fake, reference)
    if labels is not None and reference.classifier.task == "classes":
        metrics.values["label_accuracy"] = float((fake.classes == labels.cpu()).double().mean())
    return metrics | _test_with_fresh_critic(pixels, reference)


def compare_with_real(fake: ImageFeatures, reference: Reference) -> Metrics:
    """Compares generated images with the held-out ones, whoever generated them.

    Args:
        fake: features of the generated images.
        reference: the real images.

    Returns:
        classifier_fid and beside it classifier_fid_floor, that of training images; classifier_kid, precision, recall,
        density, coverage; classifier_accuracy, the classifier's own on held-out images; class_kl, if there are
        classes; memorized and beside it memorized_floor, that of held-out images. In the details, the histogram of
        classes, and what classifier it was.
    """
    real = reference.held_out()
    metrics = _compare_features(real.vectors, fake.vectors)
    metrics.values["classifier_accuracy"] = reference.accuracy()
    if "classifier_fid" in metrics.values and len(reference.training()) > 1:
        metrics.values["classifier_fid_floor"] = reference.floor()
    metrics.details = {
        "classifier_task": reference.classifier.task,
        "classifier_sha256": reference.classifier.checksum(),
        "compared_images": {"real": len(real), "generated": len(fake)},
    }
    if reference.classifier.task == "classes":
        metrics |= _compare_classes(real.classes, fake.classes, reference.data.label_names)
    return metrics | _look_for_copies(fake, real, reference)


def _compare_features(real: Tensor, fake: Tensor) -> Metrics:
    metrics = Metrics()
    metrics.missing = {
        name: f"it takes at least {needed} real and {needed} generated images, got {len(real)} and {len(fake)}"
        for name, needed in IMAGES_NEEDED.items()
        if min(len(fake), len(real)) < needed
    }
    if "classifier_fid" not in metrics.missing:
        metrics.values["classifier_fid"] = frechet_distance(real, fake)
        # In units in which features are about 1, as Inception's are: the kernel is not the same at every scale.
        scale = real.square().mean().sqrt().clamp(min=1e-12)
        metrics.values["classifier_kid"] = kernel_distance(real / scale, fake / scale)
    if "coverage" not in metrics.missing:
        metrics.values |= vars(precision_recall_density_coverage(real, fake, NEIGHBORS))
    return metrics


def _compare_classes(real: Tensor, fake: Tensor, names: list[str]) -> Metrics:
    shares = [torch.bincount(classes, minlength=len(names)).double() / len(classes) for classes in (real, fake)]
    rows = [{"name": name, "real": a, "generated": b} for name, a, b in zip(names, *(s.tolist() for s in shares))]
    return Metrics({"class_kl": class_divergence(real, fake, len(names))}, details={"class_histogram": rows})


def class_divergence(real: Tensor, fake: Tensor, num_classes: int) -> float:
    """Returns the Kullback-Leibler divergence of the classes of generated images from those of real ones, in nats.

    Half an image is added to every class, so that one without an image costs something finite.

    Args:
        real, fake: classes, (images,).
        num_classes: number of classes.
    """
    counts = [torch.bincount(classes, minlength=num_classes).double() + 0.5 for classes in (real, fake)]
    of_real, of_fake = (count / count.sum() for count in counts)
    return float((of_fake * (of_fake / of_real).log()).sum())


def _test_with_fresh_critic(pixels: Tensor, reference: Reference) -> Metrics:
    """Two thirds of the generated images are for training and a third for the test, beside as many real ones."""
    test = len(pixels) // 3
    held_out = reference.data.eval_pixels[evenly_spread(reference.data.num_eval_examples, test)]
    training, _ = reference.training_sample(len(pixels) - test)
    if min(len(held_out), len(training)) < LEAST_TESTED:
        reason = f"it takes at least {LEAST_TESTED} real images and three times as many generated ones"
        return Metrics(missing={"fresh_critic_accuracy": f"{reason}, got {len(held_out)} and {len(pixels)}"})
    pair = RealAndFake(training, pixels[test:]), RealAndFake(held_out, pixels[:test])
    value = fresh_critic_accuracy(*pair, reference.device)
    error = (value * (1 - value) / (len(held_out) + test)) ** 0.5
    return Metrics({"fresh_critic_accuracy": value}, details={"fresh_critic_accuracy_standard_error": error})


def _look_for_copies(fake: ImageFeatures, real: ImageFeatures, reference: Reference) -> Metrics:
    training = reference.training().vectors
    if len(training) < 2 or not len(fake) or not len(real):
        return Metrics()
    sets = {"memorized": fake, "memorized_floor": real}
    return Metrics({
        name: share_too_close(images.first(MOST_CHECKED_FOR_COPIES).vectors, training)
        for name, images in sets.items()
    })  # fmt: skip
