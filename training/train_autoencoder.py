"""Trains a convolutional Auto-Encoder.

accelerate launch training/train_autoencoder.py --output_dir autoencoder-digits
accelerate launch training/train_autoencoder.py training/recipes/autoencoder-mnist.yaml
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
    parse(SCRIPTS["autoencoder"])  # reports wrong flags before the imports below, which take seconds


import torch
from torch import Tensor, nn

from hfgen import AutoencoderConfig, AutoencoderModel
from hfgen.image_processing import build_image_processor
from hfgen.metrics import psnr

from .build_model import load_image_model
from .config.flags import Arguments
from .data.batches import Batch
from .loop import train
from .objective import Metrics, Phase, Sample
from .output.latent_map import draw_latent_map
from .output.pictures import draw_reconstructions
from .randomness import BatchRNG
from .run_script import run_script


class ReconstructionLoss(nn.Module):
    """The model's loss on a batch; what a denoising model is not shown belongs to the examples."""

    def __init__(self, model: AutoencoderModel):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, rng: BatchRNG, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = batch["pixel_values"]
        config = self.model.config
        noise = rng.normal(*pixels.shape[1:]) if config.noise_std > 0 else None
        erasing = rng.uniform(5) if config.erase_prob > 0 else None
        output = self.model(pixels, noise=noise, erasing=erasing)
        return output.loss, {"loss": output.loss}


class AutoencoderObjective:
    """Reconstruction of images; see [`training.objective.Objective`]."""

    primary_metric = "mse"
    ema_prefixes: tuple[str, ...] = ("",)

    def __init__(self, arguments: Arguments):
        self.model, self.data = load_image_model(AutoencoderModel, arguments, arguments.run.seed)
        self.phases = [Phase("model", ReconstructionLoss(self.model))]
        self.eval_batch_size = arguments.run.per_device_eval_batch_size
        self.shown = next(self.data.eval_batches(32, torch.device("cpu")))["pixel_values"]

    def evaluate(self, model: AutoencoderModel, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """Returns the errors of every image: the mean over its pixels."""
        pixels = batch["pixel_values"]
        reconstruction = model.decode(model.encode(pixels))
        difference = (reconstruction - pixels).flatten(1)
        errors = difference.square() if model.config.reconstruction_loss == "mse" else difference.abs()
        return {
            "mse": difference.square().mean(1),
            "reconstruction_loss": errors.mean(1),
            # An image that is reproduced exactly has an infinite ratio; 8 bits cannot resolve 100 dB.
            "psnr": psnr(reconstruction, pixels).clamp(max=100.0),
        }

    def estimator(self, *_: object) -> None:
        return None

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        return means

    def measure_samples(self, model: AutoencoderModel) -> Metrics:
        return Metrics()

    def measure_config(self, model: AutoencoderModel) -> dict[str, float]:
        return {}

    def draw_samples(self, model: AutoencoderModel) -> dict[str, Sample]:
        """Draws rows of originals and, below each, their reconstructions."""
        originals = self.shown.to(model.device)
        return {"samples": draw_reconstructions(originals, model.decode(model.encode(originals)))}

    def draw_finished(self, model: AutoencoderModel) -> dict[str, Sample]:
        """Draws the map of the latents."""
        return {**draw_latent_map(model, self.data, self.eval_batch_size)}

    def save_extras(self, folder: Path) -> None:
        build_image_processor(self.data.num_channels, self.data.image_size).save_pretrained(folder)


def main() -> None:
    train(AutoencoderObjective, parse(SCRIPTS["autoencoder"], config_class=AutoencoderConfig))


if __name__ == "__main__":
    run_script(main)
