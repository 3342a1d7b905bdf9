"""What an anomaly detector is compared with: methods that learn less from the same normal images.

Each takes normal images and others, (images, channels, height, width) in [0, 1], and returns a score for each of the
others; larger is stranger.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from hfgen.models.anomaly import edge_maps, halvings_for


Scores = np.ndarray


def neighbors(normal: Tensor, test: Tensor) -> Scores:
    """Mean distance to the five nearest normal images, in pixels."""
    from sklearn.neighbors import NearestNeighbors

    searcher = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(normal.flatten(1).numpy())
    return searcher.kneighbors(test.flatten(1).numpy())[0].mean(axis=1)


def pca_residual(normal: Tensor, test: Tensor) -> Scores:
    """Squared error of a reconstruction from 32 principal components."""
    from sklearn.decomposition import PCA

    pca = PCA(n_components=min(32, len(normal)), svd_solver="covariance_eigh").fit(normal.flatten(1).numpy())
    flat = test.flatten(1).numpy()
    return np.square(flat - pca.inverse_transform(pca.transform(flat))).sum(axis=1)


def isolation_forest(normal: Tensor, test: Tensor) -> Scores:
    """As in scikit-learn, with its own settings."""
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(random_state=0).fit(normal.flatten(1).numpy()).score_samples(test.flatten(1).numpy())


def edges(normal: Tensor, test: Tensor) -> Scores:
    """Mahalanobis distance of the detector's own edge maps, without a network: what learning has to beat."""
    from sklearn.covariance import ShrunkCovariance

    halvings = halvings_for(normal.shape[-2:])
    features, others = (edge_maps(images, halvings).flatten(1).double().numpy() for images in (normal, test))
    # By half towards the mean eigenvalue: up to a factor, the covariance plus that eigenvalue times I.
    return ShrunkCovariance(shrinkage=0.5).fit(features).mahalanobis(others)


BASELINES: dict[str, Callable[[Tensor, Tensor], Scores]] = {
    "pixels, 5 neighbors": neighbors,
    "pixels, PCA residual": pca_residual,
    "pixels, isolation forest": isolation_forest,
    "edges, Mahalanobis": edges,
}
