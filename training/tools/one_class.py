"""How well an Auto-Encoder that was trained on one class recognizes the others, beside methods that learn less.

    python training/tools/one_class.py                                  # MNIST, all ten classes, about 15 minutes
    python training/tools/one_class.py --classes 8 2 --seconds 20 --avx2
    python training/tools/one_class.py --dataset ../shared/data/cifar10 --classes 0 5

Each class is normal once: a model is trained on its training images, by the same command and with the same settings
for all classes, and then scores all test images. The figure is the AUROC, the probability that an image of another
class scores higher than one of the class, in percent. The baselines see the same images in the same run. It prints the
table and writes one_class.json beside this file; each class is there as soon as it is measured.

The settings are the defaults of --normal_label. They, and how the detector combines its distances, were chosen on
training images of MNIST: with "8" and "2" as normal classes among the first 50,000, and all classes of the others to
judge by. So anomalies had a say in them, but no test image.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


if __name__ == "__main__" and not __package__:  # started as a file: run it again as a module of its package
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    runpy.run_module(f"training.tools.{Path(__file__).stem}", run_name="__main__", alter_sys=True)
    sys.exit()

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from hfgen.models.anomaly import edge_maps, halvings_for
from hfgen.models.modeling_autoencoder import AutoencoderModel

from ..config.flags import DataArguments
from ..data.images import find_images
from .measured_runs import AVX2, ROOT, describe, run_training
from .measured_table import COLUMNS


FIGURES = Path(__file__).with_suffix(".json")
DATASET = "../shared/data/mnist"
SECONDS = 50.0
BATCH = 500
OURS = "Auto-Encoder"
Scores = np.ndarray
Figures = dict[str, Any]


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
        raise ValueError(f"--dataset must have images of several classes, got {dataset}. Use another one.")
    data = found.load(seed=0)
    feed: Any = data.train
    return Images(dataset, found.label_names, feed.pixels, data.eval_pixels, feed.labels, data.eval_labels)  # type: ignore[arg-type]


def scores_of(model: AutoencoderModel, images: Tensor) -> Scores:
    return torch.cat([model.anomaly_score(batch / 255) for batch in images.split(BATCH)]).numpy()


def neighbors(normal: Tensor, test: Tensor) -> Scores:
    """Mean distance to the five nearest normal images, in pixels."""
    from sklearn.neighbors import NearestNeighbors

    searcher = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(normal.flatten(1).numpy())
    return searcher.kneighbors(test.flatten(1).numpy())[0].mean(axis=1)


def pca_residual(normal: Tensor, test: Tensor) -> Scores:
    """Squared error of a reconstruction from 32 principal components."""
    from sklearn.decomposition import PCA

    pca = PCA(n_components=min(32, len(normal)), svd_solver="covariance_eigh").fit(normal.flatten(1).numpy())
    flat = test.flatten(1).numpy()
    return np.square(flat - pca.inverse_transform(pca.transform(flat))).sum(axis=1)


def isolation_forest(normal: Tensor, test: Tensor) -> Scores:
    """As in scikit-learn, with its own settings."""
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(random_state=0).fit(normal.flatten(1).numpy()).score_samples(test.flatten(1).numpy())


def edges(normal: Tensor, test: Tensor) -> Scores:
    """Mahalanobis distance of the detector's own edge maps, without a network: what learning has to beat."""
    from sklearn.covariance import ShrunkCovariance

    halvings = halvings_for(normal.shape[-2:])
    features, others = (edge_maps(images, halvings).flatten(1).double().numpy() for images in (normal, test))
    # By half towards the mean eigenvalue: up to a factor, the covariance plus that eigenvalue times I.
    return ShrunkCovariance(shrinkage=0.5).fit(features).mahalanobis(others)


BASELINES: dict[str, Callable[[Tensor, Tensor], Scores]] = {
    "pixels, 5 neighbors": neighbors,
    "pixels, PCA residual": pca_residual,
    "pixels, isolation forest": isolation_forest,
    "edges, Mahalanobis": edges,
}


def measure(images: Images, label: int, output_dir: Path, flags: list[str], environment: dict[str, str]) -> Figures:
    """Trains a model as a user does, and measures all methods.

    Returns:
        `auroc` by method; the `seconds` of each method, from the training images to the scores of all test images; and
        what [`run_training`] records of the `training`.

    Raises:
        ValueError: the training failed.
    """
    auroc, seconds = {}, {}
    started = time.perf_counter()
    flags = ["--dataset_name", images.name, "--normal_label", images.classes[label], *flags]
    training = run_training("autoencoder", [], output_dir, flags, environment)
    model = AutoencoderModel.from_pretrained(output_dir)
    auroc[OURS] = images.auroc(scores_of(model, images.test), label)
    seconds[OURS] = round(time.perf_counter() - started, 1)
    normal, test = images.normal(label), images.test / 255
    for name, method in BASELINES.items():
        started = time.perf_counter()
        auroc[name] = images.auroc(method(normal, test), label)
        seconds[name] = time.perf_counter() - started
    return {
        "auroc": auroc,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "training": training,
    }


def table(classes: dict[str, Figures]) -> str:
    """The Markdown table of AUROC in percent, a line for each method and a column for each class."""
    labels = sorted(classes, key=int)
    names = [classes[label].get("name", label) for label in labels]
    lines = [f"| AUROC, % | mean | worst | {' | '.join(names)} |", "|---" * (3 + len(labels)) + "|"]
    for method in (OURS, *BASELINES):
        values = [classes[label]["auroc"][method] for label in labels]
        cells = [f"**{statistics.fmean(values):.2f}**", f"{min(values):.2f}", *(f"{value:.1f}" for value in values)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--classes", nargs="+", type=int, metavar="N", help="by number (default: all)")
    parser.add_argument("--dataset", default=DATASET, help=f"as of --dataset_name (default: {DATASET})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each training (default: {SECONDS:g})")
    parser.add_argument("--avx2", action="store_true", help="use no instructions beyond AVX2, and so none for bf16")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="file of the figures (default: one_class.json)")
    args, flags = parser.parse_known_args()
    try:
        images = load(args.dataset)
        names = images.classes
        classes = list(range(len(names))) if args.classes is None else args.classes
        if unknown := [label for label in classes if not 0 <= label < len(names)]:
            raise ValueError(f"--classes must be from 0 to {len(names) - 1}, got {', '.join(map(str, unknown))}.")
    except ValueError as error:
        sys.exit(str(error))
    figures = json.loads(args.figures.read_text(encoding="utf-8")) if args.figures.is_file() else {}
    column, environment = COLUMNS[args.avx2], AVX2 if args.avx2 else {}
    found: dict[str, Figures] = figures.setdefault(args.dataset, {}).setdefault(column, {})
    folder = ROOT / ("runs-avx2" if args.avx2 else "runs") / "one-class" / Path(args.dataset).name
    failures = []
    for label in classes:
        output_dir = folder / str(label)
        try:
            own = measure(images, label, output_dir, ["--max_train_seconds", f"{args.seconds:g}", *flags], environment)
        except ValueError as error:
            failures.append(f"{names[label]}: {error}")
            continue
        found[str(label)] = {"name": names[label], **own}
        figures["machine"] = describe()
        args.figures.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if found:
        print(f"{args.dataset}, {column}\n\n{table(found)}")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
