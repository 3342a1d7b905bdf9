"""Distorted copies: a little different from the image, from each other, and the same again in a resumed run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.data import distortions
from training.data.distortions import affine_maps, distorted
from training.randomness import BatchRNG


def rng(step: int = 0, total: int = 6, rows: slice = slice(None)) -> BatchRNG:
    return BatchRNG((0, "draw", step), total, rows, torch.device("cpu"))


def squares(batch: int = 6, channels: int = 1) -> Tensor:
    """A white square of 8 x 8 in the middle of 28 x 28."""
    images = torch.zeros(batch, channels, 28, 28)
    images[:, :, 10:18, 10:18] = 1
    return images


def drawn(**values: float) -> Tensor:
    """The map of one image, with these draws at their largest."""
    names = ["rotation", "x_scale", "y_scale", "shear", "x_shift", "y_shift"]
    return affine_maps(torch.tensor([[values.get(name, 0.0) for name in names]]))[0]


def test_draws_of_zero_are_the_identity() -> None:
    torch.testing.assert_close(drawn(), torch.tensor([[1.0, 0, 0], [0, 1, 0]]))


def test_each_draw_does_what_it_is_called() -> None:
    angle = distortions.ROTATION
    turned = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    torch.testing.assert_close(drawn(rotation=1), turned)
    torch.testing.assert_close(drawn(x_scale=1), torch.tensor([[1.1, 0, 0], [0, 1, 0]]))
    torch.testing.assert_close(drawn(y_scale=-1), torch.tensor([[1.0, 0, 0], [0, 0.9, 0]]))
    torch.testing.assert_close(drawn(shear=1), torch.tensor([[1, 0.15, 0], [0, 1, 0]]))
    # 2 pixels of 28, as the image is 2 wide.
    torch.testing.assert_close(drawn(x_shift=1)[:, 2], torch.tensor([2 * 2 / 28, 0]), rtol=0.03, atol=1e-6)


def test_a_shift_moves_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distortions, "ELASTIC", 0.0)
    monkeypatch.setattr(distortions, "SHIFT", 2 * 2 / 28)
    draws = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0, 0.5]).expand(6, 6)  # in [0, 1): all in the middle but one
    monkeypatch.setattr(BatchRNG, "uniform", lambda *_: draws)
    torch.testing.assert_close(distorted(squares(), rng()), squares().roll(-2, dims=3), rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_copies_are_near_the_image_and_differ(channels: int) -> None:
    images = squares(channels=channels)
    copies = distorted(images, rng())
    assert copies.shape == images.shape and copies.min() >= 0 and copies.max() <= 1 + 1e-6
    overlap = (copies * images).sum((1, 2, 3)) / images.sum((1, 2, 3))
    assert (overlap > 0.4).all() and (overlap < 0.999).all()
    assert all(not torch.equal(copies[0], copy) for copy in copies[1:])
    torch.testing.assert_close(copies[:, :1].expand_as(copies), copies)  # all channels move together


def test_positions_are_exact_under_autocast() -> None:
    expected = distorted(squares(), rng())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distorted(squares(), rng()), expected)


def test_copies_belong_to_examples_and_steps() -> None:
    images = squares()
    whole = distorted(images, rng())
    parts = [distorted(images[rows], rng(rows=rows)) for rows in (slice(0, 4), slice(4, 6))]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert torch.equal(distorted(images, rng()), whole)
    assert not torch.equal(distorted(images, rng(step=1)), whole)


def test_bent_lines_are_smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighboring pixels are displaced alike, and by as much as the constant says."""
    for name in ("ROTATION", "SCALE", "SHEAR", "SHIFT"):
        monkeypatch.setattr(distortions, name, 0.0)
    x = torch.linspace(-1 + 1 / 28, 1 - 1 / 28, 28)
    ramps = torch.stack([x.expand(28, 28), x[:, None].expand(28, 28)]).expand(50, 2, 28, 28)
    moved = (distorted(ramps, rng(total=50)) - ramps)[:, :, 4:-4, 4:-4]
    assert moved.std().item() == pytest.approx(distortions.ELASTIC, rel=0.35)
    neighbors = torch.cat([moved[..., 1:, :].flatten() - moved[..., :-1, :].flatten()])
    assert neighbors.std() < 0.4 * moved.std()
