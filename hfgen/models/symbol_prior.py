"""What a codec's symbols cost while it is trained: a prior over the values of each channel, for a range of
qualities."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


ANCHORS = 5  # qualities from 0 to 1 for which gains and priors are learned; others lie between two of them
COMPONENTS = 3  # logistics in the prior of a channel
PRIOR_SPEED = 10.0  # its parameters have a longer way to go than the weights of the networks


class LevelParameters(nn.Module):
    """Parameters that depend on the quality: learned for a few qualities, and interpolated linearly between them.

    Args:
        shape: of the parameters of one quality.
        first, last: initial values at quality 0 and 1.
        speed: what the weights are multiplied by, so that an optimizer with steps of a fixed size moves them faster.
    """

    def __init__(self, *shape: int, first: float = 0.0, last: float = 0.0, speed: float = 1.0):
        super().__init__()
        self.first, self.last, self.speed = first / speed, last / speed, speed
        self.weight = nn.Parameter(torch.empty(ANCHORS, *shape))

    def forward(self, quality: Tensor) -> Tensor:
        """Parameters (batch, *shape) for qualities (batch,) in [0, 1]."""
        position = quality.to(self.weight.dtype) * (ANCHORS - 1)
        lower = position.floor().clamp(0, ANCHORS - 2)
        fraction = (position - lower).view(-1, *[1] * (self.weight.ndim - 1))
        index = lower.long()
        return torch.lerp(self.weight[index], self.weight[index + 1], fraction) * self.speed

    def initial_weight(self) -> Tensor:
        """What the weight starts from."""
        steps = torch.linspace(self.first, self.last, ANCHORS, dtype=self.weight.dtype, device=self.weight.device)
        return steps.view(-1, *[1] * (self.weight.ndim - 1)).expand_as(self.weight)


class MixturePrior(nn.Module):
    """A mixture of logistics for each channel of the symbols, with means and scales that follow the gains."""

    def __init__(self, channels: int):
        super().__init__()
        self.logits = LevelParameters(channels, COMPONENTS, speed=PRIOR_SPEED)
        self.means = LevelParameters(channels, COMPONENTS, speed=PRIOR_SPEED)
        self.log_scales = LevelParameters(channels, COMPONENTS, speed=PRIOR_SPEED)

    def bits(self, symbols: Tensor, log_gains: Tensor, quality: Tensor) -> Tensor:
        """Bits of each symbol: -log2 of the probability of the interval of length 1 around it.

        Args:
            symbols: (batch, channels, h, w), rounded or with noise.
            log_gains: (batch, channels), what latents were scaled by.
            quality: (batch,) in [0, 1].
        """
        gains = log_gains[:, :, None].exp()
        log_weights = self.logits(quality).log_softmax(2)
        # Components differ from the start: the first is narrow, the last wide.
        spread = torch.arange(COMPONENTS, device=symbols.device) - (COMPONENTS - 1) / 2
        log_scales = (self.log_scales(quality) + spread + log_gains[:, :, None]).clamp(-5, 7)
        parameters = (log_weights, self.means(quality) * gains, torch.exp(-log_scales))
        log_weights, means, slopes = (values[..., None, None] for values in parameters)
        centered = (symbols[:, :, None] - means) * slopes
        # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), exact in both tails.
        inside = F.logsigmoid(centered + slopes / 2) + F.logsigmoid(slopes / 2 - centered)
        log_prob = (log_weights + inside + torch.log(-torch.expm1(-slopes))).logsumexp(2)
        return -log_prob / math.log(2)
