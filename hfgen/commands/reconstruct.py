"""`hfgen reconstruct MODEL IMAGES... OUT`"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .arguments import add_json, add_labels, add_model


if TYPE_CHECKING:
    from torch import Tensor

HELP = "encode images and decode them again"
BATCH_SIZE = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "folder or repository of an Auto-Encoder, VAE, Ladder VAE or codec")
    parser.add_argument("images", metavar="IMAGES", type=Path, nargs="+", help="image files, and folders of them")
    parser.add_argument("output", metavar="OUT", type=Path,
                        help="picture of the images above their reconstructions, or, without a suffix, a new folder "
                        "of reconstructions")  # fmt: skip
    add_labels(parser)
    parser.add_argument("--quality", type=float, help="of a codec, from 0 to 1 (default: 0.5)")
    add_json(parser, "print a JSON object per image")


def run(arguments: argparse.Namespace) -> None:
    """Encodes images, decodes them again, and says how far the result is from the original as the model sees it: in
    its size and colors. It runs hfgen's own code, never the code that comes with the model."""
    import torch

    from .images.load_model import load_model
    from .images.output import check_output, pairs_picture, write_images, write_picture
    from .images.scores import find_files

    is_picture = check_output(arguments.output)
    files = list(find_files(arguments.images))
    if not files:
        raise ValueError(f"IMAGES must hold images, got {', '.join(map(str, arguments.images))}. Check the names.")
    model = load_model(
        arguments.model, arguments.revision, lambda kind: hasattr(kind, "decode") or hasattr(kind, "decode_symbols"),
        "encode images",
    )  # fmt: skip
    if arguments.quality is not None and not hasattr(model, "decode_symbols"):
        raise ValueError("--quality must be left out, as this model is no codec.")
    found = _reconstruct(model, files, arguments)
    if is_picture:
        kept = list(found)
        if len({pair.original.shape for pair in kept}) > 1:
            raise ValueError("IMAGES must have one size to be in one picture. Name a folder instead of OUT.")
        originals, others = (torch.stack(images) for images in zip(*((pair[1], pair[2]) for pair in kept)))
        write_picture(arguments.output, [pairs_picture(originals, others, columns=8)])
    else:
        kept = []
        names = _new_names(files)

        def written() -> Iterator[tuple[str, Tensor]]:
            for name, pair in zip(names, found):
                kept.append(pair._replace(original=torch.empty(0), reconstruction=torch.empty(0)))
                yield name, pair.reconstruction

        write_images(arguments.output, written())
    _report(kept, arguments)


class Pair(NamedTuple):
    """An image, and what became of it.

    Attributes:
        file: its path.
        original: (channels, height, width) in [0, 1], as the model sees it.
        reconstruction: in the same form.
        mse: mean squared error of a pixel.
    """

    file: Path
    original: Tensor
    reconstruction: Tensor
    mse: float


def _reconstruct(model: Any, files: list[Path], arguments: argparse.Namespace) -> Iterator[Pair]:
    import torch

    from ..image_processing import to_pixel_values
    from .images.load_model import class_of_each

    labels = class_of_each(model, len(files), arguments.label)
    size = None if model.takes_any_size else tuple(model.config.image_size)
    step = 1 if size is None else BATCH_SIZE
    quality = 0.5 if arguments.quality is None else arguments.quality
    for start in range(0, len(files), step):
        part = files[start : start + step]
        pixels = torch.cat([_read(to_pixel_values, file, model.config.num_channels, size) for file in part])
        images = pixels.to(model.device).float() / 255
        with torch.inference_mode():
            others = _decoded(model, images, None if labels is None else labels[start : start + step], quality)
        errors = (others - images).double().square().flatten(1).mean(1).tolist()
        yield from map(Pair, part, images.cpu(), others.cpu(), errors)


def _read(to_pixel_values: Any, file: Path, num_channels: int, size: Any) -> Tensor:
    try:
        return to_pixel_values(file, num_channels, size)
    except ValueError as error:
        reason = str(error).removeprefix("images, position 0: ")
        raise ValueError(f"{file}: {reason if file.exists() else 'there is no such file or folder.'}") from None


def _decoded(model: Any, images: Tensor, labels: list[str | int] | None, quality: float) -> Tensor:
    """The reconstructions of a batch: of a VAE, those of the means of q(z|x)."""
    if hasattr(model, "decode_symbols"):
        return model.decode_symbols(model.encode_symbols(images, quality), quality, tuple(images.shape[2:]))
    if hasattr(model, "log_likelihood"):
        latents = model.encode(images, labels, return_dict=True).latent_dist.mode()
        return model.decode(latents, labels, return_dict=True).sample
    return model.decode(model.encode(images))


def _new_names(files: list[Path]) -> list[str]:
    """A name in one folder for each file.

    Raises:
        ValueError: two files have the same name.
    """
    names = [f"{file.stem}.png" for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"IMAGES must differ in their names, got two that would become {twice}. Rename one of them.")
    return names


def _report(pairs: list[Pair], arguments: argparse.Namespace) -> None:
    if arguments.json:
        for pair in pairs:
            psnr = -10 * math.log10(pair.mse) if pair.mse else None
            print(json.dumps({"file": str(pair.file), "mse": pair.mse, "psnr": psnr}))
        return
    mse = sum(pair.mse for pair in pairs) / len(pairs)
    decibels = f" ({-10 * math.log10(mse):.1f} dB)" if mse else ""
    print(f"Wrote {arguments.output}: {len(pairs):,} images, mean squared error {mse:.4g}{decibels}.")
