"""From images to one `.hfz` file without loss, with a VAE, and back to PNG files with the very same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from ...image_processing import to_pil, to_pixel_values, why_unreadable
from ...model_folder import LoadError, read_json
from ...models.modeling_ladder_vae import LadderVAEModel
from ...models.modeling_vae import VAEModel
from ..container import LOSSLESS_IMAGES, Container, parse
from ..identity import FetchedModel, fetch
from ..new_files import check_image_name, check_new, write_file, write_folder
from . import vae_image_codec
from .image_plan import ImagePlan, numbered_names


VAES: dict[str, type[VAEModel] | type[LadderVAEModel]] = {
    model.config_class.model_type: model for model in (VAEModel, LadderVAEModel)
}
# Pillow's modes that lose nothing in a model's format, by its number of channels.
_MODES = {1: ("1", "L"), 3: ("1", "L", "RGB")}


def compress_lossless(
    data: Sequence[str | Path] | np.ndarray,
    output: str | Path,
    model: str | Path,
    revision: str | None = None,
    verify: bool = False,
    split: str | None = None,
) -> Container:
    """Compresses images without loss, many in one file. All of them have the size of the model's images.

    Args:
        data: files of images and folders of such files; or pixels (images, channels, height, width), uint8; or, with
            `split`, one dataset on the Hub or in a folder.
        output: a new file; `.hfz` by custom.
        model: a folder, or a repository on the Hub, with a VAEModel or LadderVAEModel that has the prior N(0, I) and
            no classes.
        revision: branch, tag or commit of the repository.
        verify: decompress the result before it is written, which takes as long again.
        split: of a dataset with one column of images, such as "test".

    Returns:
        What was written.

    Raises:
        ValueError: `output` exists; an image cannot be read, has another size than the model's, or would lose
            something; or the model does not fit or cannot be had (HubError, LoadError). Nothing is written.
        OSError: a file cannot be written.
    """
    output = check_new(output)
    fetched = fetch(str(model), revision)
    vae = load_vae(fetched.folder)
    if isinstance(data, np.ndarray):
        pixels, names = data, numbered_names(len(data))
    elif split is not None:
        pixels, names = _read_dataset(data, split, vae.config.num_channels)
    else:
        pixels, names = _read_files(data, vae.config.num_channels)
    parameters, payload = vae_image_codec.encode(pixels, names, vae)
    original = pixels.tobytes()
    container = Container(
        LOSSLESS_IMAGES, fetched.name, fetched.revision, fetched.weights_sha256, len(original),
        sha256(original).digest(), parameters, payload,
    )  # fmt: skip
    content = container.to_bytes()
    if verify:
        _decode(parse(content, str(output)), vae)
    write_file(output, content)
    return container


def restore_lossless(container: Container, fetched: FetchedModel, folder: Path) -> None:
    """Writes the images of a file to a new folder, as PNG files. It appears only when all of them are there.

    Raises:
        ValueError: the content is not what was written. Nothing is written.
    """
    plan, pixels = _decode(container, load_vae(fetched.folder))

    def fill(empty: Path) -> None:
        for name, image in zip(plan.names, to_pil(torch.from_numpy(pixels)), strict=True):
            image.save(empty / name)

    write_folder(folder, fill)


def load_vae(folder: Path) -> VAEModel | LadderVAEModel:
    """A VAE as the codec needs it, in float64.

    Raises:
        LoadError: there is none in the folder.
    """
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in VAES:
        raise LoadError(f"{folder} must hold a {' or '.join(VAES)} for lossless images, got {model_type!r}.")
    return VAES[model_type].from_pretrained(folder, dtype=torch.float64).eval()


def describe(parameters: bytes) -> dict[str, Any]:
    """What the parameters say of the images."""
    return ImagePlan.from_bytes(parameters).describe()


def _decode(container: Container, vae: VAEModel | LadderVAEModel) -> tuple[ImagePlan, np.ndarray]:
    """The plan and the pixels of a file, if they are those that were compressed.

    Raises:
        ValueError: they are not.
    """
    plan = ImagePlan.from_bytes(container.parameters)
    if container.original_size != plan.num_pixels * plan.image_shape[0]:
        raise ValueError(f"The original must have {plan.num_pixels:,} pixels, got {container.original_size:,} bytes.")
    pixels = vae_image_codec.decode(plan, container.payload, vae)
    container.check_original(pixels.tobytes())
    return plan, pixels


def _read_files(data: Sequence[str | Path], num_channels: int) -> tuple[np.ndarray, list[str]]:
    """Pixels and names of files and of those in folders, in the order of their names."""
    files: list[Path] = []
    suffixes = PIL.Image.registered_extensions()
    for path in map(Path, data):
        if path.is_dir():
            files += sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
        else:
            files.append(path)
    if not files:
        raise ValueError(f"IMAGE must be files of images, or folders with some, got {', '.join(map(str, data))}.")
    names = [check_image_name(f"{file.stem}.png") for file in files]
    if len({name.casefold() for name in names}) < len(names):
        raise ValueError("IMAGE must have names that differ before the suffix, as all become PNG files. Rename some.")
    images = []
    for file in files:
        try:
            with PIL.Image.open(file) as image:
                images.append(_check_mode(image, num_channels, str(file)).copy())
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{file}: {why_unreadable(error)}") from None
    return to_pixel_values(images, num_channels).numpy(), names


def _read_dataset(data: Sequence[str | Path], split: str, num_channels: int) -> tuple[np.ndarray, list[str]]:
    """Pixels of a split, and numbers for names."""
    try:
        import datasets
    except ImportError:
        raise ValueError("--split needs datasets, which is not installed. Run: pip install 'hfgen[train]'") from None
    if len(data) != 1:
        raise ValueError(f"With --split, IMAGE must be one dataset, got {len(data)}. Name the others in other files.")
    try:
        rows = datasets.load_dataset(str(data[0]), split=split)
    except Exception as error:  # of many classes, and some name no dataset
        text = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(f"IMAGE must be a dataset with the split {split!r}, got {data[0]}: {text}.") from error
    columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1:
        found = ", ".join(rows.features)
        raise ValueError(f"The dataset must have one column of images, got {len(columns)} among {found}.")
    images = [
        _check_mode(image, num_channels, f"{data[0]}, image {number}") for number, image in enumerate(rows[columns[0]])
    ]
    return to_pixel_values(images, num_channels).numpy(), numbered_names(len(images))


def _check_mode(image: PIL.Image.Image, num_channels: int, name: str) -> PIL.Image.Image:
    """Returns an image that becomes pixels of the model without loss.

    Raises:
        ValueError: it does not.
    """
    modes = _MODES[num_channels]
    if image.mode not in modes or "transparency" in image.info:
        raise ValueError(
            f"{name} must have one of Pillow's modes {', '.join(modes)}, and no transparency, got {image.mode}. The "
            f"model has {num_channels} channel{'s' if num_channels > 1 else ''} of 8 bits. Convert it first."
        )
    return image
