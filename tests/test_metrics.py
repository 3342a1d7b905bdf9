"""Metrics against known answers, and against other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors

import hfgen.metrics
from hfgen.metrics import (
    METRICS,
    bits_per_dim,
    frechet_distance,
    kernel_distance,
    metric_named,
    precision_recall_density_coverage,
    psnr,
)


def test_a_metric_is_named_on_cards_by_its_entry_its_level_or_itself() -> None:
    assert metric_named("elbo") == METRICS["elbo"]
    assert metric_named("kl_loss").label == "KL"
    assert (
        metric_named("kl_level_0").label == "KL of level 0" and metric_named("kl_level_12").label == "KL of level 12"
    )
    assert "this level of latents" in metric_named("kl_level_1").meaning
    assert metric_named("my_metric") == ("`my_metric`", "")


def test_psnr_of_known_errors() -> None:
    references = torch.zeros(3, 1, 4, 4)
    images = torch.stack([torch.full((1, 4, 4), 0.1), torch.full((1, 4, 4), 1.0), torch.zeros(1, 4, 4)])
    assert psnr(images, references).tolist() == [pytest.approx(20.0, abs=1e-5), 0.0, math.inf]
    assert psnr(images * 255, references, data_range=255)[0].item() == pytest.approx(20.0, abs=1e-5)


def test_bits_per_dim_of_a_uniform_distribution_over_8_bits_is_8() -> None:
    assert bits_per_dim(784 * math.log(256), 784) == pytest.approx(8.0)
    torch.testing.assert_close(bits_per_dim(torch.tensor([0.0, math.log(2)]), 1), torch.tensor([0.0, 1.0]))


def test_frechet_distance_of_two_fitted_gaussians() -> None:
    # Points at ±1 on each axis, moved and stretched: means and (diagonal) covariances are known exactly.
    points = torch.cat([torch.eye(3), -torch.eye(3)]).double() * math.sqrt(5 / 2)  # covariance = identity
    a = points * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([0.0, 1.0, 0.0])
    b = points * torch.tensor([4.0, 2.0, 0.0]) + torch.tensor([3.0, 1.0, 4.0])
    expected = 3**2 + 4**2 + (1 - 4) ** 2 + 0 + (3 - 0) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "dimensions"), [(200, 300, 10), (30, 20, 50)], ids=["full rank", "singular"])
def test_frechet_distance_equals_the_formula_is_symmetric_and_zero_on_itself(n: int, m: int, dimensions: int) -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(dimensions, dimensions))
    a, b = rng.normal(size=(n, dimensions)), rng.normal(size=(m, dimensions)) @ mix + 1
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.trace(sqrtm(cov_a @ cov_b)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4 if n < dimensions else 1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert frechet_distance(b, b) == pytest.approx(0.0, abs=1e-9)


def square(center: tuple[float, float]) -> torch.Tensor:
    """Four points, each with neighbors at distances 1, 1 and √2."""
    return torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]) + torch.tensor(center)


def test_kernel_distance_of_the_definition_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(count, 3, generator=generator, dtype=torch.float64) for count in (7, 5))

    def mean(x: torch.Tensor, y: torch.Tensor, own: bool) -> float:
        values = [(float(p @ q) / 3 + 1) ** 3 for i, p in enumerate(x) for j, q in enumerate(y) if not own or i != j]
        return sum(values) / len(values)

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert kernel_distance(a, b) == pytest.approx(expected)
    monkeypatch.setattr(hfgen.metrics, "_BLOCK", 11)
    assert kernel_distance(a, b) == pytest.approx(expected)


def test_kernel_distance_has_no_bias_and_sees_a_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    same = [kernel_distance(*torch.randn(2, 50, 4, generator=generator, dtype=torch.float64)) for _ in range(200)]
    error = np.std(same) / len(same) ** 0.5
    assert abs(np.mean(same)) < 3 * error
    # The mean of the kernel over x and y of means u and v is (1 + u·v / d)³ plus terms in their variances, so a shift
    # of one of the means by s in every dimension, far larger than the variances, adds about (1 + s²)³.
    a, b = torch.randn(2, 500, 4, generator=generator, dtype=torch.float64)
    assert kernel_distance(a, b + 100) == pytest.approx(1e12, rel=0.01)


def as_tuple(result: hfgen.metrics.PrecisionRecallDensityCoverage) -> tuple[float, float, float, float]:
    return result.precision, result.recall, result.density, result.coverage


def test_equal_sets_score_one_and_distant_sets_zero() -> None:
    points = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    assert as_tuple(precision_recall_density_coverage(points, points.clone())) == (1.0, 1.0, 1.0, 1.0)
    assert as_tuple(precision_recall_density_coverage(points, points + 1e3)) == (0.0, 0.0, 0.0, 0.0)


def test_dropped_mode_costs_recall_and_coverage_but_not_precision() -> None:
    real = torch.cat([square((0, 0)), square((100, 0))])
    fake = square((0, 0)) + 0.25
    # k=3: every real ball has radius √2. Distances of the fakes to the reals nearby: (¼, ¼) .35 .79 .79 1.06, in 4
    # balls; (¼, 1¼) and (1¼, ¼) .35 .79 1.27 1.46, in 3; (1¼, 1¼) .35 1.27 1.27 1.77, in 3.
    result = precision_recall_density_coverage(real, fake, k=3)
    assert as_tuple(result) == (1.0, 0.5, (4 + 3 + 3 + 3) / (3 * 4), 0.5)


def test_fakes_spread_beyond_the_data_cost_precision_but_not_recall() -> None:
    real = square((0, 0))
    fake = torch.cat([square((0, 0)), square((100, 0))])
    assert as_tuple(precision_recall_density_coverage(real, fake, k=3)) == (0.5, 1.0, 4 * 3 / (3 * 8), 1.0)


def test_measures_equal_a_nearest_neighbor_search_in_any_block_size(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    real, fake, k = rng.normal(size=(60, 4)), 1.5 * rng.normal(size=(45, 4)), 4
    radius_real = NearestNeighbors().fit(real).kneighbors(n_neighbors=k)[0][:, -1]
    radius_fake = NearestNeighbors().fit(fake).kneighbors(n_neighbors=k)[0][:, -1]
    distances = np.linalg.norm(real[:, None] - fake[None], axis=-1)
    in_real, in_fake = distances < radius_real[:, None], distances < radius_fake[None]
    expected = (in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum(0).mean() / k, in_real.any(1).mean())
    monkeypatch.setattr(hfgen.metrics, "_BLOCK", 7 * 60)
    assert as_tuple(precision_recall_density_coverage(real, fake, k)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psnr(torch.zeros(1, 4), torch.zeros(1, 5)), r"one shape .* \(1, 4\) and \(1, 5\)"),
        (lambda: bits_per_dim(1.0, 0), "num_dims"),
        (lambda: frechet_distance(torch.zeros(1, 4), torch.zeros(9, 4)), "features_a must .* at least 2"),
        (lambda: frechet_distance(torch.zeros(9, 4), torch.zeros(9, 3)), "4 and 3"),
        (lambda: frechet_distance(torch.zeros(9, 4), torch.full((9, 4), math.nan)), "features_b must .* NaN"),
        (lambda: precision_recall_density_coverage(torch.zeros(9, 4), torch.zeros(5, 4)), "fake must .* at least 6"),
        (lambda: precision_recall_density_coverage(torch.zeros(9, 4), torch.zeros(9, 4), k=0), "k must be at least 1"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
