"""The losses and penalties of GANs against their formulas."""

import math

import pytest
import torch
from torch import Tensor, nn

from hfgen.models.gan_losses import (
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    logits_and_squared_gradients,
)

from .gans import random_images, seeded, tiny_model


REAL, FAKE = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([-4.0, 0.0, 2.0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_non_saturating_losses_by_hand() -> None:
    """-log D(x) - log(1 - D(G(z))) for the discriminator, -log D(G(z)) for the generator, D = sigmoid(logit)."""
    real = sum(-math.log(sigmoid(x)) for x in REAL.tolist()) / 3
    fake = sum(-math.log(1 - sigmoid(x)) for x in FAKE.tolist()) / 3
    fooled = sum(-math.log(sigmoid(x)) for x in FAKE.tolist()) / 3

    assert discriminator_loss(REAL, FAKE, "non_saturating").item() == pytest.approx(real + fake, rel=1e-5)
    assert generator_loss(FAKE, "non_saturating").item() == pytest.approx(fooled, rel=1e-5)


def test_hinge_losses_by_hand() -> None:
    assert discriminator_loss(REAL, FAKE, "hinge").item() == pytest.approx((3 + 0.5 + 0) / 3 + (0 + 1 + 3) / 3)
    assert generator_loss(FAKE, "hinge").item() == pytest.approx(2 / 3)


def test_wasserstein_losses_by_hand() -> None:
    assert discriminator_loss(REAL, FAKE, "wasserstein").item() == pytest.approx(-2 / 3 - 0.5)
    assert generator_loss(FAKE, "wasserstein").item() == pytest.approx(2 / 3)


def test_relativistic_losses_by_hand() -> None:
    """-log sigmoid(real - fake), pair by pair: the differences here are 2, 0.5 and 1."""
    expected = sum(-math.log(sigmoid(x)) for x in (2.0, 0.5, 1.0)) / 3
    fooled = sum(-math.log(sigmoid(-x)) for x in (2.0, 0.5, 1.0)) / 3

    assert discriminator_loss(REAL, FAKE, "relativistic").item() == pytest.approx(expected, rel=1e-5)
    assert generator_loss(FAKE, "relativistic", REAL).item() == pytest.approx(fooled, rel=1e-5)


def test_the_relativistic_loss_needs_real_images() -> None:
    with pytest.raises(ValueError, match='real_logits must be given with loss_type "relativistic"'):
        generator_loss(FAKE, "relativistic")


def test_the_generator_learns_even_when_the_discriminator_is_sure() -> None:
    """What "non-saturating" says: log(1 - D(G(z))) would have the gradient 1e-44 here."""
    logits = torch.tensor([-100.0], requires_grad=True)

    generator_loss(logits, "non_saturating").backward()

    assert logits.grad.item() == pytest.approx(-1.0)


def test_a_loss_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="one of non_saturating, hinge, wasserstein, relativistic, got 'wgan'"):
        discriminator_loss(REAL, FAKE, "wgan")
    with pytest.raises(ValueError, match="one of non_saturating, hinge, wasserstein, relativistic, got 'wgan'"):
        generator_loss(FAKE, "wgan")


class LinearDiscriminator(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, pixel_values: Tensor, labels: Tensor | None) -> Tensor:
        return pixel_values.flatten(1) @ self.weight


class QuadraticDiscriminator(nn.Module):
    """|x|^2, whose gradient 2 x reveals where it was taken."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None) -> Tensor:
        return pixel_values.flatten(1).square().sum(1)


def test_gradient_penalty_of_a_linear_discriminator_has_a_formula() -> None:
    """(|w| / 2 - 1)^2, as pixels in [-1, 1] have half of the gradient of pixels in [0, 1]; and its gradient in w."""
    weight = torch.randn(12, generator=seeded()).double()
    discriminator = LinearDiscriminator(weight.clone())
    real, fake = torch.rand(2, 5, 3, 2, 2, generator=seeded(1)).double()

    penalty = gradient_penalty(discriminator, real, fake, None, torch.rand(5).double())
    penalty.backward()

    excess = weight.norm() / 2 - 1
    torch.testing.assert_close(penalty, excess.square())
    torch.testing.assert_close(discriminator.weight.grad, excess * weight / weight.norm())


def test_gradient_penalty_is_taken_between_real_and_generated_images() -> None:
    real, fake = torch.rand(2, 3, 1, 2, 2, generator=seeded())
    mix = torch.tensor([0.0, 0.25, 1.0])

    penalty = gradient_penalty(QuadraticDiscriminator(), real, fake, None, mix)

    between = torch.stack([real[0], 0.75 * real[1] + 0.25 * fake[1], fake[2]])
    torch.testing.assert_close(penalty, (between.flatten(1).norm(dim=1) - 1).square().mean())


def test_gradient_penalty_does_not_reach_the_images() -> None:
    real, fake = torch.rand(3, 1, 2, 2, requires_grad=True), torch.rand(3, 1, 2, 2, requires_grad=True)
    discriminator = LinearDiscriminator(torch.ones(4))

    gradient_penalty(discriminator, real, fake, None, torch.rand(3)).backward()

    assert real.grad is None and fake.grad is None and discriminator.weight.grad is not None


@pytest.mark.parametrize("norm", ["spectral", "none"])
def test_gradient_penalty_is_the_one_of_finite_differences(norm: str) -> None:
    """Through the whole discriminator: the derivative of the penalty in one weight, by moving that weight."""
    model = tiny_model(loss_type="wasserstein", discriminator_norm=norm, num_labels=2).double()
    real, fake = random_images(model).double(), random_images(model, seed=2).double()
    labels, mix = torch.tensor([0, 1, 1, 0]), torch.rand(4).double()
    weight = model.discriminator.blocks[1].conv.weight
    for _ in range(
        300
    ):  # the vectors of the singular value are held fixed in the derivative: exact once they converged
        model.train().discriminate(real, labels)
    model.eval()

    def penalty() -> Tensor:
        return gradient_penalty(model.discriminator, real, fake, labels, mix)

    (derivative,) = torch.autograd.grad(penalty(), weight)
    moved = []
    for step in (1e-5, -1e-5):
        weight.data[1, 2, 1, 1] += step
        moved.append(penalty().item())
        weight.data[1, 2, 1, 1] -= step

    assert derivative[1, 2, 1, 1].item() == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-4)


# ------------------------------------------------------------------------------------------------------------ R1, R2


def test_squared_gradient_of_a_linear_discriminator_has_a_formula() -> None:
    """|w|^2 / 4, as pixels in [-1, 1] have half of the gradient of pixels in [0, 1]; and its gradient in w."""
    weight = torch.randn(12, generator=seeded()).double()
    discriminator = LinearDiscriminator(weight.clone())
    images = torch.rand(5, 3, 2, 2, generator=seeded(1)).double()

    logits, squares = logits_and_squared_gradients(discriminator, images, None)
    squares.mean().backward()

    torch.testing.assert_close(logits, images.flatten(1) @ weight)
    torch.testing.assert_close(squares, (weight.square().sum() / 4).expand(5))
    torch.testing.assert_close(discriminator.weight.grad, weight / 2)


def test_squared_gradient_belongs_to_each_image() -> None:
    """The gradient of |x|^2 is 2 x, and half of it in [-1, 1]."""
    images = torch.rand(3, 1, 2, 2, generator=seeded())

    _, squares = logits_and_squared_gradients(QuadraticDiscriminator(), images, None)

    torch.testing.assert_close(squares, images.flatten(1).square().sum(1))


@pytest.mark.parametrize("architecture", ["dcgan", "residual"])
def test_squared_gradient_is_the_one_of_finite_differences(architecture: str) -> None:
    """Through the whole discriminator: the slope along the gradient's own direction is its length."""
    model = tiny_model(architecture=architecture, discriminator_norm="none", num_labels=2).double()
    images, labels = random_images(model).double().requires_grad_(), torch.tensor([0, 1, 1, 0])
    (gradient,) = torch.autograd.grad(model.discriminate(images, labels).sum(), images)
    direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    _, squares = logits_and_squared_gradients(model.discriminator, images, labels)

    step = 1e-6
    ahead = model.discriminate(images + step * direction, labels)
    behind = model.discriminate(images - step * direction, labels)
    slope = (ahead - behind) / (2 * step)
    torch.testing.assert_close(squares, (slope / 2).square(), rtol=1e-5, atol=0)
