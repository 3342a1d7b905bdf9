"""The network of a VAE's recipe in a bare PyTorch loop: what hfgen's training speed is measured against.

Plain fp32 in the default memory layout, data in memory, Adam, and nothing else: no logging, evaluation, checkpoints,
schedule or check for values that are not finite. `training.tools.vae` runs it.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from hfgen import VAEConfig

from ...config.flags import DataArguments
from ...data.images import load_images
from ..measuring.runs import answer_task


class Residual(nn.Sequential):
    """x + layers(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def build_encoder(config: VAEConfig) -> nn.Sequential:
    """The encoder of vector latents, layer for layer: pixels in [-1, 1] -> means and log-variances."""
    layers: list[nn.Module] = []
    channels = config.num_channels
    for width in config.hidden_channels:
        layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), *_residuals(width, config), _act(config)]
        channels = width
    features = channels * math.prod(config.feature_size)
    layers += [nn.Flatten(), nn.Linear(features, config.hidden_size), _act(config)]
    return nn.Sequential(*layers, nn.Linear(config.hidden_size, 2 * config.latent_dim))


def build_decoder(config: VAEConfig) -> nn.Sequential:
    """The decoder of vector latents, layer for layer: latents -> logits of the pixels."""
    channels = config.hidden_channels[-1]
    features = channels * math.prod(config.feature_size)
    layers: list[nn.Module] = [nn.Linear(config.latent_dim, config.hidden_size), _act(config)]
    layers += [nn.Linear(config.hidden_size, features), nn.Unflatten(1, (channels, *config.feature_size))]
    for width in [*config.hidden_channels[-2::-1], config.num_channels]:
        layers += [_act(config), *_residuals(channels, config)]
        layers.append(nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1))
        channels = width
    return nn.Sequential(*layers)


def negative_elbo(encoder: nn.Module, decoder: nn.Module, pixels: Tensor, noise: Tensor) -> Tensor:
    """Nats per image, averaged over the batch.

    Args:
        encoder, decoder: as built above.
        pixels: (batch, channels, height, width) in [0, 1].
        noise: (batch, latent_dim), standard normal.
    """
    mean, log_variance = encoder(2 * pixels - 1).chunk(2, dim=1)
    logits = decoder(mean + torch.exp(0.5 * log_variance) * noise)
    reconstruction = F.binary_cross_entropy_with_logits(logits, pixels, reduction="sum")
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    return (reconstruction + kl) / len(pixels)


def train(config: VAEConfig, images: Tensor, batch_size: int, learning_rate: float, seconds: float) -> dict[str, Any]:
    """Trains for a time; returns images_per_second and what it follows from.

    Args:
        config: of vector latents and a Bernoulli likelihood, without labels.
        images: float (examples, channels, height, width) in [0, 1].
        batch_size: images in a step.
        learning_rate: of Adam.
        seconds: of training.
    """
    encoder, decoder = build_encoder(config), build_decoder(config)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    started, examples = time.perf_counter(), 0
    while True:
        for rows in torch.randperm(len(images)).split(batch_size):
            pixels = images[rows]
            loss = negative_elbo(encoder, decoder, pixels, torch.randn(len(rows), config.latent_dim))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            examples += len(rows)
            elapsed = time.perf_counter() - started
            if elapsed >= seconds:
                count = sum(parameter.numel() for parameter in parameters)
                return {"images_per_second": examples / elapsed, "examples_seen": examples, "seconds_trained": elapsed,
                        "loss": loss.item(), "num_parameters": count}  # fmt: skip


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Trains on the data of the task; returns what the table records of it."""
    torch.manual_seed(task["seed"])
    torch.set_num_threads(task["threads"])
    data = load_images(DataArguments(**task["data"]), task["seed"])
    config = VAEConfig(image_size=list(data.image_size), num_channels=data.num_channels, **task["config"])
    images = data.train.pixels.float() / 255  # type: ignore[attr-defined]
    return train(config, images, task["batch_size"], task["learning_rate"], task["seconds"])


def _act(config: VAEConfig) -> nn.Module:
    return ACT2FN[config.hidden_act]


def _residuals(channels: int, config: VAEConfig) -> list[nn.Module]:
    return [
        Residual(
            _act(config),
            nn.Conv2d(channels, channels, 3, padding=1),
            _act(config),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        for _ in range(config.num_residual_blocks)
    ]


if __name__ == "__main__":
    answer_task(__doc__, measure)
