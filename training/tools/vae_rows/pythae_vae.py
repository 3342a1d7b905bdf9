"""pythae's VAE, IWAE and HVAE with its authors' settings, trained for a time and measured by hfgen's own estimator.

Networks, optimizers and schedules are those of the scripts with which the authors reproduce published results on
binary MNIST (https://github.com/clementchadebec/benchmark_VAE, examples/scripts/reproducibility; they report test
likelihoods of 89.78, 86.82 and 86.21 nats after 500, 3,280 and 2,000 epochs). `training.tools.vae` runs this module in
an environment of its own, as pythae is no dependency of hfgen.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config.flags import DataArguments
from ...data.images import load_images
from ...distributed.processes import Processes
from ..measuring.runs import answer_task, describe


@dataclass(frozen=True)
class Setting:
    """What the authors' script sets.

    Attributes:
        widths: of the hidden layers, in the encoder and, in reverse, in the decoder.
        activation: after each of them.
        model: fields of the model's config.
        training: fields of the trainer's config.
        milestones: epochs at which the learning rate is multiplied by `gamma`.
        glorot: whether weights start as in Glorot & Bengio 2010, and biases at 0; otherwise as in torch.
    """

    widths: tuple[int, ...]
    activation: type[nn.Module]
    model: dict[str, Any]
    training: dict[str, Any]
    milestones: tuple[int, ...]
    gamma: float
    glorot: bool = False


SETTINGS = {
    "VAE": Setting(
        (400,), nn.ReLU, {"latent_dim": 40},
        {"per_device_train_batch_size": 100, "num_epochs": 500, "learning_rate": 1e-4},
        (200, 350, 500, 750, 1000), 10 ** (-1 / 5),
    ),
    "IWAE": Setting(
        (200, 200), nn.Tanh, {"latent_dim": 50, "number_samples": 50},
        {"per_device_train_batch_size": 20, "num_epochs": 3280, "learning_rate": 1e-3,
         "optimizer_cls": "Adam", "optimizer_params": {"eps": 1e-4}},
        (2, 5, 14, 28, 41, 122, 365, 1094), 10 ** (-1 / 7), glorot=True,
    ),
    "HVAE": Setting(
        (300,), nn.Softplus, {"latent_dim": 64, "n_lf": 4, "eps_lf": 0.05, "beta_zero": 1.0},
        {"per_device_train_batch_size": 100, "num_epochs": 2000, "learning_rate": 5e-4, "optimizer_cls": "Adamax"},
        (200, 350, 500, 750, 1000), 10 ** (-1 / 5),
    ),
}  # fmt: skip
CHECKED_IMAGES = 50
# Latents of an HVAE that are moved for each image, to see where they end.
MOVED_LATENTS = 32

LogProb = Callable[[Tensor, Tensor], Tensor]
Encode = Callable[[Tensor, torch.Generator | None], tuple[Tensor, Tensor]]


class PythaeSampler:
    """Draws latents for images and weighs them: what the estimator of the likelihood needs of a model.

    Args:
        encode: pixels (batch, pixels), generator -> means and standard deviations of normal distributions q(z|x),
            (batch, latent_dim).
        log_prob: latents (n, latent_dim), pixels (n, pixels) -> log p(x|z) in nats, (n,).
    """

    def __init__(self, encode: Encode, log_prob: LogProb):
        self.encode, self.log_prob = encode, log_prob

    @torch.no_grad()
    def log_importance_weights(
        self,
        pixel_values: Tensor,
        num_samples: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        chunk_size: int = 1024,
    ) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x), as of a `VAEModel`: nats, (num_samples, batch)."""
        pixels = pixel_values.flatten(1)
        mean, std = self.encode(pixels, generator)
        at_once = max(1, chunk_size // len(pixels))
        blocks = []
        for start in range(0, num_samples, at_once):
            k = min(at_once, num_samples - start)
            noise = torch.randn(k, *mean.shape, generator=generator)
            latents = mean + std * noise
            # The constants of the two normal distributions cancel.
            log_ratio = 0.5 * (noise.square() - latents.square()).sum(2) + std.log().sum(1)
            log_pixels = self.log_prob(latents.flatten(0, 1), pixels.repeat(k, 1))
            blocks.append(log_pixels.view_as(log_ratio) + log_ratio)
        return torch.cat(blocks)


@dataclass
class Leapfrog:
    """The Hamiltonian dynamics of an HVAE, without tempering: the number of steps, and their size."""

    steps: int
    size: float


def moved_moments(
    mean: Tensor,
    std: Tensor,
    pixels: Tensor,
    log_prob: LogProb,
    leapfrog: Leapfrog,
    generator: torch.Generator | None,
    count: int = MOVED_LATENTS,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of an HVAE's latents where its dynamics leave them, each (batch, latent_dim).

    An HVAE draws latents from a normal distribution and moves them with random momenta (Caterini et al. 2018,
    https://arxiv.org/abs/1805.11328). Its likelihood is that of the decoder and the prior alone, so latents may be
    drawn from any distribution to estimate it; the normal one with these moments is close to the moved latents, on
    which the decoder was trained. pythae's `get_nll` moves latents and leaves the change of their momenta out of the
    weights, so that their mean is not the likelihood.

    Args:
        mean, std: of the latents before they are moved, (batch, latent_dim).
        pixels: (batch, pixels).
        log_prob: log p(x|z), as in [`PythaeSampler`].
        leapfrog: the dynamics.
        generator: source of the random numbers.
        count: latents that are moved for each image.
    """
    shape = (count, *mean.shape)
    latents = (mean + std * torch.randn(shape, generator=generator)).flatten(0, 1)
    momentum = torch.randn(latents.shape, generator=generator)
    pixels = pixels.repeat(count, 1)
    slope = _slope(latents, pixels, log_prob)
    for _ in range(leapfrog.steps):
        momentum = momentum + leapfrog.size / 2 * slope
        latents = latents + leapfrog.size * momentum
        slope = _slope(latents, pixels, log_prob)
        momentum = momentum + leapfrog.size / 2 * slope
    moved = latents.view(shape)
    return moved.mean(0), moved.std(0)


def _slope(latents: Tensor, pixels: Tensor, log_prob: LogProb) -> Tensor:
    """The gradient of log p(x, z) with respect to z."""
    with torch.enable_grad():
        latents = latents.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_prob(latents, pixels).sum(), latents)
    return gradient - latents.detach()


def sampler_of(model: Any, name: str) -> PythaeSampler:
    """Returns the sampler of a trained model of `SETTINGS`."""

    def log_prob(latents: Tensor, pixels: Tensor) -> Tensor:
        decoded = model.decoder(latents)["reconstruction"].flatten(1)
        loss = F.binary_cross_entropy_with_logits if name == "HVAE" else F.binary_cross_entropy
        return -loss(decoded, pixels, reduction="none").sum(1)

    def encode(pixels: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        output = model.encoder(pixels)
        mean, log_variance = output.embedding, output.log_covariance
        if name != "HVAE":
            return mean, torch.exp(0.5 * log_variance)
        # As its training draws latents; the name of the number notwithstanding.
        std, leapfrog = F.softplus(log_variance), Leapfrog(model.n_lf, float(model.eps_lf))
        return moved_moments(mean, std, pixels, log_prob, leapfrog, generator)

    return PythaeSampler(encode, log_prob)


def build_model(name: str, shape: tuple[int, ...]) -> Any:
    """Returns one of pythae's models with the networks of the authors' script, untrained."""
    from pythae import models
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    setting = SETTINGS[name]
    latent_dim, pixels = setting.model["latent_dim"], math.prod(shape)

    def hidden(start: int, widths: tuple[int, ...]) -> nn.Sequential:
        layers = [(nn.Linear(a, b), setting.activation()) for a, b in zip((start, *widths), widths)]
        return nn.Sequential(*(module for pair in layers for module in pair))

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = hidden(pixels, setting.widths)
            self.mean = nn.Linear(setting.widths[-1], latent_dim)
            self.log_variance = nn.Linear(setting.widths[-1], latent_dim)

        def forward(self, x: Tensor) -> Any:
            features = self.hidden(x.flatten(1))
            return ModelOutput(embedding=self.mean(features), log_covariance=self.log_variance(features))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = hidden(latent_dim, setting.widths[::-1])
            self.layers.append(nn.Linear(setting.widths[0], pixels))
            if name != "HVAE":  # which wants logits
                self.layers.append(nn.Sigmoid())

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(z).view(-1, *shape))

    config = getattr(models, f"{name}Config")(input_dim=shape, reconstruction_loss="bce", **setting.model)
    model = getattr(models, name)(model_config=config, encoder=Encoder(), decoder=Decoder())
    for layer in model.modules():
        if setting.glorot and isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


class OutOfTime(Exception):
    """Ends pythae's trainer, which has no length in seconds."""


def train(model: Any, name: str, images: Tensor, validation: Tensor, seconds: float, seed: int) -> dict[str, float]:
    """Trains a model with pythae's trainer for a time, or to the end of the authors' schedule.

    Args:
        model: is trained in place, and ends with its last weights.
        name: of its setting.
        images, validation: float (examples, channels, height, width), 0 or 1. The trainer measures the latter after
            each epoch, which is part of the time, as in the authors' scripts.
        seconds: of wall time.
        seed: of the order of the examples and of the latents.

    Returns:
        steps and seconds_trained.
    """
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    setting, steps = SETTINGS[name], 0
    started = time.perf_counter()

    class Timer(TrainingCallback):
        def on_train_step_end(self, training_config: Any, **_: Any) -> None:
            nonlocal steps
            steps += 1
            if time.perf_counter() - started >= seconds:
                raise OutOfTime

    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder, seed=seed, no_cuda=True, scheduler_cls="MultiStepLR",
            scheduler_params={"milestones": list(setting.milestones), "gamma": setting.gamma}, **setting.training,
        )  # fmt: skip
        train_set, validation_set = (BaseDataset(part, torch.zeros(len(part))) for part in (images, validation))
        trainer = BaseTrainer(model, train_set, validation_set, config, callbacks=[Timer()])
        with contextlib.suppress(OutOfTime):
            trainer.train()
    model.eval()
    return {"steps": steps, "seconds_trained": round(time.perf_counter() - started, 1)}


def estimate_nll(
    sampler: PythaeSampler, images: Tensor, num_samples: int, seconds: float, seed: int
) -> dict[str, Any]:
    """Returns the metric nll of images, and its details, from the estimator that measures hfgen's models."""
    from ...evaluation.likelihood import LikelihoodEstimator

    estimator = LikelihoodEstimator(
        sampler, lambda rows: (images[rows], None), len(images), num_samples, seconds, seed, Processes(),
        torch.device("cpu"),
    )  # fmt: skip
    steps = estimator.steps()
    cost: float | None = None
    while True:
        try:
            cost = steps.send(cost)
        except StopIteration:
            metrics = estimator.result()
            return {"metrics": metrics.values, "metrics_details": metrics.details}


def compare_estimates(model: Any, sampler: PythaeSampler, images: Tensor, num_samples: int) -> dict[str, float]:
    """Measures some images by pythae's own `get_nll`, and by the same number of samples of ours."""
    some = images[:CHECKED_IMAGES]
    weights = sampler.log_importance_weights(some, num_samples, generator=torch.Generator().manual_seed(0))
    ours = math.log(num_samples) - weights.double().logsumexp(0).mean().item()
    return {"checked_images": len(some), "checked_nll": ours,
            "checked_nll_by_pythae": float(model.get_nll(some, num_samples, num_samples))}  # fmt: skip


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Trains and measures one of pythae's models; returns what the table records of it."""
    data, name, seed = task["data"], task["name"], task["seed"]
    splits = {split: load_images(DataArguments(**data, eval_split=split), seed) for split in ("validation", "test")}
    train_images = splits["test"].train.pixels.float() / 255  # type: ignore[attr-defined]
    validation, test = (splits[split].eval_pixels.float() / 255 for split in ("validation", "test"))
    torch.manual_seed(seed)
    model = build_model(name, tuple(train_images.shape[1:]))
    facts = train(model, name, train_images, validation, task["seconds"], seed)
    sampler = sampler_of(model, name)
    images = test[: task["max_eval_samples"]]
    estimate = estimate_nll(sampler, images, task["nll_samples"], task["nll_seconds"], seed)
    check = compare_estimates(model, sampler, images, task["nll_samples"])
    machine = describe()
    versions = {"pythae": version("pythae"), **machine["versions"]}
    count = sum(parameter.numel() for parameter in model.parameters())
    return {**estimate, **check, **facts, "num_parameters": count, "hardware": machine["hardware"],
            "versions": versions}  # fmt: skip


if __name__ == "__main__":
    answer_task(__doc__, measure)
