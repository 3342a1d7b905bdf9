"""How strange stored pictures are, so that a page can say how strange a drawing is beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def describe_strangeness(model: Any, pixel_values: Tensor, reconstruction: Tensor, are_real: bool) -> dict[str, Any]:
    """What the page compares a score with.

    Args:
        model: in evaluation mode.
        pixel_values: the stored pictures, (pictures, channels, height, width) in [0, 1].
        reconstruction: what the model makes of them.
        are_real: whether the pictures are more than what the model has drawn itself.

    Returns:
        name: of the score.
        threshold: above it, a score is an anomaly; None where nobody has set one.
        quantiles: of the scores of the stored pictures, from the lowest to the highest; None if they say nothing.
        map_most: value of an anomaly map that is painted in full; None for a reconstruction error.
    """
    detector = getattr(model, "anomaly_detector", None)
    if detector is not None and detector.is_fitted:
        found = model.predict_anomaly(pixel_values)
        most = model.config.anomaly_map_threshold or float(found.maps.flatten().quantile(0.999))
        threshold = model.config.anomaly_threshold
        return _described("Anomaly score", found.scores, threshold, are_real) | {"map_most": 2 * float(most)}
    errors = (reconstruction - pixel_values).square().flatten(1).mean(dim=1)
    return _described("Mean squared error", errors, None, are_real) | {"map_most": None}


def _described(name: str, scores: Tensor, threshold: float | None, are_real: bool) -> dict[str, Any]:
    quantiles = np.quantile(scores.double().numpy(), np.linspace(0, 1, 101)) if are_real else None
    return {
        "name": name,
        "threshold": threshold,
        "quantiles": None if quantiles is None else [float(f"{value:.5g}") for value in quantiles],
    }
