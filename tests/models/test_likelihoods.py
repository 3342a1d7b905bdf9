"""Distributions of pixels: probabilities that sum to 1, samples that follow them, and direct formulas."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hfgen.models.likelihoods import LIKELIHOODS, Likelihood, build_likelihood


LEVELS = torch.arange(256).double() / 255
each_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)
each_number_of_channels = pytest.mark.parametrize("num_channels", [1, 3])


def build(name: str, num_channels: int = 1, num_mixtures: int = 3, std: float = 0.1) -> Likelihood:
    config = SimpleNamespace(likelihood=name, num_channels=num_channels, num_mixtures=num_mixtures)
    return build_likelihood(config, torch.full((num_channels, 1, 1), math.log(std)).double())


def random_parameters(
    likelihood: Likelihood, batch: int = 1, size: int = 1, seed: int = 0, spread: float = 1
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, likelihood.parameters_per_pixel, size, size)
    return spread * torch.randn(shape, generator=generator).double()


def all_pixels(num_channels: int) -> Tensor:
    """Every 8-bit pixel there is, as images of one pixel."""
    return torch.cartesian_prod(*[LEVELS] * num_channels).view(-1, num_channels, 1, 1)


def log_probs(likelihood: Likelihood, parameters: Tensor, pixels: Tensor) -> Tensor:
    """Of each of these images of one pixel, given the parameters of one."""
    return likelihood.log_prob(parameters.expand(len(pixels), -1, -1, -1), pixels)


def test_a_likelihood_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"likelihood must be one of bernoulli, .*, got 'poisson'"):
        build("poisson")


def test_a_gaussian_without_its_scale_says_what_is_missing() -> None:
    gaussian = build_likelihood(SimpleNamespace(likelihood="gaussian", num_channels=1))

    with pytest.raises(ValueError, match="Pass it to build_likelihood"):
        gaussian.log_prob(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))


@each_likelihood
@each_number_of_channels
def test_pixels_of_an_image_are_independent(name: str, num_channels: int) -> None:
    likelihood = build(name, num_channels)
    parameters = random_parameters(likelihood, batch=2, size=2)
    images = torch.randint(2, (2, num_channels, 2, 2), generator=torch.Generator().manual_seed(1)).double()

    log_prob = likelihood.log_prob(parameters, images)

    one_by_one = [
        likelihood.log_prob(parameters[:, :, i : i + 1, j : j + 1], images[:, :, i : i + 1, j : j + 1])
        for i, j in itertools.product(range(2), repeat=2)
    ]
    assert log_prob.shape == (2,)
    torch.testing.assert_close(log_prob, sum(one_by_one))


# ------------------------------------------------------------------------------------------------ probabilities


@pytest.mark.parametrize("name", ["discretized_logistic", "logistic_mixture"])
@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_probabilities_of_all_pixels_sum_to_one(name: str, num_channels: int, spread: float) -> None:
    likelihood = build(name, num_channels)
    parameters = random_parameters(likelihood, spread=spread)

    total = log_probs(likelihood, parameters, all_pixels(num_channels)).logsumexp(0)

    assert total.item() == pytest.approx(0, abs=1e-9)


def test_probabilities_of_colors_sum_to_one() -> None:
    """Of the colors within 12 levels of the components' means, where the scales of 1/2 level leave nothing outside."""
    likelihood = build("logistic_mixture", num_channels=3, num_mixtures=2)
    parameters = random_parameters(likelihood, spread=0.01)
    _, means, log_scales, coefficients = parameters.view(-1, 2).split([1, 3, 3, 3])
    means -= torch.tensor([0.25, 0.75])  # both components around mid-gray, from which coefficients count
    means += 0.5
    log_scales += 2 + math.log(0.5 / 255)
    coefficients += torch.tensor([[0.5], [-1.0], [2.0]])
    near = torch.arange(116, 140).double() / 255

    colors = torch.cartesian_prod(near, near, near).view(-1, 3, 1, 1)

    assert log_probs(likelihood, parameters, colors).logsumexp(0).item() == pytest.approx(0, abs=1e-5)


def direct_mixture_log_prob(parameters: Tensor, pixels: Tensor, num_mixtures: int) -> Tensor:
    """By the formula of PixelCNN++ in probabilities, for images of one pixel in RGB."""
    logits, *blocks = parameters.view(len(parameters), -1, num_mixtures).unbind(1)
    means, log_scales, coefficients = blocks[:3], blocks[3:6], [block.tanh() for block in blocks[6:]]
    centers = (torch.arange(num_mixtures) + 0.5) / num_mixtures
    red, green, blue = (channel.view(-1, 1) for channel in pixels.unbind(1))
    moved = [
        means[0] + centers,
        means[1] + centers + coefficients[0] * (red - 0.5),
        means[2] + centers + coefficients[1] * (red - 0.5) + coefficients[2] * (green - 0.5),
    ]
    probability = logits.softmax(1)
    for x, mean, log_scale in zip((red, green, blue), moved, log_scales):
        scale = (log_scale - 2).exp()
        above = torch.where(x > 0.999, 1.0, torch.sigmoid((x + 1 / 510 - mean) / scale))
        below = torch.where(x < 0.001, 0.0, torch.sigmoid((x - 1 / 510 - mean) / scale))
        probability = probability * (above - below)
    return probability.sum(1).log()


