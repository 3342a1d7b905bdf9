"""How well a network that never played the game tells samples from real images.

The discriminator of a GAN cannot certify its generator: both learned together, and either may have stopped. So a fresh
network is trained on frozen samples for a fixed budget and tested on images and samples that it has not seen (a
classifier two-sample test: Lopez-Paz & Oquab 2017, https://arxiv.org/abs/1610.06545). Its accuracy compares between
models on one dataset; the budget is part of the measure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .feature_classifier import Classifier, image_batches


STEPS, HALF_BATCH = 200, 64


@dataclass
class RealAndFake:
    """Images to tell apart, uint8 (images, channels, height, width) each: the same kind of numbers, so that rounding
    gives nothing away."""

    real: Tensor
    fake: Tensor


def fresh_critic_accuracy(training: RealAndFake, held_out: RealAndFake, device: torch.device) -> float:
    """Trains a small network to tell real images from generated ones, and tests it.

    Args:
        training: what it learns from; generated images must not be those of `held_out`.
        held_out: what it is tested on; both halves count equally.
        device: where it is trained.

    Returns:
        The share of held-out images about which it is right: 0.5 if it cannot tell, 1 if it always can.
    """
    critic = _train_critic(training, device)
    with torch.no_grad():
        share_fake = [
            torch.cat([critic(images).argmax(1) for images in image_batches(pixels, 500, device)]).double().mean()
            for pixels in (held_out.real, held_out.fake)
        ]
    return float((1 - share_fake[0] + share_fake[1]) / 2)


def _train_critic(training: RealAndFake, device: torch.device) -> Classifier:
    channels, height, width = training.real.shape[1:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = Classifier(channels, (height, width), 2).to(device)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    targets = torch.arange(2, device=device).repeat_interleave(HALF_BATCH)
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in range(STEPS):
            halves = [
                pixels[torch.randint(len(pixels), (HALF_BATCH,), generator=generator)]
                for pixels in (training.real, training.fake)
            ]
            images = next(image_batches(torch.cat(halves), 2 * HALF_BATCH, device))
            F.cross_entropy(critic(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return critic.eval()
