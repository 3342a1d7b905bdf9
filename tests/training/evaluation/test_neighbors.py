"""The accuracy of nearest neighbors among latents, beside scikit-learn's."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from hfgen import AutoencoderConfig, AutoencoderModel
from training.data.feeds.indexed import TensorFeed
from training.data.images import ImageData
from training.data.labels import NO_CLASS
from training.evaluation import neighbors
from training.evaluation.neighbors import neighbor_metrics
from training.objective import Metrics


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 x 8 pixels, uint8, and their classes, in an order without meaning."""
    data = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(data.images * 15.9).byte()[:, None]
    return pixels[order], torch.from_numpy(data.target).long()[order]


def image_data(labels: Tensor | None, names: list[str]) -> ImageData:
    pixels, _ = digits()
    train, evaluation = (None, None) if labels is None else (labels[:1000], labels[1000:])
    feed = TensorFeed(pixels[:1000], train, seed=0)
    return ImageData(feed, pixels[1000:], evaluation, (8, 8), 1, names, "digits", "test")


def tiny_model(**fields: object) -> AutoencoderModel:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "hidden_channels": [8], "hidden_size": 32, "latent_dim": 16}
    return AutoencoderModel(AutoencoderConfig(**{**sizes, **fields})).eval()


def expected(model: AutoencoderModel, train: Tensor, evaluation: Tensor, labels: Tensor) -> float:
    """By scikit-learn; `train` and `evaluation` are the rows that take part."""
    with torch.no_grad():
        latents = model.encode(digits()[0] / 255).flatten(1).numpy()
    classifier = KNeighborsClassifier(1, algorithm="brute").fit(latents[train], labels[train])
    return float(classifier.score(latents[evaluation], labels[evaluation]))


NAMES = [str(digit) for digit in range(10)]


@pytest.mark.parametrize("latent_type", ["vector", "spatial"])
def test_accuracy_is_that_of_scikit_learn(latent_type: str) -> None:
    model, (_, labels) = tiny_model(latent_type=latent_type), digits()

    found = neighbor_metrics(model, image_data(labels, NAMES), batch_size=300)

    of_scikit_learn = expected(model, torch.arange(1000), torch.arange(1000, 1797), labels)
    assert found == Metrics({"neighbor_accuracy": pytest.approx(of_scikit_learn)}, details={"neighbors": 1000})
    assert 0.5 < of_scikit_learn < 1


def test_images_without_a_class_do_not_take_part() -> None:
    model, (_, labels) = tiny_model(), digits()
    labels[::3] = NO_CLASS
    has_class = torch.arange(1797)[labels != NO_CLASS]

    found = neighbor_metrics(model, image_data(labels, NAMES), batch_size=300)

    in_training = has_class[has_class < 1000]
    assert found.details == {"neighbors": len(in_training)}
    of_scikit_learn = expected(model, in_training, has_class[has_class >= 1000], labels)
    assert found.values["neighbor_accuracy"] == pytest.approx(of_scikit_learn)


@pytest.mark.parametrize("name, most", [("MOST_COMPARED", 100), ("MOST_PIXELS", 6_400), ("MOST_NUMBERS", 1_600)])
def test_only_so_many_images_are_compared(monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> None:
    """A hundred images of 64 pixels and 16 numbers; of those to evaluate, every seventh or eighth."""
    monkeypatch.setattr(neighbors, name, most)
    model, (_, labels) = tiny_model(), digits()

    found = neighbor_metrics(model, image_data(labels, NAMES), batch_size=300)

    assert found.details == {"neighbors": 100}
    hundredths = 100 * found.values["neighbor_accuracy"]
    assert hundredths == pytest.approx(round(hundredths))


@pytest.mark.parametrize("labels, names", [(None, []), (torch.zeros(1797, dtype=torch.long), ["all"]),
                                           (torch.full((1797,), NO_CLASS), ["0", "1"])])  # fmt: skip
def test_without_two_classes_there_is_nothing_to_measure(labels: Tensor | None, names: list[str]) -> None:
    assert neighbor_metrics(tiny_model(), image_data(labels, names), batch_size=300) == Metrics()