def test_mixture_of_colors_matches_the_direct_formula_and_so_do_its_gradients() -> None:
    likelihood = build("logistic_mixture", num_channels=3)
    parameters = random_parameters(likelihood, batch=64, spread=0.5)
    parameters[:, 12:21] += 1  # scales at which the direct formula is accurate
    parameters.requires_grad_()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (64, 3, 1, 1), generator=generator).double() / 255
    pixels[:8] = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).view(8, 3, 1, 1)

    found, expected = likelihood.log_prob(parameters, pixels), direct_mixture_log_prob(parameters, pixels, 3)

    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    gradients = [torch.autograd.grad(value.sum(), parameters)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


@each_likelihood
@each_number_of_channels
def test_gradients_are_those_of_finite_differences(name: str, num_channels: int) -> None:
    likelihood = build(name, num_channels, num_mixtures=2)
    parameters = random_parameters(likelihood, batch=3, spread=0.5).requires_grad_()
    pixels = torch.tensor([0.0, 1.0, 100 / 255]).double().view(3, 1, 1, 1).expand(-1, num_channels, -1, -1)
    if name == "bernoulli":
        pixels = pixels.round()

    assert torch.autograd.gradcheck(lambda x: likelihood.log_prob(x, pixels), parameters)


@each_likelihood
@each_number_of_channels
@pytest.mark.parametrize("spread", [1e2, 1e6])
def test_extreme_parameters_give_finite_values_and_gradients_in_float32(
    name: str, num_channels: int, spread: float
) -> None:
    likelihood = build(name, num_channels, std=1.0)
    parameters = random_parameters(likelihood, batch=256, spread=spread).float().requires_grad_()
    pixels = LEVELS.float().view(-1, 1, 1, 1).expand(-1, num_channels, -1, -1)

    log_prob = likelihood.log_prob(parameters, pixels if name != "bernoulli" else pixels.round())
    log_prob.sum().backward()

    assert log_prob.isfinite().all() and parameters.grad.isfinite().all()
    assert name == "gaussian" or log_prob.max() <= 0
    images = [likelihood.mean(parameters), likelihood.draw(parameters)]
    assert all(image.min() >= 0 and image.max() <= 1 for image in images)


def test_a_mixture_of_one_gray_component_is_the_discretized_logistic() -> None:
    mixture, logistic = build("logistic_mixture", num_mixtures=1), build("discretized_logistic")
    parameters = random_parameters(logistic)
    one = torch.cat([torch.full((1, 1, 1, 1), 0.7), parameters], dim=1)  # with a logit, which changes nothing

    pixels = all_pixels(1)

    torch.testing.assert_close(log_probs(mixture, one, pixels), log_probs(logistic, parameters, pixels))


def test_components_start_different_and_together_near_a_uniform_guess() -> None:
    likelihood = build("logistic_mixture", num_mixtures=10)
    parameters = random_parameters(likelihood, spread=0.0)

    log_prob = log_probs(likelihood, parameters, all_pixels(1))

    assert -log_prob.mean().item() == pytest.approx(math.log(256), rel=0.05)
    gradient = torch.autograd.functional.jacobian(
        lambda x: log_probs(likelihood, x, all_pixels(1)[:1]).sum(), parameters
    ).view(-1, 10)
    assert len(gradient[1].unique()) == 10  # of the means


# ---------------------------------------------------------------------------------------------- means and samples


@each_likelihood
@each_number_of_channels
def test_samples_are_8_bit_images_and_follow_the_generator(name: str, num_channels: int) -> None:
    likelihood = build(name, num_channels)
    parameters = random_parameters(likelihood, batch=2, size=4)

    drawn = [likelihood.draw(parameters, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]

    assert drawn[0].shape == (2, num_channels, 4, 4) and drawn[0].dtype == parameters.dtype
    torch.testing.assert_close(255 * drawn[0], (255 * drawn[0]).round())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", ["discretized_logistic", "logistic_mixture"])
def test_samples_of_a_gray_pixel_have_its_probabilities(name: str) -> None:
    likelihood, number = build(name), 100_000
    parameters = random_parameters(likelihood, seed=3)
    probabilities = log_probs(likelihood, parameters, all_pixels(1)).exp()

    drawn = likelihood.draw(parameters.expand(-1, -1, number, 1), torch.Generator().manual_seed(0))

    counts = torch.bincount((255 * drawn).round().long().flatten(), minlength=256)
    deviations = (counts - number * probabilities) / (number * probabilities).sqrt()
    assert deviations[probabilities * number > 20].abs().max() < 5
    assert (counts / number - probabilities).abs().max() < 0.01


def test_samples_of_a_color_have_their_entropy() -> None:
    """The mean of -log p over samples of p, with standard error, against an independent estimate of the entropy."""
    likelihood, number = build("logistic_mixture", num_channels=2), 40_000
    parameters = random_parameters(likelihood, seed=2)
    log_prob = log_probs(likelihood, parameters, all_pixels(2))
    entropy = -(log_prob.exp() * log_prob).sum()

    drawn = likelihood.draw(parameters.expand(number, -1, -1, -1), torch.Generator().manual_seed(0))

    surprise = -log_probs(likelihood, parameters, drawn)
    assert (surprise.mean() - entropy).abs() < 4 * surprise.std() / number**0.5


@pytest.mark.parametrize("name, tolerance", [("bernoulli", 1e-9), ("logistic_mixture", 2e-3)])
@pytest.mark.parametrize("spread", [0.3, 1.5])
def test_mean_of_a_gray_pixel_is_its_expectation(name: str, tolerance: float, spread: float) -> None:
    likelihood = build(name)
    parameters = random_parameters(likelihood, spread=spread, seed=5)
    pixels = all_pixels(1) if name != "bernoulli" else torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1)

    expected = (log_probs(likelihood, parameters, pixels).exp() * pixels.flatten()).sum()

    assert likelihood.mean(parameters).item() == pytest.approx(expected.item(), abs=tolerance)


def test_mean_of_a_color_is_that_of_its_samples() -> None:
    """Where no sample is clipped; coefficients move means as far as the colors before them move."""
    likelihood = build("logistic_mixture", num_channels=3, num_mixtures=2)
    parameters = random_parameters(likelihood, spread=0.3, seed=1)
    parameters[:, 2:8] = 0.2 * parameters[:, 2:8] + torch.tensor([0.15, -0.15]).repeat(3).view(1, 6, 1, 1)
    parameters[:, 8:14] -= 2.5  # scales of about 0.01

    drawn = likelihood.draw(parameters.expand(20_000, -1, -1, -1), torch.Generator().manual_seed(0))

    error = 4 * drawn.std(0) / 20_000**0.5
    assert ((likelihood.mean(parameters) - drawn.mean(0)).abs() < error + 1e-3).all()


def test_gaussian_samples_have_the_learned_standard_deviation() -> None:
    likelihood = build("gaussian", std=0.1)

    drawn = likelihood.draw(torch.full((1, 1, 100, 100), 0.5).double(), torch.Generator().manual_seed(0))

    assert drawn.mean().item() == pytest.approx(0.5, abs=0.005)
    assert drawn.std().item() == pytest.approx(0.1, rel=0.03)


def test_bernoulli_samples_are_black_and_white_in_the_proportion_of_the_logits() -> None:
    likelihood = build("bernoulli")

    drawn = likelihood.draw(torch.full((1, 1, 100, 100), math.log(3)).double(), torch.Generator().manual_seed(0))

    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(0.75, abs=0.02)


def brightness_of_three_channels() -> Tensor:
    levels = torch.tensor([0.1, 0.4, 0.8]).view(3, 1, 1)
    return torch.bernoulli(levels.expand(50, 3, 8, 8), generator=torch.Generator().manual_seed(0)).double()


def test_the_average_bernoulli_is_the_best_single_logit_of_each_channel() -> None:
    images, likelihood = brightness_of_three_channels(), build("bernoulli", num_channels=3)

    best = likelihood.average(images)

    torch.testing.assert_close(best.sigmoid(), images.mean((0, 2, 3)))
    losses = [
        -likelihood.log_prob((best + by).view(1, 3, 1, 1).expand_as(images), images).sum() for by in (-0.1, 0, 0.1)
    ]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("name", ["gaussian", "discretized_logistic"])
def test_average_pixels_have_the_mean_and_the_spread_of_the_images(name: str) -> None:
    noise = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    images = (torch.tensor([0.3, 0.5, 0.7]).view(3, 1, 1) + 0.05 * noise).clamp(0, 1)
    likelihood = build(name, num_channels=3, std=0.05)

    parameters = likelihood.average(images).view(1, -1, 1, 1).expand(2000, -1, 4, 4)
    drawn = likelihood.draw(parameters, torch.Generator().manual_seed(1))

    torch.testing.assert_close(drawn.mean((0, 2, 3)), images.mean((0, 2, 3)), rtol=0, atol=0.002)
    torch.testing.assert_close(drawn.std((0, 2, 3)), images.std((0, 2, 3)), rtol=0.03, atol=0)


def test_average_mixtures_weigh_each_component_by_the_pixels_near_its_center() -> None:
    """Centers are 1/8, 3/8, 5/8 and 7/8."""
    images = torch.tensor([0.0, 0.1, 0.3, 1.0]).double().view(1, 1, 2, 2)
    likelihood = build("logistic_mixture", num_mixtures=4)

    shares = likelihood.average(images)[:4].softmax(0)

    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.0, 0.25]).double(), rtol=0, atol=2e-3)
