"""Whether images with similar latents belong to the same class: accuracy of the nearest neighbor."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from hfgen import AutoencoderModel

from ..data.feeds.batches import Batch
from ..data.images import ImageData
from ..data.labels import NO_CLASS
from ..objective import Metrics
from .anomalies import MOST_STREAMED
from .memorization import nearest


# Training images, and evaluation images, that are compared: all of MNIST, which takes five seconds on two cores.
MOST_COMPARED = 60_000
MOST_PIXELS = 64_000_000  # of these images, which are encoded
MOST_NUMBERS = 8_000_000  # of their latents, which are held in memory


def neighbor_metrics(model: AutoencoderModel, data: ImageData, batch_size: int) -> Metrics:
    """Classifies each evaluation image by its nearest training image, by the Euclidean distance of their latents.

    Args:
        model: in evaluation mode.
        data: with labels. At most `MOST_COMPARED` training images take part (4,096 of a stream, and fewer if images or
            latents are large), and at most as many evaluation images, evenly spread. Images without a class are left
            out.
        batch_size: images that are encoded at once.

    Returns:
        `neighbor_accuracy`, the share of evaluation images that get the right class, with the number of training
        images in the detail `neighbors`; nothing if there are fewer than two classes.
    """
    if data.eval_labels is None or len(data.label_names) < 2:
        return Metrics()
    numbers = math.prod(model.config.latent_shape)
    limit = max(1, min(MOST_COMPARED, MOST_PIXELS // math.prod(data.image_size), MOST_NUMBERS // numbers))
    count = min(limit, data.train.num_examples or MOST_STREAMED)
    points, classes = _encode(model, data.train.first_batches(count), batch_size)
    queries, answers = _encode(model, data.eval_batches(batch_size, model.device, limit), batch_size)
    if not len(points) or not len(queries):
        return Metrics()
    guesses = classes[nearest(queries, points)[1]]
    accuracy = (guesses == answers).double().mean()
    return Metrics({"neighbor_accuracy": float(accuracy)}, details={"neighbors": len(points)})


@torch.no_grad()
def _encode(model: AutoencoderModel, batches: Iterable[Batch], batch_size: int) -> tuple[Tensor, Tensor]:
    """Latents (images, numbers) and classes (images,) of the images that have a class."""
    latents, classes = [], []
    for batch in batches:
        labels = batch["labels"].to(model.device)
        has_class = labels != NO_CLASS
        pixels = batch["pixel_values"].to(model.device)[has_class]
        latents += [model.encode(part).flatten(1).float() for part in pixels.split(batch_size)]
        classes.append(labels[has_class])
    return torch.cat(latents), torch.cat(classes)
