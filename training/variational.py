"""What variational auto-encoders are trained for: the objective that train_vae.py and train_ladder_vae.py share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfgen.image_processing import build_image_processor, image_grid
from hfgen.metrics import bits_per_dim

from .build_model import load_image_model
from .config.flags import Arguments
from .config.scripts import VAEArguments
from .data.binarization import binarized
from .data.feeds.batches import Batch, GlobalBatch
from .distributed.processes import Processes
from .evaluation.likelihood import LikelihoodEstimator, round_samples
from .objective import Autocast, Metrics, Phase, Sample
from .output.latent_map import draw_latent_map
from .output.pictures import draw_latents, images_needed
from .randomness import BatchRNG


LATENT_EXAMPLES = 4096  # training images whose latents are measured for the config


class EvidenceLowerBound(nn.Module):
    """The negative evidence lower bound of a batch, or the importance-weighted bound, which is tighter.

    The noise of the latents belongs to the examples. Both terms are computed by the model.

    Args:
        model: with the methods `evidence_terms` and `log_importance_weights` of [`hfgen.VAEModel`].
        extra: the flags.
    """

    def __init__(self, model: Any, extra: VAEArguments):
        super().__init__()
        self.model, self.extra = model, extra

    def forward(self, batch: Batch, rng: BatchRNG, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        pixels, labels = batch["pixel_values"], _labels(self.model, batch)
        self.model.check_range(pixels)
        if self.extra.importance_samples > 1 and progress >= self.extra.importance_start:
            return self._importance_weighted(pixels, labels, rng)
        noise = rng.normal(*self.model.config.latent_shape)
        reconstruction, kl = self.model.evidence_terms(pixels, labels, noise)
        beta = self.model.config.beta
        if self.extra.kl_warmup_ratio:
            beta = beta * min(1.0, progress / self.extra.kl_warmup_ratio)
        counted = kl
        if self.extra.free_bits:
            # A level below its free bits has no gradient, so nothing pushes it to carry less. Each image is looked at
            # by itself: averages over a batch would depend on how it is divided among processes.
            counted = kl.clamp(min=self.extra.free_bits)
        reconstruction, kl_loss = reconstruction.mean(), kl.mean(0).sum()
        loss = reconstruction + beta * counted.mean(0).sum()
        return loss, {"loss": loss, "reconstruction_loss": reconstruction, "kl_loss": kl_loss}

    def _importance_weighted(
        self, pixels: Tensor, labels: Tensor | None, rng: BatchRNG
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The bound of Burda et al. 2015 (https://arxiv.org/abs/1509.00519); images are encoded once."""
        count = self.extra.importance_samples
        noise = rng.normal(count, *self.model.config.latent_shape).transpose(0, 1)
        log_weights = self.model.log_importance_weights(pixels, count, labels, noise=noise)
        loss = math.log(count) - log_weights.logsumexp(0).mean()
        return loss, {"loss": loss}


