"""Trains an image codec for a range of rates.

accelerate launch training/train_codec.py --output_dir codec-digits
accelerate launch training/train_codec.py training/recipes/codec-cifar10.yaml
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
    parse(SCRIPTS["codec"])  # reports wrong flags before the imports below, which take seconds
    gc.disable()  # until run_script: they leave no garbage, and looking for it would take a fifth of their time


from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hfgen import CodecConfig, CodecModel
from hfgen.image_processing import build_image_processor
from hfgen.metrics import psnr

from .build_model import load_image_model
from .config.flags import Arguments
from .config.scripts import CodecArguments
from .data.feeds.batches import Batch
from .evaluation.rate_distortion import RATE, Curve, codec_curve, evaluation_mosaic, measure_formats, psnr_at
from .loop import train
from .objective import Metrics, Phase, Sample
from .output.pictures import draw_reconstructions
from .output.plots import draw_rate_distortion
from .randomness import BatchRNG
from .run_script import run_script


COUNTED_PIXELS = 2**21  # of training images, whose symbols are counted for the tables
SHOWN_QUALITIES = {"q0": 0.0, "q50": 0.5, "q100": 1.0}


class RateDistortionLoss(nn.Module):
    """The model's loss on a batch; quality, noise and shift of each image belong to the examples.

    Args:
        model: that is trained.
        wraps_around: whether images are moved, and continued at the other side. The seams are like those of a mosaic
            of small images, which a codec does not see otherwise.
    """

    def __init__(self, model: CodecModel, wraps_around: bool):
        super().__init__()
        self.model, self.wraps_around = model, wraps_around

    def forward(self, batch: Batch, rng: BatchRNG, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        pixels, config = batch["pixel_values"], self.model.config
        quality, noise = rng.uniform(), rng.uniform(*config.latent_shape)
        if self.wraps_around:
            shifts = [rng.integers(-(-side // config.downsampling)) * config.downsampling for side in pixels.shape[2:]]
            pixels = wrap_around(pixels, *shifts)
        output = self.model(pixels, quality=quality, noise=noise)
        rate, mse = output.rate.mean(), output.mse.mean()
        return output.loss, {"loss": output.loss, "bits_per_pixel": rate, "mse": mse}


def wrap_around(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Moves each image of a batch; what leaves it on one side comes in on the other.

    Args:
        images: (batch, channels, height, width).
        down, right: pixels, (batch,).
    """
    rows, columns = (
        (torch.arange(side, device=images.device) - shift[:, None]) % side
        for side, shift in zip(images.shape[2:], (down, right))
    )
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


class CodecObjective:
    """Rate plus weighted error, for all qualities at once; see [`training.objective.Objective`]."""

    primary_metric = "loss"
    greater_is_better: bool | None = False
    ema_prefixes: tuple[str, ...] = ("",)
    watch = None

    def __init__(self, arguments: Arguments):
        extra: CodecArguments = arguments.extra
        self.model, self.data = load_image_model(CodecModel, arguments, arguments.run.seed)
        self.model.tables.zero_()  # those of a published model belong to weights that are about to change
        self.phases = [Phase("model", RateDistortionLoss(self.model, extra.wrap_around))]
        self.batch_size = arguments.run.per_device_eval_batch_size
        self.curves: dict[str, Curve] = {}

    def evaluate(self, model: CodecModel, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """Returns rate and error of every image at quality 0.5, with the rate that the prior estimates."""
        pixels = batch["pixel_values"]
        output = model(pixels, quality=0.5)
        weight = model.distortion_weight(torch.tensor(0.5))
        return {
            "loss": output.rate + weight * output.mse,
            "bits_per_pixel": output.rate,
            "mse": output.mse,
            # An image that is reproduced exactly has an infinite ratio; 8 bits cannot resolve 100 dB.
            "psnr": psnr(output.reconstruction, pixels).clamp(max=100.0),
        }

    def estimator(self, *_: object) -> None:
        return None

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        return means

    def measure_samples(self, model: CodecModel) -> Metrics:
        """Measures rates and errors on a mosaic of evaluation images, with the tables that are published: at every
        quality for the plot, and at the rate where codecs are compared."""
        names = ["psnr_at_half_bpp"]
        try:
            model.freeze_tables(self._training_images(model))
            pixels = evaluation_mosaic(self.data)
            curve = codec_curve(model, pixels)
            formats = measure_formats(pixels)
        except Exception as error:
            return Metrics.failed(names, error)
        self.curves = {"this model": curve, **formats}
        found: dict[str, float] = {}
        for name, quality in SHOWN_QUALITIES.items():
            point = curve[model.quality_level(quality)]
            found |= {f"bits_per_pixel_{name}": point.bits_per_pixel, f"psnr_{name}": point.psnr}
        at_rate = {name: psnr_at(points, RATE) for name, points in self.curves.items()}
        value = at_rate.pop("this model")
        if value is None:
            reason = f"no quality takes {RATE} bits per pixel; change the distortion weights"
            return Metrics(found, dict.fromkeys(names, reason))
        details = {f"psnr_at_half_bpp_{name.lower()}": of_name for name, of_name in at_rate.items() if of_name}
        return Metrics({**found, "psnr_at_half_bpp": value}, details=details)

    def measure_config(self, model: CodecModel) -> dict[str, float]:
        """Counts the tables of symbols, which are published with the weights, unless `measure_samples` just did."""
        if not model.has_tables:
            model.freeze_tables(self._training_images(model))
        return {}

    def draw_samples(self, model: CodecModel) -> dict[str, Sample]:
        """Draws rows of originals and, below each, what quality 0.5 makes of them."""
        originals = next(self.data.eval_batches(32, model.device, limit=32))["pixel_values"]
        symbols = model.encode_symbols(originals)
        decoded = model.decode_symbols(symbols, size=originals.shape[2:])
        return {"samples": draw_reconstructions(originals, decoded)}

    def draw_finished(self, model: CodecModel) -> dict[str, Sample]:
        """Draws the curves that `measure_samples` measured."""
        return {"rate-distortion": draw_rate_distortion(self.curves)} if self.curves else {}

    def save_extras(self, folder: Path) -> None:
        build_image_processor(self.data.num_channels, self.data.image_size).save_pretrained(folder)

    def _training_images(self, model: CodecModel) -> Iterator[Tensor]:
        """The first training images, whatever the number of processes and after a resume."""
        height, width = self.data.image_size
        count = max(1, COUNTED_PIXELS // (height * width))
        for batch in self.data.train.first_batches(count, repeat=False):
            yield from batch["pixel_values"].to(model.device).split(self.batch_size)


def main() -> None:
    train(CodecObjective, parse(SCRIPTS["codec"], config_class=CodecConfig))


if __name__ == "__main__":
    run_script(main)
