"""A DCGAN in a bare PyTorch loop: what the preset dcgan is measured against.

Networks, optimizer and batch are those of the preset; the loop is the one of the paper (Radford et al. 2015,
https://arxiv.org/abs/1511.06434). The discriminator sees real and generated images apart, and the generator then
learns from the same generated images. Plain fp32 in the default memory layout, data in memory, and nothing else: no
logging, evaluation, checkpoints or check for values that are not finite. `training.tools.gan` runs it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen import GANConfig, GANModel

from ...config.flags import DataArguments
from ...config.scripts import GAN_PRESETS
from ...data.images import load_images
from ...evaluation.sample_quality import sample_quality
from ..measuring.runs import answer_task


PRESET = GAN_PRESETS["dcgan"]
FIELDS = (
    "architecture",
    "loss_type",
    "discriminator_norm",
    "latent_dim",
)  # of the preset, those of the model's config
KINDS_OF_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)


def preset_config(image_size: tuple[int, int], num_channels: int) -> GANConfig:
    """The networks of the preset for images of this size."""
    fields = {name: PRESET[name] for name in FIELDS}
    return GANConfig(image_size=list(image_size), num_channels=num_channels, **fields)


def build_generator(config: GANConfig) -> nn.Sequential:
    """The generator, layer for layer: latents (batch, latent_dim) -> pixels in [-1, 1]."""
    assert config.generator_channels is not None
    widths = config.generator_channels
    shape = (widths[0], *config.feature_size(len(widths)))
    layers: list[nn.Module] = [nn.Linear(config.latent_dim, math.prod(shape), bias=False), nn.Unflatten(1, shape)]
    for width, narrower in zip(widths, widths[1:]):
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1, bias=False))
    layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU()]
    layers.append(nn.ConvTranspose2d(widths[-1], config.num_channels, 4, stride=2, padding=1))
    return nn.Sequential(*layers, nn.Tanh())


def build_discriminator(config: GANConfig) -> nn.Sequential:
    """The discriminator, layer for layer: pixels in [-1, 1] -> logits (batch, 1)."""
    assert config.discriminator_channels is not None
    layers: list[nn.Module] = []
    channels = config.num_channels
    for width in config.discriminator_channels:
        layers.append(nn.Conv2d(channels, width, 4, stride=2, padding=1))
        layers += [nn.BatchNorm2d(width)] if len(layers) > 1 else []  # none at the input
        layers.append(nn.LeakyReLU(0.2))
        channels = width
    features = channels * math.prod(config.feature_size(len(config.discriminator_channels)))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 1))


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Sets weights as in the paper: normal with standard deviation 0.02, batch scales around 1."""
    for layer in network.modules():
        if isinstance(layer, KINDS_OF_LAYERS):
            nn.init.normal_(layer.weight, mean=1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def as_model(config: GANConfig, generator: nn.Module, discriminator: nn.Module) -> GANModel:
    """The [`hfgen.GANModel`] with these weights, in evaluation mode, so that any GAN is measured by the same code."""
    model = GANModel(config)
    for part, bare in ((model.generator, generator), (model.discriminator, discriminator)):
        for kind in KINDS_OF_LAYERS:
            for ours, theirs in zip(_layers(part, kind), _layers(bare, kind), strict=True):
                ours.load_state_dict(theirs.state_dict())
    return model.eval()


def _layers(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, kind)]


@dataclass
class Player:
    """One of the two networks, and its optimizer."""

    network: nn.Module
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, network: nn.Module) -> Player:
        """With Adam as in the paper."""
        betas = (PRESET["adam_beta1"], PRESET["adam_beta2"])
        return cls(network, torch.optim.Adam(network.parameters(), lr=PRESET["learning_rate"], betas=betas))

    def minimize(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def take_step(generator: Player, discriminator: Player, real: Tensor, latents: Tensor) -> tuple[float, float]:
    """Updates both networks.

    Args:
        generator, discriminator: the two networks.
        real: (batch, channels, height, width) in [-1, 1].
        latents: (batch, latent_dim), standard normal.

    Returns:
        the losses of discriminator and generator before the update of each, the latter non-saturating.
    """
    fake = generator.network(latents)
    real_loss = F.softplus(-discriminator.network(real)).mean()
    loss = real_loss + F.softplus(discriminator.network(fake.detach())).mean()
    discriminator.minimize(loss)
    generator_loss = F.softplus(-discriminator.network(fake)).mean()
    generator.minimize(generator_loss)
    return loss.item(), generator_loss.item()


def train(config: GANConfig, images: Tensor, batch_size: int, seconds: float) -> tuple[GANModel, dict[str, Any]]:
    """Trains for a time.

    Args:
        config: of the preset.
        images: float (examples, channels, height, width) in [-1, 1].
        batch_size: images in a step.
        seconds: of training.

    Returns:
        the model; images_per_second, and what it follows from.
    """
    generator, discriminator = (Player.of(build(config)) for build in (build_generator, build_discriminator))
    for player in (generator, discriminator):
        initialize(player.network)
    started, examples, steps = time.perf_counter(), 0, 0
    while True:
        for rows in torch.randperm(len(images)).split(batch_size):
            latents = torch.randn(len(rows), config.latent_dim)
            losses = take_step(generator, discriminator, images[rows], latents)
            examples, steps = examples + len(rows), steps + 1
            elapsed = time.perf_counter() - started
            if elapsed >= seconds:
                model = as_model(config, generator.network, discriminator.network)
                return model, {"images_per_second": examples / elapsed, "examples_seen": examples, "steps": steps,
                               "seconds_trained": elapsed, "losses": losses,
                               "num_parameters": model.num_parameters()}  # fmt: skip


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Trains on the data of the task; returns what the table records, with the metrics of `hfgen train` if the task
    has `quality_samples`."""
    torch.manual_seed(task["seed"])
    torch.set_num_threads(task["threads"])
    data = load_images(DataArguments(**task["data"]), task["seed"])
    images = data.train.pixels.float() / 127.5 - 1  # type: ignore[attr-defined]
    config = preset_config(data.image_size, data.num_channels)
    model, found = train(config, images, PRESET["per_device_train_batch_size"], task["seconds"])
    if task["quality_samples"]:
        found["metrics"] = sample_quality(model, data, task["quality_samples"]).by_name()
    return found


if __name__ == "__main__":
    answer_task(__doc__, measure)