class VariationalObjective:
    """The evidence lower bound; see [`training.objective.Objective`].

    Args:
        model_class: a VAE with the methods of [`hfgen.VAEModel`].
        arguments: of the run.
    """

    primary_metric = "elbo"
    greater_is_better: bool | None = True
    ema_prefixes: tuple[str, ...] = ("",)
    watch = None

    def __init__(self, model_class: type[PreTrainedModel], arguments: Arguments):
        extra: VAEArguments = arguments.extra
        self.model: Any
        self.model, self.data = load_image_model(model_class, arguments, arguments.run.seed)
        if extra.dynamic_binarization:
            self.data = binarized(self.data, arguments.run.seed)
        self.phases = [Phase("model", EvidenceLowerBound(self.model, extra))]
        self.nll_samples, self.nll_seconds = round_samples(extra.nll_samples), extra.nll_seconds
        self.seed, self.eval_batch_size = arguments.run.seed, arguments.run.per_device_eval_batch_size
        count = images_needed(*self.data.image_size)
        shown = next(self.data.eval_batches(count, torch.device("cpu"), limit=count))
        # In any order but the split's, which may be sorted by class.
        order = torch.randperm(len(shown["pixel_values"]), generator=torch.Generator().manual_seed(0))
        self.shown = {name: values[order] for name, values in shown.items()}
        # Only these are probabilities of the data: a Gaussian's density is not, and neither is a Bernoulli's of grays.
        pixels = self.shown["pixel_values"]
        is_binary = bool(((pixels == 0) | (pixels == 1)).all())
        likelihood = self.model.config.likelihood
        is_of_levels = likelihood in ("discretized_logistic", "logistic_mixture")
        self.has_bits = is_of_levels or (likelihood == "bernoulli" and is_binary)

    def evaluate(self, model: Any, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """Returns both terms of the bound for every image, in nats, and the KL of each level if there are several."""
        noise = rng.normal(*model.config.latent_shape)
        reconstruction, kl = model.evidence_terms(batch["pixel_values"], _labels(model, batch), noise)
        total = kl.sum(1)
        by_level = {f"kl_level_{level}": kl[:, level] for level in range(kl.shape[1])} if kl.shape[1] > 1 else {}
        return {"elbo": -reconstruction - total, "reconstruction_loss": reconstruction, "kl_loss": total, **by_level}

    def estimator(
        self,
        model: Any,
        device: torch.device,
        processes: Processes,
        autocast: Autocast,
        limit: int | None,
        at_end: bool,
    ) -> LikelihoodEstimator | None:
        """Returns what estimates the importance-weighted likelihood at the end, unless --nll_samples is 0."""
        if not (self.nll_samples and at_end):
            return None

        def read(rows: Tensor) -> tuple[Tensor, Tensor | None]:
            batch = self.data.eval_batch(rows, device)
            return batch["pixel_values"], _labels(model, batch)

        return LikelihoodEstimator(
            model, read, self.data.num_eval_examples, self.nll_samples, self.nll_seconds, self.seed, processes,
            device, autocast,
        )  # fmt: skip

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        if "nll" in means and self.has_bits:
            height, width = self.data.image_size
            return {**means, "bits_per_dim": bits_per_dim(means["nll"], self.data.num_channels * height * width)}
        return means

    def measure_samples(self, model: Any) -> Metrics:
        return Metrics()

    def measure_config(self, model: Any) -> dict[str, float]:
        """Measures mean and standard deviation of the latents of the first training images, if the config has fields
        for them. Both are exact for z ~ q(z|x), so nothing is drawn; the images do not depend on the number of
        processes or on a resume."""
        if not hasattr(model.config, "scaling_factor"):
            return {}
        examples = min(self.data.train.num_examples or LATENT_EXAMPLES, LATENT_EXAMPLES)
        batches = self.data.train.batches(0, GlobalBatch(self.eval_batch_size), model.device)
        numbers, total, total_of_squares = examples * math.prod(model.config.latent_shape), 0.0, 0.0
        while examples > 0:
            batch = {name: values[:examples] for name, values in next(batches).items()}
            posterior = model.encode(batch["pixel_values"], _labels(model, batch), return_dict=True).latent_dist
            total += float(posterior.mean.sum())
            total_of_squares += float((posterior.mean.square() + posterior.var).sum())
            examples -= len(batch["pixel_values"])
        mean = total / numbers
        return {"scaling_factor": (total_of_squares / numbers - mean**2) ** -0.5, "shift_factor": mean}

    def draw_samples(self, model: Any) -> dict[str, Sample]:
        """Draws 64 images from the prior, and what the latents hold of images of the evaluation split.

        Latents and images are the same each time, so that their progress can be followed.
        """
        shown = {name: values.to(model.device) for name, values in self.shown.items()}
        images = model.sample(64, generator=torch.Generator().manual_seed(0))
        latents = draw_latents(model, shown["pixel_values"], _labels(model, shown))
        return {"samples": image_grid(images, columns=8), **latents}

    def draw_finished(self, model: Any) -> dict[str, Sample]:
        """Draws the map of the latents: of the means of q(z|x), and in a ladder of q(z_0|x)."""
        return {**draw_latent_map(model, self.data, self.eval_batch_size)}

    def save_extras(self, folder: Any) -> None:
        build_image_processor(self.data.num_channels, self.data.image_size).save_pretrained(folder)


def _labels(model: Any, batch: Batch) -> Tensor | None:
    return batch["labels"] if model.config.num_labels else None
