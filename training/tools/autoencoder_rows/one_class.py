"""The rows `one-class` and `one-class-cifar`: does an Auto-Encoder that was trained on one class recognize the others?

Each class is normal once: a model is trained on its training images, by the same command and with the same settings
for all classes, and then scores all test images. The figure is the AUROC, the probability that an image of another
class scores higher than one of the class, in percent. The baselines see the same images in the same run.

The settings are the defaults of --normal_label. They, and how the detector combines its distances, were chosen on
training images of MNIST: with "8" and "2" as normal classes among the first 50,000, and all classes of the others to
judge by. So anomalies had a say in them, but no test image, and nothing was chosen on CIFAR-10.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from hfgen.models.modeling_autoencoder import AutoencoderModel

from ...config.flags import DataArguments
from ...data.images import find_images
from ..measuring.rows import Lines, Session, seed_flags
from ..measuring.runs import run_training
from ..measuring.table import RowFigures, Runs, heading, markdown, tables_by_column
from .baselines import BASELINES, Scores
from .models import measured_here, trained_for


# Of each row, as of --dataset_name. That of CIFAR-10 is a copy that was JPEG-compressed.
DATASETS = {"one-class": "../shared/data/mnist", "one-class-cifar": "../shared/data/cifar10"}
SECONDS = 50.0
BATCH = 500
OURS = "Auto-Encoder"


@dataclass
class Images:
    """A dataset whose classes are normal in turn.

    Attributes:
        name: as of --dataset_name.
        classes: their names.
        train, test: pixels, uint8 (images, channels, height, width).
        train_labels, test_labels: int64 (images,).
    """

    name: str
    classes: list[str]
    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor

    def normal(self, label: int) -> Tensor:
        """Training images of a class in [0, 1], (images, channels, height, width)."""
        return self.train[self.train_labels == label] / 255

    def auroc(self, scores: Scores, label: int) -> float:
        """In percent, of the scores of all test images, if a class is normal."""
        return 100 * float(roc_auc_score((self.test_labels != label).numpy(), scores))


def load(dataset: str) -> Images:
    """Decodes a dataset.

    Raises:
        ValueError: it cannot be used, or its images have no classes.
    """
    found = find_images(DataArguments(dataset_name=dataset, in_memory=True), conditional=True)
    if len(found.label_names) < 2:
        raise ValueError(f"The dataset must have images of several classes, got {dataset}. Use another one.")
    data = found.load(seed=0)
    feed: Any = data.train
    return Images(dataset, found.label_names, feed.pixels, data.eval_pixels, feed.labels, data.eval_labels)  # type: ignore[arg-type]


def measure_classes(session: Session, row: str) -> Lines:
    """Trains a model for each class, and measures all methods.

    Raises:
        ValueError: a class is unknown, and nothing was trained; or trainings failed, and all other classes were
            measured.
    """
    images = load(DATASETS[row])
    chosen = session.options.classes
    labels = list(range(len(images.classes))) if chosen is None else chosen
    if unknown := [label for label in labels if not 0 <= label < len(images.classes)]:
        raise ValueError(f"--classes must be from 0 to {len(images.classes) - 1}, got {', '.join(map(str, unknown))}.")
    failures = []
    for label in labels:
        name = images.classes[label]
        try:
            runs = [measure_class(session, row, images, label, seed) for seed in session.seeds]
        except ValueError as error:
            failures.append(f"{name}: {error}")
        else:
            yield name, runs
    if failures:
        raise ValueError("\n".join(failures))


def measure_class(session: Session, row: str, images: Images, label: int, seed: int) -> dict[str, Any]:
    """Trains a model as a user does, and measures all methods.

    Returns:
        what [`run_training`] records, and `measured`: the class, `auroc` by method, and the `seconds` of each method,
        from the training images to the scores of all test images.

    Raises:
        ValueError: the training failed.
    """
    output_dir = session.output_dir(row, seed, str(label))
    auroc, seconds = {}, {}
    started = time.perf_counter()
    length = session.length or ["--max_train_seconds", f"{SECONDS:g}"]
    flags = ["--dataset_name", images.name, "--normal_label", images.classes[label],
             *length, *seed_flags(seed), *session.flags]  # fmt: skip
    training = run_training("autoencoder", [], output_dir, flags, session.environment)
    auroc[OURS] = images.auroc(scores_of(output_dir, images.test), label)
    seconds[OURS] = time.perf_counter() - started
    normal, test = images.normal(label), images.test / 255
    for name, method in BASELINES.items():
        started = time.perf_counter()
        auroc[name] = images.auroc(method(normal, test), label)
        seconds[name] = time.perf_counter() - started
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    measured = {"dataset": images.name, "label": label, "auroc": auroc, "seconds": rounded}
    return {"seed": seed, **training, **measured_here(measured)}


def scores_of(folder: Path, images: Tensor) -> Scores:
    model = AutoencoderModel.from_pretrained(folder)
    return torch.cat([model.anomaly_score(batch / 255) for batch in images.split(BATCH)]).numpy()


def table(row: str, figures: RowFigures) -> str:
    """The row as tables of AUROC in percent, a line for each method and a column for each class."""

    def draw(column: str, classes: dict[str, Runs]) -> str:
        names = sorted(classes, key=lambda name: classes[name][0]["measured"]["label"])
        lines = []
        for method in (OURS, *BASELINES):
            values = [statistics.fmean(run["measured"]["auroc"][method] for run in classes[name]) for name in names]
            mean, worst = f"**{statistics.fmean(values):.2f}**", f"{min(values):.2f}"
            lines.append([method, mean, worst, *(f"{value:.1f}" for value in values)])
        runs = [run for name in names for run in classes[name]]
        what = f"one class of {runs[0]['measured']['dataset']} is normal, all others are anomalies{trained_for(runs)}"
        header = ["AUROC, %", "mean", "worst", *names]
        return f"{heading(row, column, runs[0], what)}\n\n{markdown(header, lines)}"

    return tables_by_column(figures, draw)
