"""The losses of the GAN's training: which images the discriminator judges together, and what it is penalized for."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen import GANConfig, GANModel
from hfgen.models.gan_losses import discriminator_loss, logits_and_squared_gradients
from training.augmentation import Augmentation
from training.randomness import BatchRNG
from training.train_gan import DiscriminatorLoss, GeneratorLoss


AS_THEY_ARE = Augmentation("none")
CPU = torch.device("cpu")


def model(**fields: object) -> GANModel:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "generator_channels": [6, 4], "latent_dim": 5}
    made = GANModel(GANConfig(**{**sizes, **fields})).train()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def images(count: int = 8) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def rng(count: int = 8) -> BatchRNG:
    return BatchRNG(("test",), count, slice(0, count), CPU)


def generated(gan: GANModel, count: int = 8) -> Tensor:
    """The images that the losses generate, which draw latents first."""
    with torch.no_grad():
        return gan.generator(rng(count).normal(gan.config.latent_dim))


def test_batch_normalization_sees_real_and_generated_images_apart() -> None:
    """As in DCGAN's paper, and as the generator's own batches are judged. Judged in one batch, the discriminator would
    learn from statistics that the generator's images never meet, and the game would end in noise."""
    gan = model(architecture="dcgan", loss_type="non_saturating", discriminator_norm="batch")

    loss, values = DiscriminatorLoss(gan, AS_THEY_ARE, 1.0)({"pixel_values": images()}, rng(), 0.0)

    real_logits, fake_logits = gan.discriminator(images()), gan.discriminator(generated(gan))
    torch.testing.assert_close(loss, discriminator_loss(real_logits, fake_logits, "non_saturating"))
    together = gan.discriminator(torch.cat([images(), generated(gan)])).chunk(2)
    assert not torch.allclose(loss, discriminator_loss(*together, "non_saturating"))
    assert values["gradient_penalty"] == 0


@pytest.mark.parametrize("progress, factor", [(0.0, 1.0), (0.5, 0.55), (1.0, 0.1)])
def test_r1_and_r2_join_the_loss_and_fade_to_a_tenth(progress: float, factor: float) -> None:
    gan = model(gradient_penalty_weight=3.0)

    loss, values = DiscriminatorLoss(gan, AS_THEY_ARE, 1.0)({"pixel_values": images()}, rng(), progress)

    fake = generated(gan)
    real_logits, real_squares = logits_and_squared_gradients(gan.discriminator, images(), None)
    fake_logits, fake_squares = logits_and_squared_gradients(gan.discriminator, fake, None)
    plain, penalty = (
        discriminator_loss(real_logits, fake_logits, "relativistic"),
        real_squares.mean() + fake_squares.mean(),
    )
    torch.testing.assert_close(values["discriminator_loss"], plain)
    torch.testing.assert_close(values["gradient_penalty"], penalty)
    torch.testing.assert_close(loss, plain + 3 / 2 * factor * penalty)


def test_real_and_generated_images_are_changed_before_they_are_judged() -> None:
    gan, augmentation, numbers = model(gradient_penalty_weight=0.0), Augmentation("always", mirror=True), rng()

    loss, _ = DiscriminatorLoss(gan, augmentation, 1.0)({"pixel_values": images()}, rng(), 0.0)

    with torch.no_grad():
        fake = gan.generator(numbers.normal(gan.config.latent_dim))
        real = augmentation(augmentation.mirrored(images(), numbers), numbers)
        fake = augmentation(fake, numbers)
        expected = discriminator_loss(gan.discriminator(real), gan.discriminator(fake), "relativistic")
        unchanged = discriminator_loss(gan.discriminator(images()), gan.discriminator(generated(gan)), "relativistic")
    torch.testing.assert_close(loss, expected)
    assert not torch.allclose(expected, unchanged, rtol=1e-4)


def test_a_generator_learns_through_the_changes() -> None:
    gan = model(loss_type="non_saturating")

    loss, _ = GeneratorLoss(gan, Augmentation("always"))({"pixel_values": images()}, rng(), 0.0)
    loss.backward()

    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in gan.generator.parameters()
    )
    numbers = rng()
    changed = Augmentation("always")(gan.generator(numbers.normal(gan.config.latent_dim)), numbers)
    torch.testing.assert_close(loss, F.softplus(-gan.discriminator(changed)).mean())


@pytest.mark.parametrize("num_labels", [0, 2])
def test_a_share_of_each_batch_is_penalized_and_all_of_it_judged(num_labels: int) -> None:
    gan = model(num_labels=num_labels)
    batch = {"pixel_values": images(), "labels": torch.arange(8) % 2}

    _, whole = DiscriminatorLoss(gan, AS_THEY_ARE, 1.0)(batch, rng(), 0.0)
    _, quarter = DiscriminatorLoss(gan, AS_THEY_ARE, 0.25)(batch, rng(), 0.0)

    torch.testing.assert_close(quarter["discriminator_loss"], whole["discriminator_loss"])
    torch.testing.assert_close(quarter["discriminator_accuracy"], whole["discriminator_accuracy"])
    labels = torch.tensor([0, 1, 0, 1]) if num_labels else None
    with torch.no_grad():
        fake = gan.generator(rng().normal(5), batch["labels"] if num_labels else None)
    first = torch.cat([images()[:2], fake[:2]])
    _, squares = logits_and_squared_gradients(gan.discriminator, first, labels)
    torch.testing.assert_close(quarter["gradient_penalty"], 2 * squares.mean())


def test_the_generator_is_compared_with_real_images_pair_by_pair() -> None:
    gan = model()

    loss, _ = GeneratorLoss(gan, AS_THEY_ARE)({"pixel_values": images()}, rng(), 0.0)
    loss.backward()

    pairs = zip(gan.discriminator(generated(gan)).tolist(), gan.discriminator(images()).tolist())
    expected = sum(math.log1p(math.exp(real - fake)) for fake, real in pairs) / 8
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert all(parameter.grad is None for parameter in gan.discriminator.parameters())
    assert all(parameter.requires_grad for parameter in gan.discriminator.parameters())
