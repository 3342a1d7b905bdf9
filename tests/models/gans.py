"""Small GANs and images for the tests of models."""

import torch
from torch import Tensor

from hfgen.models.modeling_gan import GANConfig, GANModel


def tiny_model(**fields: object) -> GANModel:
    """In evaluation mode, with weights larger than DCGAN's start, so that latents and labels matter."""
    torch.manual_seed(0)
    sizes = {
        "architecture": "dcgan",
        "image_size": 8,
        "generator_channels": [6, 4],
        "latent_dim": 5,
        "loss_type": "hinge",
    }
    model = GANModel(GANConfig(**{**sizes, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def aligned(model: GANModel) -> GANModel:
    """The model with its weights in memory of torch's own, which begins at multiples of 64 bytes.

    Those that were read from a file begin anywhere, and there some processors add up a dot product in another order.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def random_images(model: GANModel, batch: int = 4, seed: int = 1) -> Tensor:
    shape = (batch, model.config.num_channels, *model.config.image_size)
    return torch.rand(shape, generator=seeded(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
