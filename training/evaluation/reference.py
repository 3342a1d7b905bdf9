"""The real images that generated ones are compared with, as features; computed once in a run, when they are needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.metrics import frechet_distance

from ..data.feeds.batches import evenly_spread
from ..data.images import ImageData
from ..distributed.processes import Processes
from .feature_classifier import Classifier, accuracy, image_batches, load_classifier, training_pixels


BATCH_SIZE = 500
MOST_PIXELS = 2**26  # of training images whose features are computed: 65,536 images of 32 x 32 pixels


@dataclass
class ImageFeatures:
    """Images as the classifier sees them.

    Attributes:
        vectors: (images, 64) features.
        classes: (images,) the likeliest class of each.
    """

    vectors: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def first(self, count: int) -> ImageFeatures:
        """Returns those of the first `count` images."""
        return ImageFeatures(self.vectors[:count], self.classes[:count])


@torch.no_grad()
def features_of(classifier: Classifier, batches: Iterable[Tensor]) -> ImageFeatures:
    """Returns the features of images, on the CPU.

    Args:
        classifier: on the device of the images.
        batches: of `pixel_values` in [0, 1].
    """
    vectors, classes = [], []
    for images in batches:
        features = classifier.features(images)
        vectors.append(features.cpu())
        classes.append(classifier.classify(features).argmax(1).cpu())
    return ImageFeatures(torch.cat(vectors), torch.cat(classes))


class Reference:
    """The real images of a dataset and the classifier in whose features others are compared with them.

    Args:
        data: has the images.
        device: where features are computed.
    """

    def __init__(self, data: ImageData, device: torch.device):
        self.data, self.device = data, device
        self._classifier: Classifier | None = None
        self._held_out: dict[int, ImageFeatures] = {}
        self._training: ImageFeatures | None = None
        self._read: tuple[Tensor, Tensor | None] | None = None
        self._accuracy: float | None = None

    def prepare(self, processes: Processes | None = None) -> Classifier:
        """Returns the classifier. Collective call the first time, if there are several processes."""
        if self._classifier is None:
            self._classifier = load_classifier(self.data, self.device, processes=processes)
        return self._classifier

    @property
    def classifier(self) -> Classifier:
        return self.prepare()

    def accuracy(self) -> float:
        """The classifier's own, on held-out images: how far the numbers based on it can be trusted."""
        if self._accuracy is None:
            self._accuracy = accuracy(self.classifier, self.data, self.device)
        return self._accuracy

    def held_out(self, limit: int | None = None) -> ImageFeatures:
        """The evaluation images, or `limit` of them, evenly spread."""
        count = len(evenly_spread(self.data.num_eval_examples, limit))
        if count not in self._held_out:
            images = (batch["pixel_values"] for batch in self.data.eval_batches(BATCH_SIZE, self.device, count))
            self._held_out[count] = features_of(self.classifier, images)
        return self._held_out[count]

    def training(self) -> ImageFeatures:
        """The training images, or evenly spread ones if there are too many."""
        if self._training is None:
            batches = image_batches(self.training_set()[0], BATCH_SIZE, self.device)
            self._training = features_of(self.classifier, batches)
        return self._training

    def training_set(self) -> tuple[Tensor, Tensor | None]:
        """The training images of [`training`], uint8 (images, channels, height, width), and their classes."""
        if self._read is None:
            height, width = self.data.image_size
            pixels, labels = training_pixels(self.data)
            if len(pixels) > (most := max(1, MOST_PIXELS // (height * width))):
                rows = evenly_spread(len(pixels), most)
                pixels, labels = pixels[rows], None if labels is None else labels[rows]
            self._read = pixels, labels
        return self._read

    def training_sample(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Some of these images, evenly spread, and their classes."""
        pixels, labels = self.training_set()
        rows = evenly_spread(len(pixels), count)
        return pixels[rows], None if labels is None else labels[rows]

    def floor(self) -> float:
        """The Fréchet distance of training images from as many held-out ones: that of a perfect generator."""
        held_out, training = self.held_out(), self.training()
        count = min(len(held_out), len(training))
        rows = evenly_spread(len(training), count)
        return frechet_distance(held_out.first(count).vectors, training.vectors[rows])
