"""Trains a latent diffusion model over the spatial latents of a VAE, and saves it as a repository of diffusers.

    hfgen train vae --output_dir vae-digits --latent_type spatial --latent_dim 4
    python -m training.tools.latent_diffusion --vae vae-digits --output_dir ddim-digits --seconds 60

A UNet learns to undo noise in latents that have mean 0 and standard deviation 1 (Rombach et al. 2021,
https://arxiv.org/abs/2112.10752): (latents - shift_factor) * scaling_factor, both from the config of the VAE. It
predicts v (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512) on the cosine schedule. Published are the weights'
moving average, the VAE, and hfgen/pipelines/latent_ddim.py, which draws the images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor

from hfgen import VAEConfig, VAEModel
from hfgen.cards import is_hub_id, short_dataset_name
from hfgen.hub import fetch_model
from hfgen.image_processing import image_grid
from hfgen.pipelines.latent_ddim import LatentDDIMPipeline

from ..config.flags import DataArguments
from ..data.feeds.batches import GlobalBatch
from ..data.images import ImageData, find_images
from ..durable_files import write_json
from ..optim import learning_rate_schedule
from ..output.results import describe_machine
from ..output.run_folder import read_results


CARD = """
# {name}

A latent diffusion model: a UNet of {unet_parameters:,} parameters draws latents ({latent_shape}), and a VAE decodes
them to images of {image_size} pixels. {conditional}

![Images drawn by the model](samples.png)

*Not cherry-picked: the first images of seed 0.*

## Use

`trust_remote_code=True` lets diffusers run `pipeline.py` and the Python files in `vae/` from this repository; read
them first. Only `diffusers`, `transformers` 5.18 or newer and `torch` are needed.

```python
import torch
from diffusers import DiffusionPipeline

repo = "{name}"
pipeline = DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)
images = pipeline(batch_size=16, generator=torch.Generator().manual_seed(0)).images
```

The VAE by itself has pixels in [0, 1], and `vae.config.scaling_factor` and `shift_factor` standardize its latents. In
another pipeline of diffusers, give it `VaeImageProcessor(do_normalize=False)`, because the models of diffusers have
pixels in [-1, 1].

## Training

{steps:,} steps of {batch_size} images of `{dataset}` in {seconds:.0f} s on {hardware}, after the training of the
VAE. The mean squared error of the last tenth of the steps was {loss:.3f}; to predict zero costs 1.
"""


@dataclass
class Moments:
    """q(z|x) of all training images, on the device: its mean and standard deviation, and the images' classes or None.

    The latents are encoded once; each step draws new ones.
    """

    mean: Tensor
    std: Tensor
    labels: Tensor | None

    def sample(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Latents of `count` random images, and their classes."""
        rows = torch.randint(len(self.mean), (count,), device=self.mean.device)
        latents = self.mean[rows] + self.std[rows] * torch.randn_like(self.mean[rows])
        return latents, None if self.labels is None else self.labels[rows]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="latent_diffusion.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--vae", metavar="FOLDER", required=True, help="trained VAE: a folder, or a repository")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the repository is written")
    parser.add_argument("--dataset_name", help="images, as for hfgen train (default: those of the VAE)")
    parser.add_argument("--dataset_path", help="local copy of the dataset")
    parser.add_argument("--seconds", type=float, default=60.0, help="training time (default: 60)")
    parser.add_argument("--max_steps", type=int, help="maximum number of steps (default: no limit)")
    parser.add_argument("--conditional", action="store_true", help="learn the classes of the dataset, too")
    parser.add_argument("--width", type=int, default=64, help="channels of the UNet, a multiple of 32 (default: 64)")
    parser.add_argument("--batch_size", type=int, default=128, help="images per step (default: 128)")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="its maximum (default: 1e-3)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    arguments = parser.parse_args(argv)
    try:
        run(arguments)
    except ValueError as error:
        parser.error(str(error))


