"""`hfgen sample MODEL [OUT]`"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_drawing, add_json, add_model, positive, print_result


if TYPE_CHECKING:
    from torch import Tensor

HELP = "draw images"
BATCH_SIZE = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "folder or repository of a VAE, Ladder VAE or GAN")
    parser.add_argument("output", metavar="OUT", type=Path, nargs="?", default=Path("samples.png"),
                        help="picture to write, or, without a suffix, a new folder with a file for each image "
                        "(default: samples.png)")  # fmt: skip
    parser.add_argument("-n", "--count", type=positive, default=64, help="images to draw (default: 64)")
    parser.add_argument("--columns", type=positive,
                        help="images per row of the picture (default: one per class, or 8)")  # fmt: skip
    add_drawing(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Draws images at random: a grid in a picture, or a folder of them. The same seed draws the same images as
    `model.sample` in Python. It runs hfgen's own code, never the code that comes with the model."""
    import torch

    from ..image_processing import image_grid
    from .images.load_model import load_model
    from .images.output import check_output, write_images, write_picture

    output, count = arguments.output, arguments.count
    is_picture = check_output(output)
    model = load_model(arguments.model, arguments.revision, lambda kind: hasattr(kind, "sample"), "draw images")
    batches = _draw(model, arguments)
    if is_picture:
        images = torch.cat(list(batches))
        write_picture(output, [image_grid(images, min(count, arguments.columns or _columns(model, arguments.label)))])
    else:
        digits = len(str(count - 1))
        every = (image for batch in batches for image in batch)
        write_images(output, ((f"{index:0{digits}d}.png", image) for index, image in enumerate(every)))
    print_result(
        arguments, f"Wrote {output}: {count:,} images.", output=str(output), images=count, seed=arguments.seed
    )


def _draw(model: Any, arguments: argparse.Namespace) -> Iterator[Tensor]:
    """Batches of images, from one generator."""
    import torch

    from .images.load_model import class_of_each, temperature_option
    from .images.output import draw_batches

    labels = class_of_each(model, arguments.count, arguments.label)
    options = temperature_option(model, arguments.temperature)
    generator = torch.Generator().manual_seed(arguments.seed)

    def draw(start: int, stop: int) -> Tensor:
        classes = None if labels is None else labels[start:stop]
        return model.sample(stop - start, labels=classes, generator=generator, **options).cpu()

    return draw_batches(arguments.count, BATCH_SIZE, draw)


def _columns(model: Any, labels: list[str] | None) -> int:
    """One for each class that is drawn, if those fit side by side."""
    from ..embedding import is_conditional

    classes = len(labels or []) or (model.config.num_labels if is_conditional(model.config) else 0)
    return classes if 2 <= classes <= 16 else 8
