"""The row `stacked`: does a GAN draw all modes of a distribution that has 1,000 of them?

Stacked MNIST (Metz et al. 2016, https://arxiv.org/abs/1611.02163) has three independent digits in the channels of an
image. A classifier of digits, applied to each channel, says which of the 1,000 triples an image is. 26,000 samples
give two numbers: how many triples occur, and the Kullback-Leibler divergence of their distribution from that of real
images. With a finite number of samples the divergence is larger than 0 even for real images, so that as many stacks of
held-out digits are measured beside them.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from hfgen import GANModel

from ...config.flags import DataArguments
from ...data.images import load_images
from ...evaluation.feature_classifier import train_classifier
from ..measuring.rows import Lines, Session, seed_flags
from ..measuring.runs import ROOT, answer_task, run_task, run_training
from .image_sets import stacked, training_images
from .sample_check import BATCH, draw
from .variations import MNIST, resolved


SECONDS = 1800.0
SAMPLES = 26_000  # as in the literature since VEEGAN
CLASSIFIER_STEPS = 2000  # more than elsewhere, because each error in a channel is an error of the triple


def measure_stacked(session: Session, row: str) -> Lines:
    """Trains without classes, with the default settings, and counts modes; beside it those of real images."""
    source = MNIST
    dataset = stacked(resolved(source), session.folder / "data")
    length = session.length or ["--max_train_seconds", f"{SECONDS:g}"]
    task = {"dataset": source, "samples": int(session.flag("quality_samples", SAMPLES))}
    runs, real = [], None
    for seed in session.seeds:
        output_dir = session.output_dir(row, seed, "default")
        words = ["--dataset_name", os.path.relpath(dataset, ROOT), *length, *seed_flags(seed), *session.flags]
        training = run_training("gan", [], output_dir, [*words, "--quality_samples", "0"], session.environment)
        task["model"] = str(output_dir.resolve())
        found = run_task("training.tools.gan_rows.stacked_digits", task, environment=session.environment)
        real = found["real"]
        runs.append({"seed": seed, **training, **found["model"]})
    if real is not None:
        yield "stacked digits, real images held out", [real]
    yield "stacked digits, default settings", runs


def stacks(pixels: Tensor, count: int) -> Tensor:
    """As many random stacks of three gray images; the same each time."""
    rows = torch.randint(len(pixels), (3, count), generator=torch.Generator().manual_seed(0))
    return torch.cat([pixels[chosen] for chosen in rows], dim=1)


@torch.no_grad()
def triples(classifier: nn.Module, pixels: Tensor, num_classes: int) -> Tensor:
    """Which of num_classes³ triples each image is.

    Args:
        classifier: of gray images.
        pixels: uint8 (images, 3, height, width).
        num_classes: of the classifier.
    """
    found = []
    for batch in pixels.split(BATCH):
        gray = batch.flatten(0, 1).unsqueeze(1).float() / 255
        first, second, third = classifier(gray).argmax(1).view(-1, 3).unbind(1)
        found.append((first * num_classes + second) * num_classes + third)
    return torch.cat(found)


def count_modes(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Modes and divergence of samples.

    Args:
        found: (samples,) the mode of each.
        expected: (modes,) their probabilities in real images.

    Returns:
        modes, the number of those that occur, and kl, the divergence of their shares from the expected ones in nats.
    """
    shares = torch.bincount(found, minlength=len(expected)).double() / len(found)
    occurs = shares > 0
    divergence = (shares[occurs] * (shares[occurs] / expected[occurs]).log()).sum()
    return {"modes": int(occurs.sum()), "kl": float(divergence)}


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Counts modes of a model, and of as many stacks of held-out images."""
    data = load_images(DataArguments(dataset_name=task["dataset"], in_memory=True), 0, conditional=True)
    classifier = train_classifier(data, torch.device("cpu"), steps=CLASSIFIER_STEPS)
    classes = len(data.label_names)
    # Digits are stacked independently, and so the probabilities of a triple are products.
    shares = torch.bincount(training_images(data)[1], minlength=classes).double() / len(training_images(data)[1])
    expected = torch.einsum("i,j,k->ijk", shares, shares, shares).flatten()
    sources = {
        "model": draw(GANModel.from_pretrained(task["model"]), task["samples"]),
        "real": stacks(data.eval_pixels, task["samples"]),
    }
    return {name: count_modes(triples(classifier, pixels, classes), expected) for name, pixels in sources.items()}


if __name__ == "__main__":
    answer_task(__doc__, measure)
