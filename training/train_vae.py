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

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hfgen import VAEConfig, VAEModel
from hfgen.image_processing import build_image_processor, image_grid
from hfgen.metrics import bits_per_dim

from .build_model import load_image_model
from .config.flags import Arguments, flag
from .config.parser import parse
from .data.batches import Batch
from .loop import train
from .objective import Objective, Phase
from .randomness import BatchRNG
from .run_script import run_script


@dataclass
class VAEArguments:
    """What only this script knows."""

    nll_samples: int = flag(
        100, "Importance samples an image for the final estimate of the likelihood; 0 leaves it out."
    )

    def problems(self) -> list[str]:
        return [] if self.nll_samples >= 0 else [f"--nll_samples must be at least 0, got {self.nll_samples}"]


class EvidenceLowerBound(nn.Module):
    """The negative evidence lower bound of a batch; the noise of the latents belongs to the examples."""

    def __init__(self, model: VAEModel):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, rng: BatchRNG) -> tuple[Tensor, dict[str, Tensor]]:
        labels = batch["labels"] if self.model.config.num_labels else None
        output = self.model(batch["pixel_values"], labels, noise=rng.normal(*self.model.config.latent_shape))
        parts = {"reconstruction_loss": output.reconstruction_loss, "kl_loss": output.kl_loss}
        return output.loss, {"loss": output.loss, **parts}


def make_objective(arguments: Arguments) -> Objective[VAEModel]:
    model, data = load_image_model(VAEModel, arguments, arguments.run.seed)
    num_dims = model.config.num_channels * data.image_size[0] * data.image_size[1]
    # Only these are probabilities of the data: a Gaussian's density is not, and neither is a Bernoulli's of greys.
    first = next(data.eval_batches(256, torch.device("cpu")))["pixel_values"]
    is_binary = bool(((first == 0) | (first == 1)).all())
    has_bits = model.config.likelihood == "discretized_logistic" or (
        model.config.likelihood == "bernoulli" and is_binary
    )

    def evaluate(model: VAEModel, batch: Batch, rng: BatchRNG, is_final: bool) -> dict[str, Tensor]:
        """Both terms of the bound for every image, in nats; at the end the importance-weighted likelihood too."""
        pixels = batch["pixel_values"]
        labels = batch["labels"] if model.config.num_labels else None
        noise = rng.normal(*model.config.latent_shape)
        reconstruction, kl = model.evidence_terms(pixels, labels, noise=noise)
        values = {"elbo": -reconstruction - kl, "reconstruction_loss": reconstruction, "kl_loss": kl}
        if is_final and arguments.extra.nll_samples:
            generator = torch.Generator(pixels.device).manual_seed(int(rng.integers(2**62)[0]))
            values["nll"] = -model.log_likelihood(pixels, arguments.extra.nll_samples, labels, generator)
        return values

    def summarize(means: dict[str, float]) -> dict[str, float]:
        if "nll" in means and has_bits:
            return {**means, "bits_per_dim": bits_per_dim(means["nll"], num_dims)}
        return means

    def draw_samples(model: VAEModel, path: Path) -> None:
        """64 images from the prior; the same latents each time, so that their development can be followed."""
        images = model.sample(64, generator=torch.Generator().manual_seed(0))
        image_grid(images.cpu(), columns=8).save(path.with_suffix(".png"))

    return Objective(
        model=model,
        phases=[Phase("model", EvidenceLowerBound(model))],
        feed=data.train,
        eval_batches=data.eval_batches,
        evaluate=evaluate,
        summarize=summarize,
        primary_metric="elbo",
        dataset={"dataset": data.name, "dataset_revision": data.revision, "split": data.eval_split},
        draw_samples=draw_samples,
        save_extras=build_image_processor(data.num_channels, data.image_size).save_pretrained,
    )


DEFAULTS: dict[str, Any] = {"learning_rate": 2e-3}


def main() -> None:
    train(make_objective, parse(VAEConfig, "Trains a Variational Auto-Encoder.", DEFAULTS, VAEArguments))


if __name__ == "__main__":
    run_script(main)
