"""Quality of generated images, measured in the features of a classifier.

The usual features come from Inception, which knows photographs, needs a download and says little about digits. Here, a
small convolutional classifier is trained on the dataset itself, in seconds, and its last hidden layer is the feature
space. Its numbers compare models on one dataset with one release of hfgen; they are not Inception's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen import GANModel
from hfgen.metrics import frechet_distance, precision_recall_density_coverage

from ..data.batches import GlobalBatch
from ..data.feeds import TensorFeed
from ..data.images import ImageData
from ..objective import Metrics


FEATURES = 64
NEIGHBORS = 5
# Metric -> number of images that it takes, real and generated.
IMAGES_NEEDED = {
    "classifier_fid": 2, **dict.fromkeys(("precision", "recall", "density", "coverage"), NEIGHBORS + 1)
}  # fmt: skip


class Classifier(nn.Module):
    """Two strided stages and a hidden layer of 64 features."""

    def __init__(self, num_channels: int, image_size: tuple[int, int], num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels, 32, kernel_size=4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=4, stride=2, padding=1)
        height, width = image_size
        self.hidden = nn.Linear(64 * (height // 4) * (width // 4), FEATURES)
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Returns the last hidden layer before its activation, (batch, 64)."""
        hidden = F.relu(self.conv2(F.relu(self.conv1(2 * pixel_values - 1))))
        return self.hidden(hidden.flatten(1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(F.relu(self.features(pixel_values)))


def train_classifier(data: ImageData, device: torch.device, steps: int = 600, batch_size: int = 128) -> Classifier:
    """Trains a classifier of the dataset's own classes.

    Raises:
        ValueError: there are no two classes to tell apart, or the images are not held in memory.
    """
    if len(data.label_names) < 2:
        raise ValueError(
            "images are compared in the features of a classifier of the dataset's own classes, of which there must be "
            f"at least 2, got {len(data.label_names)}"
        )
    if not isinstance(data.train, TensorFeed):
        raise ValueError("images are compared by a classifier that is trained on images in memory, and these are not")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(data.num_channels, data.image_size, len(data.label_names)).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    # Always in the same order, so that every run on this dataset is measured by the same classifier.
    feed = TensorFeed(data.train.pixels, data.train.labels, seed=0)
    batches = feed.batches(0, GlobalBatch(batch_size), device)
    for _ in range(steps):
        batch = next(batches)
        F.cross_entropy(classifier(batch["pixel_values"]), batch["labels"]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return classifier.eval()


def sample_quality(model: GANModel, data: ImageData, num_samples: int) -> Metrics:
    """Compares generated images with the evaluation split. What cannot be measured is missing, with its reason.

    Args:
        model: generates the images.
        data: its evaluation images are the real ones; the classifier learns from its training images.
        num_samples: number of images to generate, with the classes of the real images if the model is conditional.

    Returns:
        classifier_fid, precision, recall, density, coverage, and classifier_accuracy, the classifier's own on real
        images; for a conditional model also label_accuracy, the share of generated images that it takes for what they
        were meant to be.
    """
    try:
        classifier = train_classifier(data, next(model.parameters()).device)
        return _compare(classifier, model, data, num_samples)
    except Exception as error:
        accuracies = ["classifier_accuracy", *(["label_accuracy"] if model.config.num_labels else [])]
        return Metrics.failed([*IMAGES_NEEDED, *accuracies], error)


@torch.no_grad()
def _compare(classifier: Classifier, model: GANModel, data: ImageData, num_samples: int) -> Metrics:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(1)
    real_features, real_right = [], 0
    for batch in data.eval_batches(500, device):
        features = classifier.features(batch["pixel_values"])
        real_right += int((classifier.head(F.relu(features)).argmax(1) == batch["labels"]).sum())
        real_features.append(features)
    real = torch.cat(real_features)
    assert data.eval_labels is not None
    count = min(num_samples, len(real))
    fake_features, fake_right = [], 0
    for start in range(0, count, 500):
        n = min(500, count - start)
        labels = data.eval_labels[start : start + n].to(device) if model.config.num_labels else None
        features = classifier.features(model.sample(n, labels, generator=generator))
        if labels is not None:
            fake_right += int((classifier.head(F.relu(features)).argmax(1) == labels).sum())
        fake_features.append(features)
    metrics = _compare_features(real, torch.cat(fake_features))
    metrics.values["classifier_accuracy"] = real_right / len(real)
    if model.config.num_labels:
        metrics.values["label_accuracy"] = fake_right / count
    return metrics


def _compare_features(real: Tensor, fake: Tensor) -> Metrics:
    count, metrics = len(fake), Metrics()  # never more fakes than reals
    metrics.missing = {
        name: f"it takes at least {needed} real and {needed} generated images, got {len(real)} and {count}"
        for name, needed in IMAGES_NEEDED.items()
        if count < needed
    }
    if "classifier_fid" not in metrics.missing:
        metrics.values["classifier_fid"] = frechet_distance(real, fake)
    if "coverage" not in metrics.missing:
        metrics.values |= vars(precision_recall_density_coverage(real, fake, NEIGHBORS))
    return metrics
