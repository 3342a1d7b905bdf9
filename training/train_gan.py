"""Trains a Generative Adversarial Network.

    accelerate launch training/train_gan.py --output_dir gan-digits
    accelerate launch training/train_gan.py training/recipes/gan-mnist.yaml

The discriminator's accuracy on real and generated images is logged with the losses: when it can no longer tell them
apart, at 50 %, the two networks have converged.
"""

import runpy
import sys
from pathlib import Path


if __name__ == "__main__" and not __package__:  # started as a file: run it again as a module of its package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    runpy.run_module(f"training.{Path(__file__).stem}", run_name="__main__", alter_sys=True)
    sys.exit()

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hfgen import GANConfig, GANModel
from hfgen.image_processing import build_image_processor, image_grid
from hfgen.models.modeling_gan import discriminator_loss, generator_loss, gradient_penalty

from .build_model import load_image_model
from .config.flags import Arguments, flag
from .config.parser import parse
from .data.batches import Batch
from .evaluation.sample_quality import sample_quality
from .loop import train
from .objective import Objective, Phase
from .randomness import BatchRNG
from .run_script import run_script


@dataclass
class GANArguments:
    """What only this script knows."""

    discriminator_learning_rate: float | None = flag(
        None, "Learning rate of the discriminator. Default: learning_rate."
    )
    discriminator_steps: int = flag(1, "Updates of the discriminator for each one of the generator.")
    quality_samples: int = flag(10_000, "Images to draw for the final comparison with real ones; 0 leaves it out.")

    def problems(self) -> list[str]:
        found = []
        if self.discriminator_steps < 1:
            found.append(f"--discriminator_steps must be at least 1, got {self.discriminator_steps}")
        if self.quality_samples < 0:
            found.append(f"--quality_samples must be at least 0, got {self.quality_samples}")
        if self.discriminator_learning_rate is not None and not self.discriminator_learning_rate > 0:
            found.append(f"--discriminator_learning_rate must be above 0, got {self.discriminator_learning_rate}")
        return found


class DiscriminatorLoss(nn.Module):
    """What the discriminator minimises. The generator takes part but is not registered: it is not optimized here."""

    def __init__(self, model: GANModel):
        super().__init__()
        self.discriminator = model.discriminator
        self._model = (model,)

    def forward(self, batch: Batch, rng: BatchRNG) -> tuple[Tensor, dict[str, Tensor]]:
        (model,) = self._model
        config, real = model.config, batch["pixel_values"]
        labels = batch["labels"] if config.num_labels else None
        with torch.no_grad():
            fake = model.generator(rng.normal(config.latent_dim), labels)
        # One pass over both halves: two would cost more, and batch normalisation in the discriminator would tell the
        # halves apart by their statistics.
        both = self.discriminator(torch.cat([real, fake]), None if labels is None else torch.cat([labels, labels]))
        real_logits, fake_logits = both.chunk(2)
        loss = discriminator_loss(real_logits, fake_logits, config.loss_type)
        if config.loss_type == "wasserstein" and config.gradient_penalty_weight > 0:
            penalty = gradient_penalty(self.discriminator, real, fake, labels, rng.uniform())
            loss = loss + config.gradient_penalty_weight * penalty
        # A Wasserstein critic has no threshold of its own; the middle between both means is the fair one.
        threshold = both.mean() if config.loss_type == "wasserstein" else 0.0
        accuracy_real, accuracy_fake = (
            (real_logits > threshold).float().mean(),
            (fake_logits <= threshold).float().mean(),
        )
        return loss, {
            "discriminator_loss": loss,
            "discriminator_accuracy": (accuracy_real + accuracy_fake) / 2,
            "discriminator_accuracy_real": accuracy_real,
            "discriminator_accuracy_fake": accuracy_fake,
        }


class GeneratorLoss(nn.Module):
    """What the generator minimises: that the discriminator, held still, takes its images to be real."""

    def __init__(self, model: GANModel):
        super().__init__()
        self.generator = model.generator
        self._model = (model,)

    def forward(self, batch: Batch, rng: BatchRNG) -> tuple[Tensor, dict[str, Tensor]]:
        (model,) = self._model
        config = model.config
        labels = batch["labels"] if config.num_labels else None
        fake = self.generator(rng.normal(config.latent_dim), labels)
        model.discriminator.requires_grad_(False)
        loss = generator_loss(model.discriminator(fake, labels), config.loss_type)
        model.discriminator.requires_grad_(True)
        return loss, {"generator_loss": loss}


def evaluate(model: GANModel, batch: Batch, rng: BatchRNG, is_final: bool) -> dict[str, Tensor]:
    """Whether the discriminator is right on held-out images and on as many generated ones."""
    labels = batch["labels"] if model.config.num_labels else None
    real_logits = model.discriminate(batch["pixel_values"], labels)
    fake_logits = model.discriminate(model(rng.normal(model.config.latent_dim), labels), labels)
    threshold = torch.cat([real_logits, fake_logits]).mean() if model.config.loss_type == "wasserstein" else 0.0
    real, fake = (real_logits > threshold).double(), (fake_logits <= threshold).double()
    return {
        "discriminator_accuracy": (real + fake) / 2,
        "discriminator_accuracy_real": real,
        "discriminator_accuracy_fake": fake,
    }


def make_objective(arguments: Arguments) -> Objective[GANModel]:
    model, data = load_image_model(GANModel, arguments, arguments.run.seed)
    extra: GANArguments = arguments.extra

    def draw_samples(model: GANModel, path: Path) -> None:
        """64 images of the same latents each time, a class in each column if the model knows classes."""
        count = model.config.num_labels or 0
        columns = count if 0 < count <= 16 else 8
        rows = max(1, 64 // columns) + (64 % columns > 0)
        images = model.sample(rows * columns, generator=torch.Generator().manual_seed(0))
        image_grid(images.cpu(), columns=columns).save(path.with_suffix(".png"))

    def final_metrics(model: GANModel) -> dict[str, float]:
        return sample_quality(model, data, extra.quality_samples) if extra.quality_samples else {}

    return Objective(
        model=model,
        phases=[
            Phase(
                "discriminator", DiscriminatorLoss(model), extra.discriminator_learning_rate, extra.discriminator_steps
            ),
            Phase("generator", GeneratorLoss(model)),
        ],
        feed=data.train,
        eval_batches=data.eval_batches,
        evaluate=evaluate,
        summarize=lambda means: means,
        primary_metric="discriminator_accuracy",
        dataset={"dataset": data.name, "dataset_revision": data.revision, "split": data.eval_split},
        draw_samples=draw_samples,
        save_extras=build_image_processor(data.num_channels, data.image_size).save_pretrained,
        final_metrics=final_metrics,
        ema_prefixes=("generator.",),
    )


DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    # No momentum, as BigGAN and StyleGAN have it: the other network moves the target. DCGAN's 0.5 gave worse samples
    # of MNIST in the same time.
    "adam_beta1": 0.0,
    "adam_beta2": 0.9,
    "per_device_train_batch_size": 64,
    "ema_decay": 0.999,
}


def main() -> None:
    train(make_objective, parse(GANConfig, "Trains a Generative Adversarial Network.", DEFAULTS, GANArguments))


if __name__ == "__main__":
    run_script(main)
