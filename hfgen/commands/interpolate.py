"""`hfgen interpolate MODEL OUT`"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_drawing, add_json, add_model, positive, print_result


if TYPE_CHECKING:
    from torch import Tensor

HELP = "draw the way from one image to another"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "folder or repository of an Auto-Encoder, VAE, Ladder VAE or GAN")
    parser.add_argument("output", metavar="OUT", type=Path,
                        help="picture to write; .gif and .webp are animated")  # fmt: skip
    parser.add_argument("--between", metavar="IMAGE", type=Path, nargs=2,
                        help="two image files, for a model that encodes images (default: two images drawn at "
                        "random)")  # fmt: skip
    parser.add_argument("--steps", type=positive, help="images on the way, both ends included "
                        "(default: 10, or 30 in an animation)")  # fmt: skip
    parser.add_argument("-n", "--count", type=positive, help="ways to draw (default: 6, or 1 with --between)")
    add_drawing(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Draws ways through the latents of a model: along great circles where the latents are normal, as a straight line
    would leave the places that the model knows, and along straight lines in an Auto-Encoder. It runs hfgen's own code,
    never the code that comes with the model."""
    from ..image_processing import image_grid
    from .images.load_model import load_model
    from .images.output import ANIMATED, check_output, write_picture

    if not check_output(arguments.output):
        raise ValueError(f"OUT must be a picture, got {str(arguments.output)!r}. Give it a suffix such as .png.")
    is_animated = arguments.output.suffix.lower() in ANIMATED
    steps = arguments.steps or (30 if is_animated else 10)
    if steps < 2:
        raise ValueError(f"--steps must be at least 2, got {steps}. Both ends count.")
    model = load_model(arguments.model, arguments.revision, _has_latents, "go from one image to another")
    paths = _paths(model, arguments, steps).cpu()
    if is_animated:
        frames = [image_grid(images) for images in paths.unbind(1)]
        pictures = [*frames, *frames[-2:0:-1]]  # there and back
    else:
        pictures = [image_grid(paths.flatten(0, 1), columns=steps)]
    write_picture(arguments.output, pictures)
    words = f"Wrote {arguments.output}: {len(paths):,} × {steps:,} images."
    print_result(arguments, words, output=str(arguments.output), ways=len(paths), steps=steps)


def _has_latents(kind: type) -> bool:
    return any(hasattr(kind, name) for name in ("decode", "sample")) and not hasattr(kind, "generate")


def _paths(model: Any, arguments: argparse.Namespace, steps: int) -> Tensor:
    """Images (ways, steps, channels, height, width)."""
    import torch

    from .images.load_model import class_of_each

    count = arguments.count or (1 if arguments.between else 6)
    labels = class_of_each(model, count, arguments.label)
    if not hasattr(model, "encode"):
        if arguments.between:
            raise ValueError("--between must be left out, as this model encodes no images.")
        return _between_latents(model, arguments, count, steps, labels)
    if arguments.between:
        if count > 1 and not labels:
            raise ValueError(f"--count must be 1 with --between, got {count}. There is one way between two images.")
        a, b = (image.expand(count, -1, -1, -1) for image in _read(model, arguments.between))
    elif hasattr(model, "sample"):
        a, b = _draw_ends(model, arguments, count, labels)
    else:
        raise ValueError("--between must name two images, as this model draws none at random.")
    with torch.inference_mode():
        if hasattr(model, "interpolate"):
            return model.interpolate(a, b, steps, labels)
        start, end = model.encode(a), model.encode(b)
        return torch.stack([model.decode(torch.lerp(start, end, t)) for t in torch.linspace(0, 1, steps).tolist()], 1)


def _between_latents(
    model: Any, arguments: argparse.Namespace, count: int, steps: int, labels: list[str | int] | None
) -> Tensor:
    """Of a GAN: along great circles between latents."""
    import torch

    from ..models.latents import slerp
    from .images.load_model import temperature_option

    (truncation,) = temperature_option(model, 1.0 if arguments.temperature is None else arguments.temperature).values()
    generator = torch.Generator().manual_seed(arguments.seed)
    latents = truncation * torch.randn(2, count, model.config.latent_dim, generator=generator)
    start, end = latents.to(model.device)
    with torch.inference_mode():
        return torch.stack([model(slerp(start, end, t), labels) for t in torch.linspace(0, 1, steps).tolist()], 1)


def _draw_ends(
    model: Any, arguments: argparse.Namespace, count: int, labels: list[str | int] | None
) -> tuple[Tensor, Tensor]:
    import torch

    from .images.load_model import temperature_option

    generator = torch.Generator().manual_seed(arguments.seed)
    options = temperature_option(model, arguments.temperature)
    a, b = (model.sample(count, labels=labels, generator=generator, **options) for _ in range(2))
    return a, b


def _read(model: Any, files: list[Path]) -> list[Tensor]:
    """Two images (1, channels, height, width) as the model takes them."""
    from ..image_processing import to_pixel_values

    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise ValueError(f"--between must name two files, got {str(missing)!r}. Check the spelling.")
    pixels = to_pixel_values(files, model.config.num_channels, tuple(model.config.image_size))
    return list((pixels.to(model.device).float() / 255).split(1))
