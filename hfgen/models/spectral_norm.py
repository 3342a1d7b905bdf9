"""Layers that normalize their weights by the largest singular value (Miyato et al. 2018,
https://arxiv.org/abs/1802.05957), for discriminators. The file travels with the GAN's, which imports it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .image_model import at_least_float32


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value, which bounds how far the layer can stretch its input (Miyato et
    al. 2018, https://arxiv.org/abs/1802.05957). A convolution's weight is read as a matrix (out, in * height * width).

    One step of power iteration per training call tracks the singular value. Being a module of its own next to the
    layer, it leaves the layer's weight an ordinary parameter, which loads and saves under its ordinary name. The layer
    holds it in a tuple, unregistered, and applies it itself, so that an adapter can be wrapped around the layer.
    """

    left: Tensor

    def __init__(self, rows: int):
        super().__init__()
        self.register_buffer("left", torch.full((rows,), rows**-0.5))

    def forward(self, weight: Tensor) -> Tensor:
        # In float32, even under autocast and in a 16-bit model: an error in sigma scales the whole layer.
        with torch.autocast("cpu" if weight.is_meta else weight.device.type, enabled=False):
            matrix = at_least_float32(weight).flatten(1)
            with torch.no_grad():
                right = F.normalize(matrix.T @ self.left.to(matrix.dtype), dim=0)
                left = F.normalize(matrix @ right, dim=0)
                if self.training:
                    self.left.copy_(left)
            # The gradient flows only here: d sigma / d weight = left right^T.
            sigma = torch.dot(left, matrix @ right)
        return weight / sigma.clamp(min=1e-12)


class SpectralConv2d(nn.Conv2d):
    """A convolution that normalizes its weight. Without a norm, as PEFT makes some for adapters, it is ordinary."""

    norm: tuple[SpectralNorm, ...] = ()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self._conv_forward(hidden_states, _normalized_weight(self), self.bias)


class SpectralLinear(nn.Linear):
    """A fully connected layer that normalizes its weight."""

    norm: tuple[SpectralNorm, ...] = ()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.linear(hidden_states, _normalized_weight(self), self.bias)


class SpectralEmbedding(nn.Embedding):
    """An embedding that normalizes its weight."""

    norm: tuple[SpectralNorm, ...] = ()

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels, _normalized_weight(self))


def _normalized_weight(layer: SpectralConv2d | SpectralLinear | SpectralEmbedding) -> Tensor:
    weight: Tensor = layer.weight
    for norm in layer.norm:
        weight = norm(weight)
    return weight


def norm_of(layer: nn.Module) -> nn.Module:
    """The spectral norm of a layer that applies one, to be registered by the module that the layer is in."""
    if not isinstance(layer, (SpectralConv2d, SpectralLinear, SpectralEmbedding)):
        return nn.Identity()
    norm = SpectralNorm(len(layer.weight))
    layer.norm = (norm,)
    return norm
