"""What the baselines compute, against answers that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hfgen.models.anomaly import GaussianDistance, edge_maps
from training.tools.autoencoder_rows.baselines import edges, isolation_forest, neighbors, pca_residual


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_neighbors_are_five_and_at_the_distance_between_images() -> None:
    steps = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 9.0])
    normal = steps.view(6, 1, 1, 1).expand(6, 1, 2, 2)

    found = neighbors(normal, torch.zeros(1, 1, 2, 2))

    assert found == pytest.approx([2 * (0.0 + 0.1 + 0.2 + 0.3 + 0.4) / 5])


def test_what_32_components_hold_has_no_residual() -> None:
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    weights = torch.rand(100, 32, generator=torch.Generator().manual_seed(1))
    normal = (weights @ basis[:32]).view(100, 1, 8, 8)
    beside = normal[:1] + 0.5 * basis[40].view(1, 1, 8, 8)

    found = pca_residual(normal, torch.cat([normal[:1], beside]))

    assert found == pytest.approx([0, 0.25], abs=1e-5)


def test_edges_are_judged_as_the_detector_judges_them() -> None:
    """The baseline is the detector without reconstructions: distances are the same, up to a factor."""
    normal, test = images(40, 0), images(5, 1)
    distance = GaussianDistance(8 * 4 * 4, rank=8 * 4 * 4)
    features = edge_maps(normal, 1).flatten(1).double()
    distance.fit(features.mean(dim=0), features.T.cov())
    expected = distance(edge_maps(test, 1).flatten(1)).square().sum(dim=1).numpy()

    found = edges(normal, test)

    np.testing.assert_allclose(found, expected * found[0] / expected[0], rtol=1e-3)


def test_an_image_far_from_all_is_isolated_early_and_repeatably() -> None:
    normal, strange = images(100, 0), torch.full((1, 1, 8, 8), 5.0)

    found = isolation_forest(normal, torch.cat([normal[:5], strange]))

    assert found.argmax() == 5 and np.array_equal(found, isolation_forest(normal, torch.cat([normal[:5], strange])))
