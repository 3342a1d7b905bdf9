"""Trains a Generative Adversarial Network.

    accelerate launch training/train_gan.py --output_dir gan-digits
    accelerate launch training/train_gan.py training/recipes/gan-mnist.yaml

The discriminator's accuracy on real and generated images is logged with the losses: when it can no longer tell them
apart, at 50 %, the two networks have converged.
"""

import gc
import math
import runpy
import sys
from pathlib import Path


if __name__ == "__main__" and not __package__:  # started as a file: run it again as a module of its package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    runpy.run_module(f"training.{Path(__file__).stem}", run_name="__main__", alter_sys=True)
    sys.exit()

from .config.parser import parse
from .config.scripts import SCRIPTS, GANArguments


if __name__ == "__main__":
    parse(SCRIPTS["gan"])  # reports wrong flags before the imports below, which take seconds
    gc.disable()  # until run_script: they leave no garbage, and looking for it would take a fifth of their time


import torch
from torch import Tensor, nn

from hfgen import GANConfig, GANModel
from hfgen.image_processing import build_image_processor, image_grid
from hfgen.models.gan_losses import (
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    logits_and_squared_gradients,
)

from .augmentation import Augmentation
from .build_model import load_image_model
from .config.flags import Arguments
from .data.feeds.batches import Batch
from .distributed.processes import Processes
from .evaluation.adversarial import AdversarialEstimator
from .evaluation.convergence import ConvergenceWatch
from .evaluation.reference import Reference
from .evaluation.sample_quality import sample_quality
from .loop import train
from .objective import Autocast, Metrics, Phase, Sample
from .output.generated_pictures import draw_generated
from .randomness import BatchRNG
from .run_script import run_script


FEW_IMAGES = 10_000  # so few may be learned by heart in minutes


class _AdversarialLoss(nn.Module):
    """A loss in which the other network takes part without being registered, and so without being optimized.

    Args:
        model: that both networks belong to.
        augmentation: what is done to images before the discriminator sees them.
    """

    def __init__(self, model: GANModel, augmentation: Augmentation):
        super().__init__()
        self._hidden = (model,)  # nn.Module registers modules, but does not look into tuples
        self.augmentation = augmentation

    @property
    def model(self) -> GANModel:
        return self._hidden[0]


