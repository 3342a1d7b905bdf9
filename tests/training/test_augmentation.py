"""Augmentation for discriminators: what changes, how often, and that a generator learns through it."""

import pytest
import torch
from torch import Tensor

from training.augmentation import MOST, Augmentation
from training.randomness import BatchRNG


def numbers(batch: int, seed: int = 0) -> BatchRNG:
    return BatchRNG((seed, "augmentation"), batch, slice(0, batch), torch.device("cpu"))


def pictures(batch: int = 64) -> Tensor:
    """Smooth ones: a bright disk left of the middle."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    disk = torch.sigmoid(8 * (0.4 - ((x + 0.3).square() + y.square()).sqrt()))
    return disk.expand(batch, 2, 16, 16).clone()


def remembering(*gaps: float) -> list[dict[str, float]]:
    rows = [{"pair_accuracy": 0.6, "pair_accuracy_train": 0.6 + gap} for gap in gaps]
    return [{"step": float(step), **row} for step, row in enumerate(rows)]


def test_many_images_are_left_as_they_are() -> None:
    augmentation, images = Augmentation("adaptive"), pictures()
    augmentation.follow(remembering(0.0, 0.01, -0.02))
    assert augmentation(images, numbers(64)) is images


def test_the_probability_rises_while_the_discriminator_remembers_and_falls_afterwards() -> None:
    augmentation = Augmentation("adaptive")
    found = []
    for count in range(1, 8):
        augmentation.follow(remembering(0.1, 0.1, 0.1, 0.2, 0.3, 0.0, 0.0)[:count])
        found.append(augmentation.probability)
    assert found == pytest.approx([0.2, 0.4, 0.6, MOST, MOST, 0.7, 0.6])


@pytest.mark.parametrize("kind, probability", [("none", 0.0), ("always", MOST)])
def test_the_other_kinds_follow_nothing(kind: str, probability: float) -> None:
    augmentation = Augmentation(kind)  # type: ignore[arg-type]
    augmentation.follow(remembering(0.3, 0.3))
    assert augmentation.probability == probability


def test_rows_without_the_measurement_count_as_no_sign_of_remembering() -> None:
    augmentation = Augmentation("adaptive")
    augmentation.follow([*remembering(0.2, 0.2), {"step": 9.0}])
    assert augmentation.probability == pytest.approx(0.3)


def test_each_image_is_changed_in_its_own_way_and_keeps_its_size() -> None:
    augmentation, images = Augmentation("always"), pictures()
    changed = augmentation(images, numbers(64))
    assert changed.shape == images.shape and changed.isfinite().all()
    differences = (changed - images).flatten(1).abs().mean(1)
    # Each of four changes happens to 80 % of images, so hardly one stays as it was.
    assert (differences > 1e-3).float().mean() > 0.95
    assert len({round(float(difference), 5) for difference in differences}) > 60


def hidden_pixels(images: int, probability: float) -> Tensor:
    """Of white images, which are white wherever they are moved to, and not quite black whatever their brightness."""
    augmentation = Augmentation("always")
    augmentation.probability = probability
    return (augmentation(torch.ones(images, 1, 8, 8), numbers(images)) == 0).flatten(1)


def test_a_change_happens_as_often_as_its_probability_says() -> None:
    assert abs(hidden_pixels(2000, 0.3).any(1).float().mean() - 0.3) < 0.04


def test_at_most_a_quarter_is_hidden() -> None:
    shares = hidden_pixels(500, MOST).float().mean(1)
    assert shares.max() == 0.25 and shares.min() == 0


def test_equal_random_numbers_give_equal_changes_and_each_call_draws_new_ones() -> None:
    augmentation, images, rng = Augmentation("always"), pictures(8), numbers(8)
    first, second = augmentation(images, rng), augmentation(images, rng)
    assert torch.equal(first, augmentation(images, rng.restarted())) and not torch.equal(first, second)


def test_two_processes_change_their_images_as_one_does() -> None:
    augmentation, images = Augmentation("always"), pictures(8)
    whole = augmentation(images, numbers(8))
    for rows in (slice(0, 4), slice(4, 8)):
        part = augmentation(images[rows], BatchRNG((0, "augmentation"), 8, rows, torch.device("cpu")))
        torch.testing.assert_close(part, whole[rows])


def test_gradients_reach_the_images() -> None:
    """As finite differences say."""
    augmentation, images = Augmentation("always"), pictures(4).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: augmentation(x, numbers(4)).square().sum((1, 2, 3)), images[:, :, 4:8, 4:8].detach().requires_grad_()
    )


def test_mirrored_images_come_half_of_the_time() -> None:
    images = pictures(1000)
    mirrored = Augmentation("none", mirror=True).mirrored(images, numbers(1000))
    is_mirrored = (mirrored == images.flip(3)).all(3).all(2).all(1)
    is_same = (mirrored == images).all(3).all(2).all(1)
    assert (is_mirrored ^ is_same).all() and abs(is_mirrored.float().mean() - 0.5) < 0.05
    assert Augmentation("none").mirrored(images, numbers(1000)) is images
