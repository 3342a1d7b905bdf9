"""What generator and discriminator minimize, and the penalties that keep their game stable. The file travels with the
GAN's, which imports it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .image_model import at_least_float32


LOSS_TYPES = ("non_saturating", "hinge", "wasserstein", "relativistic")


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, loss_type: str) -> Tensor:
    """The discriminator's loss, averaged over the batch, without a gradient penalty.

    Args:
        real_logits, fake_logits: (batch,) logits of real and of generated images.
        loss_type: "non_saturating": -log D(x) - log(1 - D(G(z))); "hinge": max(0, 1 - real) + max(0, 1 + fake);
            "wasserstein": fake - real; "relativistic": -log sigmoid(real - fake), pair by pair.

    Raises:
        ValueError: there is no such loss.
    """
    if loss_type == "non_saturating":
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
    if loss_type == "hinge":
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
    if loss_type == "wasserstein":
        return fake_logits.mean() - real_logits.mean()
    if loss_type == "relativistic":
        return F.softplus(fake_logits - real_logits).mean()
    raise _no_such_loss(loss_type)


def generator_loss(fake_logits: Tensor, loss_type: str, real_logits: Tensor | None = None) -> Tensor:
    """The generator's loss, averaged over the batch.

    Args:
        fake_logits: (batch,) logits of generated images.
        loss_type: "non_saturating": -log D(G(z)); "hinge" and "wasserstein": -fake; "relativistic":
            -log sigmoid(fake - real), pair by pair.
        real_logits: (batch,) logits of real images; needed by the relativistic loss alone.

    Raises:
        ValueError: there is no such loss, or the relativistic one has no real_logits.
    """
    if loss_type == "non_saturating":
        return F.softplus(-fake_logits).mean()
    if loss_type in ("hinge", "wasserstein"):
        return -fake_logits.mean()
    if loss_type == "relativistic":
        if real_logits is None:
            raise ValueError(
                'real_logits must be given with loss_type "relativistic", which compares each generated image with '
                "a real one, got None. Give the discriminator's logits of as many real images."
            )
        return F.softplus(real_logits - fake_logits).mean()
    raise _no_such_loss(loss_type)


def gradient_penalty(
    discriminator: nn.Module, real: Tensor, fake: Tensor, labels: Tensor | None, mix: Tensor
) -> Tensor:
    """E[(|grad D(x_mix)| - 1)^2] between real and generated images (Gulrajani et al. 2017,
    https://arxiv.org/abs/1704.00028); for the discriminator, so no gradient reaches the generator.

    Args:
        discriminator: maps images and labels to logits (batch,).
        real, fake: (batch, channels, height, width) in [0, 1].
        labels: (batch,) class indices, or None.
        mix: (batch,) uniform random numbers: 0 takes the real image, 1 the generated one.
    """
    real, fake = at_least_float32(real.detach()), at_least_float32(fake.detach())
    images = torch.lerp(real, fake, mix.to(real.dtype).view(-1, 1, 1, 1))
    # Second derivatives in 16 bits are mostly noise.
    with torch.autocast(images.device.type, enabled=False):
        _, squares = logits_and_squared_gradients(discriminator, images, labels)
    # The gradient of the norm is infinite at zero, where the discriminator is flat.
    return ((squares + 1e-12).sqrt() - 1).square().mean()


def logits_and_squared_gradients(
    discriminator: nn.Module, pixel_values: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The logits (batch,) of images and |grad D|^2 (batch,), the square that R1 (Mescheder et al. 2018,
    https://arxiv.org/abs/1801.04406) averages over real images and R2 over generated ones.

    The gradient is that with respect to pixels in [-1, 1], as the networks see them: half of that in [0, 1].

    Args:
        discriminator: maps images and labels to logits (batch,).
        pixel_values: (batch, channels, height, width) in [0, 1].
        labels: (batch,) class indices, or None.
    """
    images = at_least_float32(pixel_values.detach()).requires_grad_()
    logits = discriminator(images, labels)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return logits, (gradient / 2).flatten(1).square().sum(1)


def _no_such_loss(loss_type: str) -> ValueError:
    return ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}. See GANConfig.")
