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


import torch
from torch import Tensor, nn

from hfgen import VAEConfig, VAEModel
from hfgen.image_processing import build_image_processor, image_grid
from hfgen.metrics import bits_per_dim

from .build_model import load_image_model
from .config.flags import Arguments
from .data.batches import Batch
from .data.binarization import binarized
from .distributed.processes import Processes
from .evaluation.likelihood import LikelihoodEstimator, round_samples
from .loop import train
from .objective import Autocast, Metrics, Phase, Sample
from .output.pictures import draw_latents, images_needed
from .randomness import BatchRNG
from .run_script import run_script


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
        if arguments.extra.dynamic_binarization:
            self.data = binarized(self.data, arguments.run.seed)
        self.phases = [Phase("model", EvidenceLowerBound(self.model))]
        self.nll_samples, self.nll_seconds = round_samples(arguments.extra.nll_samples), arguments.extra.nll_seconds
        self.seed = arguments.run.seed
        count = images_needed(*self.data.image_size)
        self.shown = next(self.data.eval_batches(count, torch.device("cpu"), limit=count))
        # Only these are probabilities of the data: a Gaussian's density is not, and neither is a Bernoulli's of grays.
        pixels = self.shown["pixel_values"]
        is_binary = bool(((pixels == 0) | (pixels == 1)).all())
        likelihood = self.model.config.likelihood
        is_of_levels = likelihood in ("discretized_logistic", "logistic_mixture")
        self.has_bits = is_of_levels or (likelihood == "bernoulli" and is_binary)

    def evaluate(self, model: VAEModel, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """Returns both terms of the bound for every image, in nats."""
        pixels, labels = batch["pixel_values"], self._labels(model, batch)
        reconstruction, kl = model.evidence_terms(pixels, labels, noise=rng.normal(*model.config.latent_shape))
        kl = kl.sum(1)  # over the levels of latents, of which this model has one
        return {"elbo": -reconstruction - kl, "reconstruction_loss": reconstruction, "kl_loss": kl}

    evaluate_at_end = evaluate

    def estimator(
        self, model: VAEModel, device: torch.device, processes: Processes, autocast: Autocast
    ) -> LikelihoodEstimator | None:
        """Returns what estimates the importance-weighted likelihood, unless --nll_samples is 0."""
        if not self.nll_samples:
            return None

        def read(rows: Tensor) -> tuple[Tensor, Tensor | None]:
            batch = self.data.eval_batch(rows, device)
            return batch["pixel_values"], self._labels(model, batch)

        return LikelihoodEstimator(
            model, read, self.data.num_eval_examples, self.nll_samples, self.nll_seconds, self.seed, processes,
            device, autocast,
        )  # fmt: skip

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        if "nll" in means and self.has_bits:
            height, width = self.data.image_size
            return {**means, "bits_per_dim": bits_per_dim(means["nll"], self.data.num_channels * height * width)}
        return means

    def measure_samples(self, model: VAEModel) -> Metrics:
        return Metrics()

    def draw_samples(self, model: VAEModel) -> dict[str, Sample]:
        """Draws 64 images from the prior, and what the latents hold of images of the evaluation split.

        Latents and images are the same each time, so that their progress can be followed.
        """
        shown = {name: values.to(model.device) for name, values in self.shown.items()}
        images = model.sample(64, generator=torch.Generator().manual_seed(0))
        latents = draw_latents(model, shown["pixel_values"], self._labels(model, shown))
        return {"samples": image_grid(images, columns=8), **latents}

    def save_extras(self, folder: Path) -> None:
        build_image_processor(self.data.num_channels, self.data.image_size).save_pretrained(folder)

    @staticmethod
    def _labels(model: VAEModel, batch: Batch) -> Tensor | None:
        return batch["labels"] if model.config.num_labels else None


def main() -> None:
    train(VAEObjective, parse(SCRIPTS["vae"], config_class=VAEConfig))


if __name__ == "__main__":
    run_script(main)
