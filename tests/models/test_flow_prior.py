"""The learned prior: an invertible map, a density that integrates to 1, and a better fit than N(0, I)."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hfgen.models.flow_prior import NormalPrior, RealNVPPrior, build_prior
from hfgen.models.latents import DiagonalGaussianDistribution


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_prior(latent_dim: int, num_labels: int = 0, num_couplings: int = 4) -> RealNVPPrior:
    """With weights far from the identity that it starts as."""
    torch.manual_seed(0)
    prior = RealNVPPrior(latent_dim, num_couplings, hidden_size=16, num_labels=num_labels)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(std=0.6 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.3)
    return prior


def normal_log_prob(latents: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(latents).flatten(1).sum(1)


@pytest.mark.parametrize("latent_dim", [2, 5, 40])
@pytest.mark.parametrize("num_labels", [0, 3])
def test_a_fresh_prior_is_standard_normal(latent_dim: int, num_labels: int) -> None:
    prior = RealNVPPrior(latent_dim, num_labels=num_labels)
    for coupling in prior.couplings:  # as the model's own initialization leaves them
        torch.nn.init.zeros_(coupling.to_shift_and_scale.weight)
        torch.nn.init.zeros_(coupling.to_shift_and_scale.bias)
    latents, labels = torch.randn(7, latent_dim), torch.arange(7) % 3 if num_labels else None

    torch.testing.assert_close(prior.log_prob(latents, labels), normal_log_prob(latents))
    assert torch.equal(prior.sample(latents, labels), latents)


@pytest.mark.parametrize("latent_dim", [2, 3, 7, 32])
@pytest.mark.parametrize("num_labels", [0, 3])
@pytest.mark.parametrize("num_couplings", [1, 2, 8])
def test_sampling_inverts_the_map_to_noise(latent_dim: int, num_labels: int, num_couplings: int) -> None:
    prior = random_prior(latent_dim, num_labels, num_couplings)
    noise, labels = torch.randn(50, latent_dim, generator=seeded()), torch.arange(50) % 3 if num_labels else None

    latents = prior.sample(noise, labels)

    torch.testing.assert_close(prior.to_noise(latents, labels)[0], noise, rtol=1e-5, atol=1e-5)
    assert (latents - noise).abs().mean() > 0.05, "the map is not trivial"


@pytest.mark.parametrize("latent_dim", [2, 5])
@pytest.mark.parametrize("num_labels", [0, 3])
def test_log_determinant_is_that_of_the_jacobian(latent_dim: int, num_labels: int) -> None:
    prior = random_prior(latent_dim, num_labels).double()
    latents = torch.randn(4, latent_dim, generator=seeded()).double()
    labels = torch.arange(4) % 3 if num_labels else None

    noise, log_det = prior.to_noise(latents, labels)

    for i in range(4):
        label = None if labels is None else labels[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda z, c=label: prior.to_noise(z[None], c)[0][0], latents[i])
        torch.testing.assert_close(log_det[i], jacobian.det().abs().log())
    torch.testing.assert_close(prior.log_prob(latents, labels), normal_log_prob(noise) + log_det)


@pytest.mark.parametrize("label", [None, 0, 2])
def test_density_integrates_to_one(label: int | None) -> None:
    prior = random_prior(2, num_labels=0 if label is None else 3).double()
    axis = torch.linspace(-30, 30, 1201).double()
    grid = torch.cartesian_prod(axis, axis)
    labels = None if label is None else torch.full((len(grid),), label)

    with torch.no_grad():
        integral = prior.log_prob(grid, labels).exp().sum() * (axis[1] - axis[0]) ** 2

    assert integral.item() == pytest.approx(1, abs=1e-3)


def two_moons(number: int, generator: torch.Generator) -> Tensor:
    angle = math.pi * torch.rand(number, generator=generator)
    upper = torch.rand(number, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return 1.5 * torch.stack([x, y], dim=1) + 0.1 * torch.randn(number, 2, generator=generator)


def test_a_trained_prior_fits_two_moons_better_than_a_normal_distribution_can() -> None:
    train, test = two_moons(2000, seeded(0)), two_moons(2000, seeded(1))
    torch.manual_seed(0)
    prior = RealNVPPrior(2, num_couplings=8, hidden_size=32)
    optimizer = torch.optim.Adam(prior.parameters(), lr=5e-3)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 600)
        batch = train[torch.randint(2000, (256,), generator=seeded(step))]
        loss = -prior.log_prob(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    best_normal = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())
    with torch.no_grad():
        gain = (prior.log_prob(test) - normal_log_prob(test)).mean().item()
        gain_over_best = (prior.log_prob(test) - best_normal.log_prob(test)).mean().item()
        drawn = prior.sample(torch.randn(2000, 2, generator=seeded(2)))

    assert gain > 1 and gain_over_best > 0.5
    torch.testing.assert_close(drawn.mean(0), test.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), test.T.cov(), atol=0.3, rtol=0)


def test_density_is_in_float32_when_the_layers_are_in_16_bits() -> None:
    prior = random_prior(6)
    latents = torch.randn(20, 6, generator=seeded())
    expected = prior.log_prob(latents)

    prior.to(torch.bfloat16)
    found = prior.log_prob(latents)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.2)
    torch.testing.assert_close(prior.to_noise(prior.sample(latents))[0], latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (3, 2, 2)])
def test_the_normal_prior_is_standard_normal(shape: tuple[int, ...]) -> None:
    prior, latents = build_prior(SimpleNamespace(prior="normal")), torch.randn(5, *shape, generator=seeded())
    posterior = DiagonalGaussianDistribution(torch.randn(5, 2 * shape[0], *shape[1:], generator=seeded(1)))

    assert isinstance(prior, NormalPrior)
    torch.testing.assert_close(prior.log_prob(latents), normal_log_prob(latents))
    torch.testing.assert_close(prior.kl(posterior, latents), posterior.kl())
    assert torch.equal(prior.sample(latents), latents)
    assert torch.equal(prior.to_noise(latents)[0], latents) and not prior.to_noise(latents)[1].any()


def test_kl_of_the_learned_prior_is_right_on_average() -> None:
    """Against the analytic KL, for a flow that is N(0, I)."""
    prior = RealNVPPrior(3)
    for coupling in prior.couplings:
        torch.nn.init.zeros_(coupling.to_shift_and_scale.weight)
        torch.nn.init.zeros_(coupling.to_shift_and_scale.bias)
    parameters = torch.randn(1, 6, generator=seeded()).expand(20_000, -1)
    posterior = DiagonalGaussianDistribution(parameters)

    kl = prior.kl(posterior, posterior.sample(seeded(1)))

    assert (kl.mean() - posterior.kl()[0]).abs() < 4 * kl.std() / 20_000**0.5
