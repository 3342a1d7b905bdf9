"""Trains a Variational Auto-Encoder.

accelerate launch training/train_vae.py --output_dir vae-digits
accelerate launch training/train_vae.py training/recipes/vae-binarized-mnist.yaml
"""

import runpy
import sys
from pathlib import Path


if __name__ == "__main__" and not __package__:  # started as a file: run it again as a module of its package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    runpy.run_module(f"training.{Path(__file__).stem}", run_name="__main__", alter_sys=True)
    sys.exit()

from .config.parser import parse
from .config.scripts import SCRIPTS


if __name__ == "__main__":
    parse(SCRIPTS["vae"])  # reports wrong flags before the imports below, which take seconds


import math

import torch
from torch import Tensor, nn

from hfgen import VAEConfig, VAEModel
from hfgen.image_processing import build_image_processor, image_grid
from hfgen.metrics import bits_per_dim

from .build_model import load_image_model
from .config.flags import Arguments
from .data.batches import Batch, GlobalBatch
from .loop import train
from .objective import Metrics, Phase
from .randomness import BatchRNG
from .run_script import run_script


LATENT_EXAMPLES = 4096  # training images whose latents are measured for the config


class EvidenceLowerBound(nn.Module):
    """The negative evidence lower bound of a batch; the noise of the latents belongs to the examples.

    The KL divergence itself is computed by the model, in `VAEModel.evidence_terms`.
    """

    def __init__(self, model: VAEModel):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, rng: BatchRNG) -> tuple[Tensor, dict[str, Tensor]]:
        labels = batch["labels"] if self.model.config.num_labels else None
        output = self.model(batch["pixel_values"], labels, noise=rng.normal(*self.model.config.latent_shape))
        parts = {"reconstruction_loss": output.reconstruction_loss, "kl_loss": output.kl_loss}
        return output.loss, {"loss": output.loss, **parts}


class VAEObjective:
    """The evidence lower bound; see [`training.objective.Objective`]."""

    primary_metric = "elbo"
    ema_prefixes: tuple[str, ...] = ("",)

    def __init__(self, arguments: Arguments):
        self.model, self.data = load_image_model(VAEModel, arguments, arguments.run.seed)
        self.phases = [Phase("model", EvidenceLowerBound(self.model))]
        self.nll_samples: int = arguments.extra.nll_samples
        self.eval_batch_size = arguments.run.per_device_eval_batch_size
        # Only these are probabilities of the data: a Gaussian's density is not, and neither is a Bernoulli's of grays.
        first = next(self.data.eval_batches(256, torch.device("cpu")))["pixel_values"]
        is_binary = bool(((first == 0) | (first == 1)).all())
        likelihood = self.model.config.likelihood
        self.has_bits = likelihood == "discretized_logistic" or (likelihood == "bernoulli" and is_binary)

    def evaluate(self, model: VAEModel, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """Returns both terms of the bound for every image, in nats."""
        pixels, labels = batch["pixel_values"], self._labels(model, batch)
        reconstruction, kl = model.evidence_terms(pixels, labels, noise=rng.normal(*model.config.latent_shape))
        return {"elbo": -reconstruction - kl, "reconstruction_loss": reconstruction, "kl_loss": kl}

    def evaluate_at_end(self, model: VAEModel, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """Adds the importance-weighted likelihood of every image."""
        values = self.evaluate(model, batch, rng)
        if self.nll_samples:
            pixels, labels = batch["pixel_values"], self._labels(model, batch)
            values["nll"] = -model.log_likelihood(pixels, self.nll_samples, labels, rng.generator())
        return values

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        if "nll" in means and self.has_bits:
            height, width = self.data.image_size
            return {**means, "bits_per_dim": bits_per_dim(means["nll"], self.data.num_channels * height * width)}
        return means

    def measure_samples(self, model: VAEModel) -> Metrics:
        return Metrics()

    def measure_config(self, model: VAEModel) -> dict[str, float]:
        """Measures mean and standard deviation of the latents of the first training images. Both are exact for
        z ~ q(z|x), so nothing is drawn; the images do not depend on the number of processes or on a resume."""
        examples = min(self.data.train.num_examples or LATENT_EXAMPLES, LATENT_EXAMPLES)
        batches = self.data.train.batches(0, GlobalBatch(self.eval_batch_size), model.device)
        numbers, total, total_of_squares = examples * math.prod(model.config.latent_shape), 0.0, 0.0
        while examples > 0:
            batch = {name: values[:examples] for name, values in next(batches).items()}
            posterior = model.encode(batch["pixel_values"], self._labels(model, batch), return_dict=True).latent_dist
            total += float(posterior.mean.sum())
            total_of_squares += float((posterior.mean.square() + posterior.var).sum())
            examples -= len(batch["pixel_values"])
        mean = total / numbers
        return {"scaling_factor": (total_of_squares / numbers - mean**2) ** -0.5, "shift_factor": mean}

    def draw_samples(self, model: VAEModel, path: Path) -> None:
        """Draws 64 images from the prior, from the same latents each time, so that their progress can be followed."""
        images = model.sample(64, generator=torch.Generator().manual_seed(0))
        image_grid(images.cpu(), columns=8).save(path.with_suffix(".png"))

    def save_extras(self, folder: Path) -> None:
        build_image_processor(self.data.num_channels, self.data.image_size).save_pretrained(folder)

    @staticmethod
    def _labels(model: VAEModel, batch: Batch) -> Tensor | None:
        return batch["labels"] if model.config.num_labels else None


def main() -> None:
    train(VAEObjective, parse(SCRIPTS["vae"], config_class=VAEConfig))


if __name__ == "__main__":
    run_script(main)