def run(arguments: argparse.Namespace) -> None:
    """Trains, and writes the repository.

    Raises:
        ValueError: the VAE or the dataset cannot be used, or an argument is out of range.
    """
    check(arguments)
    accelerator = Accelerator()
    set_seed(arguments.seed)
    folder = fetch_model(arguments.vae, model_type=VAEConfig.model_type)
    vae = VAEModel.from_pretrained(folder).eval().to(accelerator.device)
    if vae.config.latent_type != "spatial":
        raise ValueError(
            f"--vae must have spatial latents, got {vae.config.latent_type} ones. Train it with --latent_type spatial."
        )
    conditional = arguments.conditional or bool(vae.config.num_labels)
    data = load_data(arguments, folder, vae.config, conditional)
    unet = build_unet(vae.config, arguments.width, len(data.label_names) if conditional else None)
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing",
        clip_sample=False,
    )  # fmt: skip
    moments = encode(vae, data, conditional)
    started = time.monotonic()
    steps, loss = fit(unet, scheduler, vae.config, moments, arguments, accelerator)
    seconds = time.monotonic() - started
    pipeline = LatentDDIMPipeline(vae, unet.eval(), scheduler)
    pipeline.save_pretrained(arguments.output_dir)
    results = {
        "dataset": data.name, "vae": str(arguments.vae), "steps": steps, "seconds": round(seconds, 1), "loss": loss,
        "unet_parameters": sum(parameter.numel() for parameter in unet.parameters()),
        **describe_machine(1, accelerator.device), "diffusers": version("diffusers"),
        "arguments": {**vars(arguments), "output_dir": str(arguments.output_dir)},
    }  # fmt: skip
    describe(pipeline, arguments.output_dir, results)


def check(arguments: argparse.Namespace) -> None:
    """Raises a ValueError for an argument that is out of range, before anything is loaded."""
    if arguments.width % 32 or arguments.width < 32:
        raise ValueError(f"--width must be a multiple of 32, got {arguments.width}. Choose 64.")
    for name in ("seconds", "max_steps", "batch_size", "learning_rate"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} must be a finite number above 0, got {value}. Leave it out for the default.")
    folder = arguments.output_dir
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (folder / "model_index.json").is_file():
        raise ValueError(f"--output_dir must be empty or hold a pipeline, got {folder}. Give another folder.")


def load_data(arguments: argparse.Namespace, vae_folder: Path, config: VAEConfig, conditional: bool) -> ImageData:
    """The images, in the size and colors of the VAE: those that it was trained on unless others are named."""
    own = read_results(vae_folder).get("arguments", {})
    names = ("dataset_name", "dataset_path", "dataset_config_name", "dataset_revision", "dataset_sha256",
             "train_split", "image_column", "label_column", "max_train_samples")  # fmt: skip
    flags = {name: own[name] for name in names if name in own} if arguments.dataset_name is None else {}
    given = {name: getattr(arguments, name) for name in ("dataset_name", "dataset_path")}
    flags |= {name: value for name, value in given.items() if value is not None}
    found = find_images(DataArguments(**flags), config.image_size, config.num_channels, conditional)
    if conditional and not found.label_names:
        raise ValueError(f"--conditional must be left out, as {found.name} has no classes. Name another dataset.")
    return found.load(arguments.seed)


