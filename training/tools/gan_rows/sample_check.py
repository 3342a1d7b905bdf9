"""Samples of some models beside the images of a whole dataset, however few of those a model was trained on.

`hfgen train` measures in the features of a classifier that learns from the training images of the run. With 200
images, or with one class, that would be another and a poorer measure each time. Here the classifier learns from all
training images of the dataset, and one check measures all models of a variation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfgen import GANModel
from hfgen.metrics import frechet_distance, precision_recall_density_coverage

from ...config.flags import DataArguments
from ...data.feeds.batches import evenly_spread
from ...data.images import ImageData, load_images
from ...evaluation.feature_classifier import train_classifier
from ...evaluation.sample_quality import NEIGHBORS
from ..measuring.runs import answer_task
from .image_sets import training_images


BATCH = 500
MOST_PAIRED = 1000  # images whose distances from each other are averaged
# Mean distance between samples, over that between real images. It is no law, but what a collapse looks like.
COLLAPSED = 0.6


@dataclass
class RealImages:
    """The images that samples are compared with, as a classifier sees them.

    Attributes:
        classifier: of the whole dataset.
        held_out: (images, 64) features of the held-out images.
        floor: classifier FID of as many training images: what a perfect generator would have.
        noise: classifier FID of images whose pixels are drawn each from its own distribution: that of a generator
            which knows where pixels are bright, and nothing of shapes.
    """

    classifier: nn.Module
    held_out: Tensor
    floor: float
    noise: float


def read_real_images(data: ImageData, label: int | None) -> RealImages:
    """Trains the classifier and computes features.

    Args:
        data: a dataset with classes, in memory.
        label: the class that samples are compared with; None for all.
    """
    classifier = train_classifier(data, torch.device("cpu"))
    training, held_out = training_images(data)[0], data.eval_pixels
    if label is not None:
        training, held_out = training[training_images(data)[1] == label], held_out[data.eval_labels == label]
    real = features_of(classifier, held_out)
    count = min(len(held_out), len(training))
    others = training[evenly_spread(len(training), count)]
    distances = [
        frechet_distance(real, features_of(classifier, images)) for images in (others, independent_pixels(others))
    ]
    return RealImages(classifier, real, *distances)


@torch.no_grad()
def features_of(classifier: Any, pixels: Tensor) -> Tensor:
    """(images, 64) features of uint8 images."""
    return torch.cat([classifier.features(batch.float() / 255) for batch in pixels.split(BATCH)])


def independent_pixels(pixels: Tensor) -> Tensor:
    """As many images, each pixel of which is that of another image at the same place."""
    flat = pixels.flatten(1)
    rows = torch.randint(len(flat), flat.shape, generator=torch.Generator().manual_seed(0))
    return flat.gather(0, rows).view_as(pixels)


def draw(model: GANModel, count: int) -> Tensor:
    """As many samples of a model, uint8; the same each time."""
    generator = torch.Generator().manual_seed(1)
    sizes = [min(BATCH, count - start) for start in range(0, count, BATCH)]
    return torch.cat([(255 * model.sample(size, generator=generator)).round().byte() for size in sizes])


def compare(pixels: Tensor, real: RealImages) -> dict[str, Any]:
    """What the table says of samples.

    Args:
        pixels: uint8 samples.
        real: to compare with.

    Returns:
        classifier_fid; precision, recall, density and coverage, if there are enough images; spread, the mean distance
        between samples over that between real images; and state, the [`verdict`].
    """
    fake = features_of(real.classifier, pixels)
    found: dict[str, Any] = {"classifier_fid": frechet_distance(real.held_out, fake)}
    if min(len(fake), len(real.held_out)) > NEIGHBORS:
        found |= vars(precision_recall_density_coverage(real.held_out, fake, NEIGHBORS))
    found["spread"] = _mean_distance(fake) / _mean_distance(real.held_out)
    return {**found, "state": verdict(found["classifier_fid"], found["spread"], real.noise)}


def _mean_distance(features: Tensor) -> float:
    return float(torch.pdist(features[evenly_spread(len(features), MOST_PAIRED)]).mean())


def verdict(classifier_fid: float, spread: float, noise: float) -> str:
    """In a word, how a training ended.

    Args:
        classifier_fid: of its samples.
        spread: mean distance between them over that between real images.
        noise: the classifier FID of independent pixels.
    """
    if not classifier_fid < noise:
        return "diverged"
    return "collapsed" if spread < COLLAPSED else "stable"


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Measures the models of the task, which are folders by name; returns the figures by model, and those of the real
    images."""
    models = {name: GANModel.from_pretrained(folder) for name, folder in task["models"].items()}
    config = next(iter(models.values())).config
    arguments = DataArguments(dataset_name=task["dataset"], in_memory=True, max_eval_samples=task["max_eval_samples"])
    data = load_images(arguments, 0, list(config.image_size), config.num_channels, conditional=True)
    real = read_real_images(data, task["label"])
    count = min(task["samples"], len(real.held_out))
    return {
        "models": {name: compare(draw(model, count), real) for name, model in models.items()},
        "real": {"classifier_fid": real.floor, "noise_classifier_fid": real.noise, "images": len(real.held_out)},
    }


if __name__ == "__main__":
    answer_task(__doc__, measure)
