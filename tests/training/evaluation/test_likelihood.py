"""The estimate of the likelihood, against a linear-Gaussian model whose likelihood has a formula, and full IW-K."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from hfgen import VAEConfig, VAEModel
from tests.runs import train
from training.distributed.processes import Processes
from training.evaluation.likelihood import (
    LikelihoodEstimator,
    combine,
    gain_from_joining,
    jackknife_variance,
    log_mean_exp,
    plan_levels,
    round_samples,
)
from training.objective import Metrics


GAIN, NOISE = torch.linspace(0.5, 2.0, 8).double(), 0.5
CPU = torch.device("cpu")


class LinearGaussianModel:
    """x = GAIN z + NOISE e with z, e ~ N(0, I); q(z|x) is too wide, and its mean too close to 0.

    Attributes:
        seconds: the time on its clock, on which a sample takes `cost` seconds and everything else none.
        weights: all that it returned.
    """

    def __init__(self, cost: float = 1.0):
        self.cost, self.seconds, self.weights = cost, 0.0, list[Tensor]()

    def clock(self) -> float:
        return self.seconds

    def log_importance_weights(
        self,
        pixel_values: Tensor,
        num_samples: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        chunk_size: int = 1024,
    ) -> Tensor:
        variance = 1 / (1 + GAIN.square() / NOISE**2)
        mean = variance * GAIN * pixel_values / NOISE**2
        posterior = Normal(0.85 * mean, 1.5 * variance.sqrt())
        noise = torch.randn(num_samples, *pixel_values.shape, generator=generator).double()
        latents = posterior.mean + posterior.stddev * noise
        joint = Normal(0.0, 1.0).log_prob(latents) + Normal(GAIN * latents, NOISE).log_prob(pixel_values)
        self.weights.append((joint - posterior.log_prob(latents)).sum(-1))
        self.seconds += self.cost * self.weights[-1].numel()
        return self.weights[-1]


def observations(count: int) -> Tensor:
    noise = torch.randn(2, count, len(GAIN), generator=torch.Generator().manual_seed(0)).double()
    return GAIN * noise[0] + NOISE * noise[1]


def exact_nll(images: Tensor) -> float:
    return -Normal(0.0, (GAIN.square() + NOISE**2).sqrt()).log_prob(images).sum(1).mean().item()


class OneOf:
    """The place of a process among several."""

    def __init__(self, rank: int, count: int):
        self.rank, self.count = rank, count


def estimator(model: Any, images: Tensor, num_samples: int, max_seconds: float, **how: Any) -> LikelihoodEstimator:
    settings: dict[str, Any] = {"seed": 0, "processes": Processes(), "device": CPU, **how}
    return LikelihoodEstimator(
        model, lambda rows: (images[rows], None), len(images), num_samples, max_seconds, **settings
    )


def run_together(*estimators: LikelihoodEstimator) -> None:
    """Does the steps of several processes in turn, and tells each the largest number, as an evaluation does."""
    running = [one.steps() for one in estimators]
    values = [next(steps) for steps in running]
    while values:
        largest, values = max(values), []
        for steps in running:
            try:
                values.append(steps.send(largest))
            except StopIteration:
                continue
        assert len(values) in (0, len(running)), "some process has more steps than another"


def measure(one: LikelihoodEstimator) -> Metrics:
    with torch.no_grad():
        run_together(one)
    return one.result()


# -------------------------------------------------------------------------------------- unbiased, with an honest error


def z_scores(truth: float, measured: list[Metrics]) -> Tensor:
    """Errors in units of the standard error."""
    return torch.tensor([(found.values["nll"] - truth) / found.details["nll_standard_error"] for found in measured])


@pytest.mark.parametrize(("max_seconds", "first"), [(50_000, 100), (30_000, 10), (2_000, 1)])
def test_estimate_is_unbiased_and_its_standard_error_is_right(max_seconds: int, first: int) -> None:
    """16 to 24 of 200 images have all samples. IW-1000 is close enough to the likelihood not to matter here."""
    images, measured = observations(200), []
    for seed in range(100):
        model = LinearGaussianModel()
        measured.append(measure(estimator(model, images, 1000, max_seconds, seed=seed, clock=model.clock)))

    scores = z_scores(exact_nll(images), measured)

    assert {found.details["nll_other_samples"] for found in measured} == {first}
    assert abs(scores.mean()) < 0.35  # 3.5 standard deviations of the mean of 100
    assert 0.75 < scores.std() < 1.25
    assert (scores.abs() < 2).float().mean() > 0.87


def test_without_the_differences_the_estimate_would_be_far_off() -> None:
    """So that the test above can fail: the gap between IW-10 and the likelihood is many standard errors."""
    images, model = observations(400), LinearGaussianModel()
    found = measure(estimator(model, images, 1000, 60_000, clock=model.clock))

    cheap = model.log_importance_weights(images, 10, generator=torch.Generator().manual_seed(1))

    bound = cheap.logsumexp(0).mean().item() - math.log(10)
    assert -bound - exact_nll(images) > 3 * found.details["nll_standard_error"]


def test_estimate_of_a_vae_agrees_with_its_full_bound() -> None:
    """On images drawn from the model: a trained one fits those that it is measured on."""
    torch.manual_seed(0)
    # With a learned prior, weights as random as these differ by more than samples can average out.
    sizes = {"image_size": 8, "hidden_channels": [4], "hidden_size": 16, "latent_dim": 4}
    model = VAEModel(VAEConfig(**sizes, prior="normal", hidden_act="relu")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    generator = torch.Generator().manual_seed(1)
    images = torch.bernoulli(model.sample(200, generator=generator), generator=generator)
    full = [measure(estimator(model, images, 100, 0, seed=seed)) for seed in range(4)]
    bound = sum(found.values["nll"] for found in full) / len(full)

    measured = []
    for seed in range(40):
        one = estimator(model, images, 100, 1, seed=seed, clock=Clock(model, seconds_per_sample=1 / 5000).read)
        measured.append(measure(one))

    assert {found.details["nll_images"] for found in measured} <= set(range(16, 50))
    scores = z_scores(bound, measured)
    assert abs(scores.mean()) < 0.55 and (scores.abs() < 2).float().mean() > 0.85  # 3.5 and 3 standard deviations


class Clock:
    """Goes on with the samples that a model draws."""

    def __init__(self, model: Any, seconds_per_sample: float):
        self.seconds, draw = 0.0, type(model).log_importance_weights

        def drawn(pixels: Tensor, num_samples: int, *args: Any) -> Tensor:
            self.seconds += seconds_per_sample * num_samples * len(pixels)
            return draw(model, pixels, num_samples, *args)

        model.log_importance_weights = drawn

    def read(self) -> float:
        return self.seconds


def test_jackknife_of_a_mean_is_its_squared_standard_error() -> None:
    values = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).double()

    variance = jackknife_variance(lambda groups: groups.mean(0), values)

    torch.testing.assert_close(variance, values.var(0) / 12)


def test_variance_of_a_subset_is_that_of_a_draw_without_replacement() -> None:
    """Numbers without noise: the error is that of the choice of images, and none if the choice is all of them."""
    gains = torch.linspace(0, 3, 20).double()
    # Two groups whose joint bound is higher by a given gain, log cosh(half of their difference), for each image.
    groups = torch.acosh(gains.exp()) * torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close(log_mean_exp(groups), gains)
    flat = torch.zeros(1, 20).double()

    for count in (5, 20):
        estimate, error = combine([flat, groups[:, :count]], num_images=20)
        noise_of_first = groups[:, :count].var(0).mean() / 20
        noise = jackknife_variance(gain_from_joining, groups[:, :count]).mean() / 20
        expected = (1 - count / 20) * gains[:count].var() / count + noise_of_first + noise
        assert estimate == pytest.approx(gains[:count].mean().item())
        assert error == pytest.approx(expected.sqrt().item())


# ------------------------------------------------------------------------------------------------------- size and time


@pytest.mark.parametrize("max_seconds", [0, 1e9])
def test_with_time_for_all_it_is_the_plain_bound(max_seconds: float) -> None:
    images, model = observations(50), LinearGaussianModel()

    found = measure(estimator(model, images, 40, max_seconds, clock=model.clock))

    bound = torch.cat([weights.logsumexp(0) for weights in model.weights]) - math.log(40)
    assert len(bound) == 50
    assert found.values["nll"] == pytest.approx(-bound.mean().item(), abs=1e-5)
    details = found.details
    assert (details["nll_samples"], details["nll_images"], details["nll_other_images"]) == (40, 50, 0)
    assert 0 < details["nll_standard_error"] < 0.2


@pytest.mark.parametrize("max_seconds", [40, 100, 400])
def test_the_time_is_kept_and_used(max_seconds: float) -> None:
    images, model = observations(2000), LinearGaussianModel(cost=1 / 1000)

    found = measure(estimator(model, images, 1000, max_seconds, clock=model.clock))

    assert 0.7 * max_seconds < model.seconds <= max_seconds
    assert found.details["nll_seconds"] == pytest.approx(model.seconds, abs=0.05)


def test_less_time_means_fewer_samples_and_a_larger_error() -> None:
    images, measured = observations(2000), []
    for max_seconds in (1, 15, 30, 100, 400):
        model = LinearGaussianModel(cost=1 / 1000)
        measured.append(measure(estimator(model, images, 1000, max_seconds, clock=model.clock)).details)

    assert [found["nll_other_samples"] for found in measured] == [1, 1, 1, 10, 10]
    assert [found["nll_images"] for found in measured] == sorted(found["nll_images"] for found in measured)
    errors = [found["nll_standard_error"] for found in measured]
    assert errors == sorted(errors, reverse=True) and measured[0]["nll_images"] == 16


@pytest.mark.parametrize("num_samples", [10, 30, 250, 1000, 2000])
def test_levels_lead_up_to_all_samples_and_cost_no_more_than_there_is_time_for(num_samples: int) -> None:
    for affordable in (3e3, 1e5, 3e5, 3e6, 3e7):
        levels = plan_levels(1000, num_samples, affordable)

        assert levels[0].num_images == 1000 and levels[-1].num_samples == num_samples
        for below, level in pairwise(levels):
            assert level.group_size == below.num_samples and level.num_samples % below.num_samples == 0
            assert level.num_images <= below.num_images
        needed = sum(level.num_images * (level.num_samples + 1) for level in levels)
        assert needed <= affordable or levels[-1].num_images == 16


def test_more_time_means_more_samples_of_all_images() -> None:
    found = [[level.num_samples for level in plan_levels(1000, 1000, time)] for time in (1e4, 1e5, 1e6, 2e6)]

    assert found == [[1, 10, 100, 1000], [10, 100, 1000], [100, 1000], [1000]]


@pytest.mark.parametrize("requested, rounded", [(0, 0), (1, 10), (10, 10), (995, 1000), (1000, 1000)])
def test_samples_are_rounded_up_to_tens(requested: int, rounded: int) -> None:
    assert round_samples(requested) == rounded


def test_samples_that_are_no_tens_are_refused() -> None:
    with pytest.raises(ValueError, match="num_samples must be a multiple of 10, got 15"):
        estimator(LinearGaussianModel(), observations(2), 15, 0)


# ---------------------------------------------------------------------------------------------- processes and repeats


def reader(images: Tensor, rows_read: list[int]) -> Callable[[Tensor], tuple[Tensor, None]]:
    def read(rows: Tensor) -> tuple[Tensor, None]:
        rows_read.extend(rows.tolist())
        return images[rows], None

    return read


def test_processes_agree_on_the_sizes_of_the_slowest_and_share_the_images() -> None:
    images, rows_read, estimators = observations(300), list[int](), []
    for rank, cost in enumerate((1, 5, 2)):
        model = LinearGaussianModel(cost / 1000)
        one = estimator(model, images, 200, 60, processes=OneOf(rank, 3), clock=model.clock)
        one.read = reader(images, rows_read)
        estimators.append(one)

    run_together(*estimators)

    slowest = LinearGaussianModel(5 / 1000)
    alone = estimator(slowest, images, 200, 3 * 60, clock=slowest.clock)
    run_together(alone)
    assert [one.levels for one in estimators] == [alone.levels] * 3
    assert len(alone.levels) > 1 and 20 < alone.levels[-1].num_images < 300
    counts = Counter(rows_read)
    assert set(counts) == set(range(300)) and counts.total() == sum(level.num_images for level in alone.levels)


def test_with_equal_sizes_the_estimate_repeats_whatever_the_speed() -> None:
    images, found = observations(300), []
    for cost in (1.0, 0.1):
        model = LinearGaussianModel(cost)
        found.append(measure(estimator(model, images, 100, 10_000 * cost, clock=model.clock)))

    assert found[0].values == found[1].values and found[0].details["nll_images"] < 300


# ------------------------------------------------------------------------------------------------------ in a training


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_results_say_how_the_likelihood_was_measured(tmp_path: Path) -> None:
    run = train("vae", tmp_path, "--nll_samples", 18)
    assert run.code == 0, run.output

    results = results_of(tmp_path)

    assert math.isfinite(results["metrics"]["nll"])
    details = results["metrics_details"]
    assert (details["nll_samples"], details["nll_images"], details["nll_other_images"]) == (20, 37, 0)
    assert details["nll_standard_error"] > 0 and details["nll_seconds"] < 30


def test_no_samples_skip_the_likelihood(tmp_path: Path) -> None:
    run = train("vae", tmp_path, "--nll_samples", 0)
    assert run.code == 0, run.output

    results = results_of(tmp_path)

    assert set(results["metrics"]) == {"elbo", "reconstruction_loss", "kl_loss"}
    assert results["metrics_details"] == {} and results["metrics_missing"] == {}
