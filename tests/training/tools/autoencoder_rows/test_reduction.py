"""Errors and nearest neighbors, against answers that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hfgen import AutoencoderConfig, AutoencoderModel
from training.config.flags import DataArguments
from training.data.images import load_images
from training.tools.autoencoder_rows import reduction


def test_mean_image_leaves_the_variance() -> None:
    train, test = np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[0.5, 0.0], [1.0, 1.0]])
    assert reduction.error_of_mean_image(train, test) == pytest.approx((0 + 1 + 0.25 + 0) / 4)


def test_neighbor_is_the_closest_training_row() -> None:
    train, labels = np.array([[0.0], [1.0], [5.0]]), np.array([3, 4, 3])
    assert reduction.neighbor_accuracy(train, labels, np.array([[0.4], [0.6], [9.0]]), np.array([3, 3, 3])) == (
        pytest.approx(200 / 3)
    )


def test_pca_with_all_components_restores_everything() -> None:
    data = load_images(DataArguments(dataset_name="digits", max_eval_samples=50), 0)
    found = reduction.measure_pca(data, 64)
    assert found["metrics"]["mse"] < 1e-10 and found["metrics"]["mean_image_mse"] > 0.05
    assert found["metrics"]["nearest_neighbor"] > 95 and found["seconds_trained"] > 0
    assert reduction.measure_pca(data, 1)["metrics"]["nearest_neighbor"] < 60


def test_neighbors_are_measured_in_the_latents_of_the_model(tmp_path: Path) -> None:
    """Latents that are the same for all images leave a guess; those of a random encoder are better."""
    data = load_images(DataArguments(dataset_name="digits", max_eval_samples=50), 0)
    torch.manual_seed(0)
    model = AutoencoderModel(AutoencoderConfig(image_size=8, hidden_channels=[4], hidden_size=8, latent_dim=4))
    accuracies = []
    for scale in (1.0, 0.0):
        with torch.no_grad():
            model.encoder.to_latents.weight.mul_(scale)
        model.save_pretrained(tmp_path)
        accuracies.append(reduction.measure_model(data, str(tmp_path))["metrics"]["nearest_neighbor"])
    assert accuracies[1] < 20 < 35 < accuracies[0]
