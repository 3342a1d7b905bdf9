"""The GAN with residual networks: sizes, how it starts, what learns."""

from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hfgen.models.gan_losses import discriminator_loss, generator_loss
from hfgen.models.modeling_gan import GANConfig, GANModel
from hfgen.models.residual_gan import BottleneckBlock

from .gans import aligned, random_images, seeded, tiny_model


@pytest.mark.parametrize(
    "size, maps",
    [
        (8, [4]),
        (28, [7, 14]),
        (30, [15]),
        (32, [4, 8, 16]),
        (64, [4, 8, 16, 32]),
        (128, [4, 8, 16, 32, 64]),
        ([16, 40], [4, 8]),
    ],
)
def test_feature_maps_follow_from_the_image_size(size: int | list[int], maps: list[int]) -> None:
    """Down to 4 to 7 cells, as far as the size can be halved."""
    model = GANModel(GANConfig(image_size=size, num_channels=3)).eval()
    drawn: list[int] = []
    judged: list[int] = []
    for stage in model.generator.stages:
        stage.register_forward_hook(lambda layer, args, out: drawn.append(out.shape[-2]))
    for stage in model.discriminator.stages:
        stage.register_forward_hook(lambda layer, args, out: judged.append(out.shape[-2]))

    images = model.sample(2)

    assert images.shape == (2, 3, *model.config.image_size)
    assert model.discriminate(images).shape == (2,)
    assert drawn == maps and judged == maps[::-1]


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_blocks_start_as_the_identity(norm: str) -> None:
    model = GANModel(GANConfig(image_size=8, num_residual_blocks=2, generator_norm=norm))
    blocks = [module for module in model.modules() if isinstance(module, BottleneckBlock)]
    features = torch.randn(2, 64, 4, 4, generator=seeded())

    assert len(blocks) == 4
    assert all(torch.equal(block(features), features) for block in blocks)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("num_labels", [0, 10])
def test_a_fresh_model_neither_saturates_nor_vanishes(num_labels: int, norm: str) -> None:
    """Without normalization, the first weights alone decide how large activations are."""
    torch.manual_seed(0)
    model = GANModel(GANConfig(image_size=64, num_channels=3, num_labels=num_labels, generator_norm=norm))
    labels = torch.arange(64) % num_labels if num_labels else None

    images = model(torch.randn(64, 64), labels)
    logits = model.discriminate(images, labels)

    assert 0.05 < images.std() < 0.45
    assert 0.03 < logits.std() < 3 and logits.abs().max() < 10


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("loss_type", ["relativistic", "non_saturating", "hinge", "wasserstein"])
def test_every_parameter_learns(loss_type: str, norm: str) -> None:
    model = tiny_model(architecture="residual", loss_type=loss_type, num_labels=2, generator_norm=norm).train()
    labels = torch.arange(8) % 2
    fake = model(torch.randn(8, 5, generator=seeded()), labels)

    real_logits = model.discriminate(random_images(model, 8), labels)
    discriminator_loss(real_logits, model.discriminate(fake.detach(), labels), loss_type).backward()
    # The last bias moves real and generated images alike, which only the non-saturating loss and a hinge notice.
    dead = {"discriminator.head.bias"}
    assert {name for name, p in model.named_parameters() if "discriminator" in name and not p.grad.any()} <= dead

    generator_loss(model.discriminate(fake, labels), loss_type, real_logits.detach()).backward()
    assert [name for name, p in model.generator.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_an_image_is_drawn_and_judged_by_itself_even_in_training() -> None:
    """Which batch normalization would not allow, and penalties on the gradient of each image need."""
    model = tiny_model(architecture="residual", generator_norm="none").train()
    latents, images = torch.randn(4, 5, generator=seeded()), random_images(model)

    torch.testing.assert_close(model(latents)[1:2], model(latents[1:2]))
    torch.testing.assert_close(model.discriminate(images)[1:2], model.discriminate(images[1:2]))


def test_normalization_of_a_residual_network_is_refused() -> None:
    with pytest.raises(StrictDataclassError, match='must be "none" with architecture "residual", got "spectral"'):
        GANConfig(discriminator_norm="spectral")


def test_a_dcgan_without_batch_normalization_in_its_generator_is_refused() -> None:
    with pytest.raises(StrictDataclassError, match='generator_norm must be "batch" with architecture "dcgan"'):
        GANConfig(architecture="dcgan", generator_norm="none")


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_saved_model_draws_and_judges_as_before(tmp_path: Path, norm: str) -> None:
    model = tiny_model(architecture="residual", num_labels=2, generator_norm=norm).train()
    model(torch.randn(8, 5, generator=seeded()), torch.arange(8) % 2)  # running statistics, where there are any
    model.eval().save_pretrained(tmp_path)
    latents, labels = torch.randn(3, 5, generator=seeded()), torch.tensor([0, 1, 1])
    images = model(latents, labels)

    loaded = aligned(GANModel.from_pretrained(tmp_path))

    assert torch.equal(loaded(latents, labels), images)
    assert torch.equal(loaded.discriminate(images, labels), model.discriminate(images, labels))


def test_images_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(StrictDataclassError, match=r"image_size \[27, 28\] must be divisible by 2"):
        GANConfig(image_size=[27, 28])
