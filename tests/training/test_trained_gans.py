"""Every kind of GAN that the flags offer learns handwritten digits in some seconds: what it draws is nearer to digits
than pixels drawn each from its own distribution, and as varied as they are."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from hfgen import GANConfig, GANModel
from hfgen.metrics import frechet_distance
from training.augmentation import Augmentation
from training.config.flags import RunArguments
from training.config.scripts import GAN_PRESETS, SCRIPTS
from training.optim import EMA, build_optimizer
from training.randomness import BatchRNG
from training.train_gan import DiscriminatorLoss, GeneratorLoss


AS_THEY_ARE = Augmentation("none")
STEPS = 400
BATCH = 64
# Those of presets and defaults that are the training's own, and not the network's.
OPTIMIZER_FLAGS = {"optimizer", "muon_momentum", "adam_beta1", "adam_beta2"}
TRAINING_FLAGS = {*OPTIMIZER_FLAGS, "learning_rate", "ema_decay", "discriminator_steps", "penalized_share"}
PENALIZED = {"gradient_penalty_weight": 1.0, "learning_rate": 1e-2}
KINDS = {
    "default": {},
    **GAN_PRESETS,
    "dcgan relativistic": {**PENALIZED, "architecture": "dcgan", "discriminator_norm": "none", "learning_rate": 4e-3},
    "dcgan hinge, batch": {**GAN_PRESETS["dcgan"], "loss_type": "hinge"},
    "residual non-saturating": {**PENALIZED, "loss_type": "non_saturating"},
    "residual hinge": {**PENALIZED, "loss_type": "hinge"},
    "residual wasserstein": {"loss_type": "wasserstein", "discriminator_steps": 2},
}


@functools.cache
def digits() -> Tensor:
    """1,797 images of 8 x 8 pixels in [0, 1]."""
    return torch.from_numpy(load_digits().images).float()[:, None] / 16


@functools.cache
def distance_of_independent_pixels() -> float:
    """Fréchet distance, in pixels, of images whose pixels are drawn each from its own distribution."""
    generator, pixels = torch.Generator().manual_seed(0), digits().flatten(1)
    rows = torch.randint(len(pixels), pixels.shape, generator=generator)
    return frechet_distance(pixels, pixels.gather(0, rows))


def train(settings: dict[str, object]) -> GANModel:
    """Trains with the losses of train_gan.py and the flags of a preset, in a bare loop."""
    defaults = {**SCRIPTS["gan"].defaults, "discriminator_steps": 1, "penalized_share": 1.0}
    flags = {**defaults, **{name: value for name, value in settings.items() if name in TRAINING_FLAGS}}
    fields = {name: value for name, value in settings.items() if name in GANConfig.__annotations__}
    torch.manual_seed(0)
    model = GANModel(GANConfig(**{**fields, "image_size": 8, "generator_channels": [48, 32]})).train()
    average = GANModel(model.config)
    ema = EMA(model, average, min(flags["ema_decay"], 0.98), ("generator.",))
    losses = [DiscriminatorLoss(model, AS_THEY_ARE, flags["penalized_share"])] * flags["discriminator_steps"] + [
        GeneratorLoss(model, AS_THEY_ARE)
    ]
    # The presets' learning rates are for minutes.
    rate = max(flags["learning_rate"], 1e-3)
    run = RunArguments(**{name: flags[name] for name in OPTIMIZER_FLAGS if name in flags})
    optimizers = {id(loss): build_optimizer(loss, run, rate) for loss in losses}
    for step in range(STEPS):
        rows = torch.randint(len(digits()), (BATCH,), generator=torch.Generator().manual_seed(step))
        for repeat, loss in enumerate(losses):
            optimizer = optimizers[id(loss)]
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / STEPS)
            rng = BatchRNG(("test", step, repeat), BATCH, slice(0, BATCH), torch.device("cpu"))
            loss({"pixel_values": digits()[rows]}, rng, step / STEPS)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        ema.update(step + 1)
    return ema.updated_model().eval()


# The default and the presets each time; their parts in other combinations by `pytest -m slow`.
@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("default", *GAN_PRESETS) else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_every_kind_of_gan_learns_digits(kind: str) -> None:
    images = train(KINDS[kind]).sample(1500, generator=torch.Generator().manual_seed(0)).flatten(1)

    distance = frechet_distance(digits().flatten(1), images)
    spread = torch.pdist(images).mean() / torch.pdist(digits().flatten(1)).mean()
    assert math.isfinite(distance) and distance < distance_of_independent_pixels() / 2
    assert spread > 0.8