class DiscriminatorLoss(_AdversarialLoss):
    """What the discriminator minimizes.

    Args:
        model: whose discriminator it is.
        augmentation: what is done to images before the discriminator sees them.
        penalized_share: share of each batch on which the gradient is penalized.
    """

    def __init__(self, model: GANModel, augmentation: Augmentation, penalized_share: float):
        super().__init__(model, augmentation)
        self.discriminator = model.discriminator
        self.penalized_share = penalized_share

    def forward(self, batch: Batch, rng: BatchRNG, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        config, real = self.model.config, batch["pixel_values"]
        labels = batch["labels"] if config.num_labels else None
        with torch.no_grad():
            fake = self.model.generator(rng.normal(config.latent_dim), labels)
            real, fake = self.augmentation.of_real(real, rng), self.augmentation(fake, rng)
        penalty = torch.zeros((), device=real.device)
        if config.loss_type == "wasserstein" and config.gradient_penalty_weight > 0:
            real_logits, fake_logits = self._logits(real, fake, labels)
            penalty = gradient_penalty(self.discriminator, real, fake, labels, rng.uniform())
            weight = config.gradient_penalty_weight
        elif config.gradient_penalty_weight > 0:
            real_logits, fake_logits, penalty = self._penalized_logits(real, fake, labels)
            weight = config.gradient_penalty_weight / 2 * _penalty_schedule(progress)
        else:
            real_logits, fake_logits = self._logits(real, fake, labels)
            weight = 0.0
        loss = discriminator_loss(real_logits, fake_logits, config.loss_type)
        real_right, fake_right = _is_right(real_logits, fake_logits, config.loss_type)
        accuracy_real, accuracy_fake = real_right.float().mean(), fake_right.float().mean()
        return loss + weight * penalty, {
            "discriminator_loss": loss,
            "gradient_penalty": penalty,
            "discriminator_accuracy": (accuracy_real + accuracy_fake) / 2,
            "discriminator_accuracy_real": accuracy_real,
            "discriminator_accuracy_fake": accuracy_fake,
        }

    def _logits(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The logits of real and of generated images."""
        if self.model.config.discriminator_norm == "batch":
            # Apart, as in the paper: each half is normalized by its own statistics, and so are the generated images
            # that the generator learns from. Statistics of both halves would be another discriminator's.
            return self.discriminator(real, labels), self.discriminator(fake, labels)
        both = None if labels is None else torch.cat([labels, labels])
        real_logits, fake_logits = self.discriminator(torch.cat([real, fake]), both).chunk(2)
        return real_logits, fake_logits

    def _penalized_logits(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The logits of real and of generated images, and R1 + R2 over a share of them."""
        count = math.ceil(self.penalized_share * len(real))
        both = None if labels is None else torch.cat([labels[:count], labels[:count]])
        logits, squares = logits_and_squared_gradients(
            self.discriminator, torch.cat([real[:count], fake[:count]]), both
        )
        real_logits, fake_logits = logits.chunk(2)
        if count < len(real):
            # The batch is in random order, so that its first examples are as good as any others.
            rest = self._logits(real[count:], fake[count:], None if labels is None else labels[count:])
            real_logits, fake_logits = torch.cat([real_logits, rest[0]]), torch.cat([fake_logits, rest[1]])
        return real_logits, fake_logits, 2 * squares.mean()


class GeneratorLoss(_AdversarialLoss):
    """What the generator minimizes: that the frozen discriminator takes its images to be real."""

    def __init__(self, model: GANModel, augmentation: Augmentation):
        super().__init__(model, augmentation)
        self.generator = model.generator

    def forward(self, batch: Batch, rng: BatchRNG, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        model, config = self.model, self.model.config
        labels = batch["labels"] if config.num_labels else None
        real_logits = None
        if config.loss_type == "relativistic":
            with torch.no_grad():
                real = self.augmentation.of_real(batch["pixel_values"], rng)
                real_logits = model.discriminator(real, labels)
        fake = self.augmentation(self.generator(rng.normal(config.latent_dim), labels), rng)
        model.discriminator.requires_grad_(False)
        loss = generator_loss(model.discriminator(fake, labels), config.loss_type, real_logits)
        model.discriminator.requires_grad_(True)
        return loss, {"generator_loss": loss}


def _penalty_schedule(progress: float) -> float:
    """Falls from 1 to a tenth along a cosine, as R3GAN's does: a strong penalty at first keeps the game stable, a weak
    one at last lets the discriminator see details."""
    return 0.55 + 0.45 * math.cos(math.pi * progress)


def _is_right(real_logits: Tensor, fake_logits: Tensor, loss_type: str) -> tuple[Tensor, Tensor]:
    """Returns whether the discriminator is right about each real and each generated image.

    A Wasserstein critic and a relativistic discriminator have no threshold of their own; the mean over both halves is
    a fair one.
    """
    has_no_threshold = loss_type in ("wasserstein", "relativistic")
    threshold = torch.cat([real_logits, fake_logits]).mean() if has_no_threshold else 0.0
    return real_logits > threshold, fake_logits <= threshold


class GANObjective:
    """Discriminator and generator in turn; see [`training.objective.Objective`]."""

    primary_metric = "discriminator_accuracy"
    greater_is_better: bool | None = None
    ema_prefixes: tuple[str, ...] = ("generator.",)

    def __init__(self, arguments: Arguments):
        self.model, self.data = load_image_model(GANModel, arguments, arguments.run.seed)
        extra: GANArguments = arguments.extra
        self.quality_samples, self.run = extra.quality_samples, arguments.run
        augmentation = Augmentation(extra.augmentation, extra.mirror)
        images = self.data.train.num_examples
        has_few = extra.augmentation == "adaptive" and images is not None and images <= FEW_IMAGES
        self.watch = ConvergenceWatch(extra.stop_when_converged, augmentation.follow, has_few)
        self._reference: Reference | None = None
        discriminator = DiscriminatorLoss(self.model, augmentation, extra.penalized_share)
        self.phases = [
            Phase("discriminator", discriminator, extra.discriminator_learning_rate, extra.discriminator_steps),
            Phase("generator", GeneratorLoss(self.model, augmentation)),
        ]

    def evaluate(self, model: GANModel, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """Returns whether the discriminator is right on held-out images and on as many generated ones."""
        labels = batch["labels"] if model.config.num_labels else None
        real_logits = model.discriminate(batch["pixel_values"], labels)
        fake_logits = model.discriminate(model(rng.normal(model.config.latent_dim), labels), labels)
        real_right, fake_right = _is_right(real_logits, fake_logits, model.config.loss_type)
        real, fake = real_right.double(), fake_right.double()
        return {
            "discriminator_accuracy": (real + fake) / 2,
            "discriminator_accuracy_real": real,
            "discriminator_accuracy_fake": fake,
        }

    def estimator(
        self, model: GANModel, device: torch.device, processes: Processes, autocast: Autocast, limit: int | None,
        at_end: bool,
    ) -> AdversarialEstimator:  # fmt: skip
        """Returns what measures how the game stands, and in the middle of the run also how good samples are."""
        if self._reference is None:
            self._reference = Reference(self.data, device)
        return AdversarialEstimator(
            model, self._reference, processes, self.run.seed, self.run.per_device_eval_batch_size, limit,
            0 if at_end else self.quality_samples,
        )  # fmt: skip

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        return means

    def measure_samples(self, model: GANModel) -> Metrics:
        """Compares generated images with real ones."""
        if not self.quality_samples:
            return Metrics()
        return sample_quality(model, self.data, self.quality_samples, self._reference)

    def measure_config(self, model: GANModel) -> dict[str, float]:
        return {}

    def draw_samples(self, model: GANModel) -> dict[str, Sample]:
        """Draws 64 images of the same latents each time, one class per column if the model is conditional."""
        count = model.config.num_labels or 0
        columns = count if 0 < count <= 16 else 8
        rows = max(1, 64 // columns) + (64 % columns > 0)
        images = model.sample(rows * columns, generator=torch.Generator().manual_seed(0))
        return {"samples": image_grid(images, columns=columns)}

    def draw_finished(self, model: GANModel) -> dict[str, Sample]:
        """Draws samples beside real images, on paths between latents, and above the nearest training images."""
        reference = self._reference or Reference(self.data, model.device)
        return {**draw_generated(model, reference, with_nearest=self.quality_samples > 0)}

    def save_extras(self, folder: Path) -> None:
        build_image_processor(self.data.num_channels, self.data.image_size).save_pretrained(folder)


def main() -> None:
    train(GANObjective, parse(SCRIPTS["gan"], config_class=GANConfig))


if __name__ == "__main__":
    run_script(main)
