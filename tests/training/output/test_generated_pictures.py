"""Pictures of samples beside real images, on paths, and above the nearest training images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hfgen import GANConfig, GANModel
from hfgen.image_processing import image_grid
from training.config.flags import DataArguments
from training.data.images import load_images
from training.evaluation.feature_classifier import train_classifier
from training.evaluation.reference import Reference
from training.output.generated_pictures import draw_beside, draw_generated, draw_nearest, spherical_path
from training.output.pictures import GAP


@pytest.fixture(scope="module")
def reference() -> Reference:
    reference = Reference(load_images(DataArguments(dataset_name="digits"), seed=0), torch.device("cpu"))
    reference._classifier = train_classifier(reference.data, torch.device("cpu"), steps=30)
    return reference


@pytest.mark.parametrize("conditional", [False, True])
def test_a_finished_model_is_drawn_the_same_way_each_time(conditional: bool, reference: Reference) -> None:
    torch.manual_seed(0)
    config = GANConfig(image_size=8, latent_dim=4, generator_channels=[8, 4], num_labels=10 if conditional else 0)
    model = GANModel(config).eval()
    pictures = draw_generated(model, reference)
    assert set(pictures) == {"comparison", "interpolation", "nearest"}
    for name, picture in draw_generated(model, reference).items():
        assert np.array_equal(np.asarray(picture), np.asarray(pictures[name]))
    assert set(draw_generated(model, reference, with_nearest=False)) == {"comparison", "interpolation"}


def test_real_images_are_on_the_left_and_samples_on_the_right() -> None:
    picture = np.asarray(draw_beside(torch.zeros(4, 1, 8, 8), torch.full((4, 1, 8, 8), 0.5), columns=2))
    half = (picture.shape[1] - GAP) // 2
    left, right = picture[:, :half], picture[:, half + GAP :]
    assert {*np.unique(left)} == {0, 255} and {*np.unique(right)} == {128, 255}
    assert (picture[:, half : half + GAP] == 255).all()


def test_below_a_copy_of_a_training_image_is_that_image(reference: Reference) -> None:
    pixels = reference.training_set()[0][5:7].float() / 255
    picture = np.asarray(draw_nearest(pixels, reference))
    expected = np.asarray(image_grid(torch.cat([pixels, pixels]), columns=2, scale=8))
    assert np.array_equal(picture, expected)


def test_a_path_on_a_sphere_keeps_its_radius_and_its_pace() -> None:
    first, last = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    path = spherical_path(first, last, 4)
    angles = torch.atan2(path[:, 1], path[:, 0]).rad2deg()
    assert angles.tolist() == pytest.approx([0, 30, 60, 90], abs=1e-3)
    assert path.norm(dim=1).tolist() == pytest.approx([3] * 4)
    assert torch.allclose(spherical_path(first, first, 3), first.expand(3, 2))