def build_unet(config: VAEConfig, width: int, classes: int | None) -> UNet2DModel:
    """A UNet whose feature maps are halved while both sides are even and more than 4, and at most twice."""
    levels, sides = 1, config.feature_size
    while levels < 3 and all(side % 2 == 0 and side > 4 for side in sides):
        levels, sides = levels + 1, (sides[0] // 2, sides[1] // 2)
    # Few groups: one of a single channel, as 32 groups of 32 channels are, would normalize away the embeddings of time
    # and class, which are constant over a channel.
    return UNet2DModel(
        sample_size=config.feature_size, in_channels=config.latent_channels, out_channels=config.latent_channels,
        block_out_channels=[width] * levels, down_block_types=["AttnDownBlock2D"] * levels,
        up_block_types=["AttnUpBlock2D"] * levels, attention_head_dim=32, norm_num_groups=8,
        num_class_embeds=classes,
    )  # fmt: skip


@torch.no_grad()
def encode(vae: VAEModel, data: ImageData, conditional: bool, batch_size: int = 256) -> Moments:
    """q(z|x) of every training image."""
    left = data.train.num_examples
    assert left is not None  # only of a stream
    batches = data.train.batches(0, GlobalBatch(batch_size), vae.device)
    means, stds, labels = [], [], []
    while left > 0:
        batch = {name: values[:left] for name, values in next(batches).items()}
        classes = batch["labels"] if conditional else None
        posterior = vae.encode(batch["pixel_values"], classes if vae.config.num_labels else None).latent_dist
        means.append(posterior.mean)
        stds.append(posterior.std)
        labels += [] if classes is None else [classes]
        left -= batch_size
    return Moments(torch.cat(means), torch.cat(stds), torch.cat(labels) if labels else None)


def fit(
    unet: UNet2DModel,
    scheduler: DDIMScheduler,
    config: VAEConfig,
    moments: Moments,
    arguments: argparse.Namespace,
    accelerator: Accelerator,
) -> tuple[int, float]:
    """Trains a UNet, and leaves the moving average of its weights in it.

    Returns:
        the number of steps, and the mean squared error over the last tenth of them.
    """
    optimizer = torch.optim.AdamW(unet.parameters(), lr=arguments.learning_rate, weight_decay=0.0)
    model, optimizer = accelerator.prepare(unet, optimizer)
    ema = EMAModel(unet.parameters(), decay=0.999)
    factor = learning_rate_schedule("cosine", 0.05)
    losses: list[Tensor] = []
    started, progress, limit = time.monotonic(), 0.0, arguments.max_steps or float("inf")
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * factor(progress)
        latents, labels = moments.sample(arguments.batch_size)
        latents = (latents - config.shift_factor) * config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        prediction = model(noisy, timesteps, labels).sample
        loss = F.mse_loss(prediction, scheduler.get_velocity(latents, noise, timesteps))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        losses.append(loss.detach())
        progress = max((time.monotonic() - started) / arguments.seconds, len(losses) / limit)
    ema.copy_to(unet.parameters())
    return len(losses), float(torch.stack(losses[-max(1, len(losses) // 10) :]).mean())


def describe(pipeline: LatentDDIMPipeline, folder: Path, results: dict[str, Any]) -> None:
    """Writes samples, results and the card."""
    pipeline.set_progress_bar_config(disable=True)
    (images,) = pipeline(64, torch.Generator().manual_seed(0), output_type="pt", return_dict=False)
    classes = pipeline.unet.config.num_class_embeds or 0
    image_grid(images.cpu(), columns=classes if 1 < classes <= 16 else 8).save(folder / "samples.png")
    write_json(folder / "results.json", results)
    dataset, config = results["dataset"], pipeline.vae.config
    metadata = ModelCardData(
        license="apache-2.0", library_name="diffusers", pipeline_tag="unconditional-image-generation",
        tags=["hfgen", "latent-diffusion", "ddim"], datasets=[dataset] if is_hub_id(dataset) else None,
    )  # fmt: skip
    words = f"It is conditional on {classes} classes (`class_labels`), one per column." if classes else ""
    text = CARD.format(
        **{**results, "dataset": short_dataset_name(dataset)}, name=folder.resolve().name, conditional=words,
        batch_size=results["arguments"]["batch_size"], latent_shape=" × ".join(map(str, config.latent_shape)),
        image_size=" × ".join(map(str, config.image_size)),
    )  # fmt: skip
    ModelCard(f"---\n{metadata}\n---\n{text}").save(folder / "README.md")


if __name__ == "__main__":
    main()
