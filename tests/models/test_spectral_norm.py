"""Spectral normalization against a singular value decomposition."""

import pytest
import torch
from torch import Tensor

from hfgen.models.spectral_norm import SpectralNorm

from .gans import random_images, seeded, tiny_model


def converged(weight: Tensor, steps: int = 300) -> SpectralNorm:
    norm = SpectralNorm(len(weight)).to(weight.dtype).train()
    for _ in range(steps):
        norm(weight)
    return norm


def random_weight(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=seeded())


@pytest.mark.parametrize("shape", [(6, 4, 4, 4), (10, 30), (1, 12)])
def test_spectral_norm_divides_by_the_largest_singular_value(shape: tuple[int, ...]) -> None:
    weight = random_weight(*shape)

    normalized = converged(weight)(weight)

    exact = torch.linalg.svdvals(weight.flatten(1))[0]
    torch.testing.assert_close(normalized, weight / exact)
    assert torch.linalg.svdvals(normalized.flatten(1))[0].item() == pytest.approx(1)


def test_gradient_of_the_spectral_norm_is_that_of_the_exact_singular_value() -> None:
    weight, cotangent = random_weight(6, 4, 2, 2).requires_grad_(), random_weight(6, 4, 2, 2).flip(0)
    norm = converged(weight.detach())

    (gradient,) = torch.autograd.grad((norm(weight) * cotangent).sum(), weight)

    exact = weight / torch.linalg.svdvals(weight.flatten(1))[0]
    (expected,) = torch.autograd.grad((exact * cotangent).sum(), weight)
    torch.testing.assert_close(gradient, expected)


def test_power_iteration_advances_while_training_only() -> None:
    weight = random_weight(6, 20)
    norm = SpectralNorm(6).double()
    start = norm.left.clone()

    norm.eval()(weight)
    assert torch.equal(norm.left, start)
    assert torch.equal(norm(weight), norm(weight))
    norm.train()(weight)
    assert not torch.equal(norm.left, start)


def test_spectral_norm_is_exact_under_autocast() -> None:
    weight = random_weight(6, 20).float()
    norm = converged(weight).eval()
    expected = norm(weight)

    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(weight), expected)


def test_spectral_norm_of_16_bit_weights_is_as_good_as_their_bits() -> None:
    weight = random_weight(6, 200).bfloat16()

    normalized = converged(weight)(weight)

    assert normalized.dtype == torch.bfloat16
    assert torch.linalg.svdvals(normalized.double())[0].item() == pytest.approx(1, abs=0.01)


def test_a_weight_of_zeros_gives_zeros() -> None:
    weight = torch.zeros(3, 5, requires_grad=True)

    normalized = SpectralNorm(3)(weight)
    normalized.sum().backward()

    assert torch.equal(normalized, torch.zeros(3, 5)) and weight.grad.isfinite().all()


def test_a_discriminator_under_spectral_norm_stretches_no_direction_much() -> None:
    """Leaky rectifiers do not stretch; a 4 x 4 kernel of norm 1 with stride 2 stretches by at most 2, as each pixel is
    in 4 of its windows. So three layers, the last a plain product, stretch [0, 1] pixels by at most 2 * 2 * 2 * 1."""
    model = tiny_model().train()
    for _ in range(100):
        model.discriminate(random_images(model))
    images = random_images(model.eval(), batch=64).requires_grad_()

    (gradient,) = torch.autograd.grad(model.discriminate(images).sum(), images)

    assert gradient.flatten(1).norm(dim=1).max() <= 8
