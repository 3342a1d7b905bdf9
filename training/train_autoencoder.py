"""Trains a convolutional Auto-Encoder.

accelerate launch training/train_autoencoder.py --output_dir autoencoder-digits
accelerate launch training/train_autoencoder.py training/recipes/autoencoder-mnist.yaml
"""

import gc
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
    gc.disable()  # until run_script: they leave no garbage, and looking for it would take a fifth of their time


from functools import partial

import torch
from torch import Tensor, nn

from hfgen import AutoencoderConfig, AutoencoderModel
from hfgen.image_processing import build_image_processor
from hfgen.metrics import psnr

from .build_model import load_image_model
from .config.flags import Arguments
from .config.scripts import AutoencoderArguments
from .data.feeds.batches import Batch
from .data.normal_images import NormalImageData, find_normal_images
from .distributed.processes import Processes
from .evaluation.anomalies import MOST_FITTED, AnomalyEstimator, training_images, warn_of_few
from .evaluation.neighbors import neighbor_metrics
from .loop import train
from .objective import Autocast, Metrics, Phase, Sample
from .output.latent_map import draw_latent_map
from .output.pictures import draw_anomalies, draw_reconstructions
from .randomness import BatchRNG
from .run_script import run_script


class ReconstructionLoss(nn.Module):
    """The model's loss on a batch; what a denoising model is not shown belongs to the examples."""

    def __init__(self, model: AutoencoderModel):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, rng: BatchRNG, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = batch["pixel_values"]
        output = self.model(pixels, **self.model.draw_changes(tuple(pixels.shape[1:]), rng.normal, rng.uniform))
        return output.loss, {"loss": output.loss}


class AutoencoderObjective:
    """Reconstruction of images; see [`training.objective.Objective`].

    If it is known which images are normal, the model is trained on these to find others: the finished model gets an
    anomaly detector with a threshold, and all metrics of reconstruction are of normal images.
    """

    primary_metric = "mse"
    greater_is_better: bool | None = False
    ema_prefixes: tuple[str, ...] = ("",)
    watch = None

    def __init__(self, arguments: Arguments):
        extra: AutoencoderArguments = arguments.extra
        run = arguments.run
        find = partial(find_normal_images, extra.normal_label)
        self.model, self.data = load_image_model(AutoencoderModel, arguments, run.seed, find)
        # Those of a published model are about what it was trained on.
        self.model.config.anomaly_threshold = self.model.config.anomaly_map_threshold = None
        self.phases = [Phase("model", ReconstructionLoss(self.model))]
        self.false_alarm_rate, self.eval_batch_size = extra.false_alarm_rate, run.per_device_eval_batch_size
        self.measured: AnomalyEstimator | None = None
        shown = torch.arange(self.data.num_eval_examples)
        if isinstance(self.data, NormalImageData):
            warn_of_few(len(self.data.held_out), extra.false_alarm_rate)
            if not self.data.is_normal.all():
                self.primary_metric, self.greater_is_better = "auroc", True
            if self.data.is_normal.any():
                shown = shown[self.data.is_normal]
        self.shown = self.data.eval_batch(shown[:32], torch.device("cpu"))["pixel_values"]

    def evaluate(self, model: AutoencoderModel, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """Returns the errors of every image, or of every normal image: the mean over its pixels."""
        pixels = batch["pixel_values"]
        if "is_normal" in batch:
            pixels = pixels[batch["is_normal"]]
        reconstruction = model.decode(model.encode(pixels))
        difference = (reconstruction - pixels).flatten(1)
        errors = difference.square() if model.config.reconstruction_loss == "mse" else difference.abs()
        return {
            "mse": difference.square().mean(1),
            "reconstruction_loss": errors.mean(1),
            # An image that is reproduced exactly has an infinite ratio; 8 bits cannot resolve 100 dB.
            "psnr": psnr(reconstruction, pixels).clamp(max=100.0),
        }

    def estimator(
        self,
        model: AutoencoderModel,
        device: torch.device,
        processes: Processes,
        autocast: Autocast,
        limit: int | None,
        at_end: bool,
    ) -> AnomalyEstimator | None:
        """Returns what fits and measures the anomaly detector, if it is known which images are normal. A stream is
        read from its start for that, so only at the end."""
        if not isinstance(self.data, NormalImageData) or not (at_end or self.data.train.num_examples):
            return None
        self.measured = AnomalyEstimator(
            model, self.model, self.data, self.false_alarm_rate, self.eval_batch_size, processes, device, limit, at_end
        )
        return self.measured

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        return means

    def measure_samples(self, model: AutoencoderModel) -> Metrics:
        """Compares the classes of images with similar latents, if there are classes and all of them are trained on."""
        if isinstance(self.data, NormalImageData):
            return Metrics()
        try:
            return neighbor_metrics(model, self.data, self.eval_batch_size)
        except Exception as error:  # costs the metric and not the training
            return Metrics.failed(["neighbor_accuracy"], error)

    def measure_config(self, model: AutoencoderModel) -> dict[str, float]:
        """Returns the thresholds of the anomaly detector. If nothing is known to be normal, there are none, and the
        detector is fitted here, to all training images."""
        if self.measured is not None:
            return self.measured.thresholds
        model.fit_anomaly(training_images(self.data.train, MOST_FITTED, model.device))
        return {}

    def draw_samples(self, model: AutoencoderModel) -> dict[str, Sample]:
        """Draws rows of originals and, below each, their reconstructions; and, if anomalies were looked for, the
        images of the evaluation split that are strangest, and the most normal ones, with their maps."""
        originals = self.shown.to(model.device)
        samples: dict[str, Sample] = {
            "samples": draw_reconstructions(originals, model.decode(model.encode(originals)))
        }
        if self.measured is not None and self.measured.scores is not None:
            order = self.measured.rows[self.measured.scores.argsort(stable=True)]
            normal, strange = (
                self.data.eval_batch(rows, model.device)["pixel_values"] for rows in (order[:8], order.flip(0)[:8])
            )
            threshold = self.measured.thresholds.get("anomaly_map_threshold")
            samples["anomalies"] = draw_anomalies(model, strange, normal, threshold)
        return samples

    def draw_finished(self, model: AutoencoderModel) -> dict[str, Sample]:
        """Draws the map of the latents."""
        return {**draw_latent_map(model, self.data, self.eval_batch_size)}

    def save_extras(self, folder: Path) -> None:
        build_image_processor(self.data.num_channels, self.data.image_size).save_pretrained(folder)


def main() -> None:
    train(AutoencoderObjective, parse(SCRIPTS["autoencoder"], config_class=AutoencoderConfig))


if __name__ == "__main__":
    run_script(main)
