"""What all models of images have in common: the images they take, their configs, and how they load."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from hfgen import MODELS, GANModel, VAEModel


SIZES: dict[str, dict[str, Any]] = {
    "autoencoder": {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3},
    "vae": {"image_size": 8, "hidden_channels": [4, 6], "hidden_size": 16, "latent_dim": 3, "likelihood": "gaussian"},
    "gan": {"image_size": 8, "generator_channels": [6, 4], "latent_dim": 5},
}
ARCHITECTURES = {entry.family: entry for entry in MODELS.values() if entry.family in SIZES}
each_family = pytest.mark.parametrize("family", SIZES)


def tiny_model(family: str) -> Any:
    torch.manual_seed(0)
    return ARCHITECTURES[family].base_model_class(ARCHITECTURES[family].config_class(**SIZES[family])).eval()


def output(model: Any) -> Tensor:
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    if isinstance(model, GANModel):
        drawn = model.sample(4, generator=torch.Generator().manual_seed(2))
        return torch.cat([drawn.flatten(), model.discriminate(images)])
    noise = {"noise": torch.ones(2, 3)} if isinstance(model, VAEModel) else {}
    return model(images, **noise).reconstruction


@pytest.mark.parametrize(
    "images, found",
    [
        (torch.zeros(1, 8, 8), "(1, 8, 8)"),
        (torch.zeros(2, 3, 8, 8), "(2, 3, 8, 8)"),
        (torch.zeros(2, 1, 8, 12), "(2, 1, 8, 12)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "torch.uint8"),
    ],
)
@each_family
def test_images_that_do_not_fit_are_refused(family: str, images: Tensor, found: str) -> None:
    model = tiny_model(family)
    for name in {"autoencoder": ("forward", "encode", "anomaly_score"), "vae": ("forward", "encode", "log_likelihood"),
                 "gan": ("discriminate",)}[family]:  # fmt: skip
        with pytest.raises(ValueError) as error:
            getattr(model, name)(images)
        assert "(batch, 1, 8, 8)" in str(error.value) and found in str(error.value)


@each_family
def test_a_field_that_is_changed_later_is_checked_by_the_model(family: str) -> None:
    config = ARCHITECTURES[family].config_class()
    config.image_size = 30

    with pytest.raises(StrictDataclassError, match="must be divisible"):
        ARCHITECTURES[family].base_model_class(config)


@pytest.mark.parametrize(
    "image_size", [(16, 32), np.array([16, 32]), [np.int64(16), np.int32(32)], torch.Size([16, 32])], ids=repr
)
@each_family
def test_tuples_and_numbers_of_numpy_become_plain_numbers(tmp_path: Path, family: str, image_size: Any) -> None:
    config_class = ARCHITECTURES[family].config_class
    config = config_class(image_size=image_size, latent_dim=np.int64(3))

    assert config == config_class(image_size=[16, 32], latent_dim=3)
    assert config.image_size == [16, 32] and type(config.latent_dim) is int
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert config_class.from_pretrained(tmp_path, image_size=np.int64(8)).image_size == [8, 8]


@pytest.mark.parametrize("image_size", [True, "32", 32.0, (16, 32, 3), None])
@each_family
def test_an_image_size_that_is_none_is_refused(family: str, image_size: Any) -> None:
    with pytest.raises(StrictDataclassError, match="image_size"):
        ARCHITECTURES[family].config_class(image_size=image_size)


@pytest.mark.parametrize("num_labels", [0, 1, 2, 10])
@pytest.mark.parametrize("family", ["vae", "gan"])
def test_number_of_classes_survives_saving(tmp_path: Path, family: str, num_labels: int) -> None:
    config_class = ARCHITECTURES[family].config_class
    config_class(num_labels=num_labels).save_pretrained(tmp_path)

    assert config_class.from_pretrained(tmp_path).num_labels == num_labels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_family
def test_loads_in_half_the_bytes(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)

    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)

    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert torch.equal(output(loaded), output(model.to(dtype)))


@each_family
def test_weights_of_another_shape_are_refused_unless_allowed(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)

    with pytest.raises(RuntimeError, match="mismatched"):
        type(model).from_pretrained(tmp_path, latent_dim=7)
    assert type(model).from_pretrained(tmp_path, latent_dim=7, ignore_mismatched_sizes=True).config.latent_dim == 7
