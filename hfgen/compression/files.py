"""From file to file: whose codec is it? It follows from the model, or from the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..hub import fetch_model
from ..model_folder import read_json
from ..models.modeling_codec import CodecConfig
from ..models.modeling_gpt import GPTConfig
from .container import IMAGES, KINDS, LOSSLESS_IMAGES, SUFFIX, TEXT, VERSION, Container, read
from .identity import FetchedModel, fetch_for
from .lossless.lossless_files import VAES, compress_lossless, restore_lossless
from .lossless.lossless_files import describe as describe_lossless
from .lossy.image_codec import describe as describe_images
from .lossy.image_files import QUALITY, compress_images, restore_images
from .new_files import check_new
from .text.gpt_text_codec import describe as describe_text
from .text.text_files import compress, restore_text


def compress_files(
    files: Sequence[str | Path],
    output: str | Path,
    model: str | Path,
    revision: str | None = None,
    verify: bool = False,
    quality: float | None = None,
    lossless: bool = False,
    split: str | None = None,
) -> Container:
    """Compresses what the model is for: one text with a GPT, or images with a codec, or without loss with a VAE.

    Args:
        files: a text, or images.
        output, model, revision, verify: see [`compress`], [`compress_images`] and [`compress_lossless`].
        quality: of images, in [0, 1]; None for 0.5.
        lossless: keep every pixel of images.
        split: of the dataset that `files` names; for lossless images only.

    Raises:
        ValueError, OSError: see there.
    """
    folder = fetch_model(model, revision)
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type in VAES and lossless and quality is None:
        return compress_lossless(files, output, model, revision, verify, split)
    if model_type in VAES:
        raise ValueError("A VAE must be used with --lossless and without --quality. For other images, name a codec.")
    if split is not None:
        raise ValueError("--split must be left out, as only a VAE compresses a dataset. It needs --lossless.")
    if model_type == CodecConfig.model_type:
        if lossless:
            raise ValueError("--lossless must be left out, as a codec loses details. For lossless images, name a VAE.")
        chosen = QUALITY if quality is None else quality
        return compress_images(files, output, model, chosen, revision, verify)
    if len(files) > 1:
        raise ValueError(f"FILE must be one text for this model, got {len(files)} files. Only a codec takes several.")
    if quality is not None:
        raise ValueError("--quality must be left out, as this model compresses without loss. It is for images.")
    return compress(files[0], output, model, revision, verify)


def decompress(
    file: str | Path, output: str | Path | None = None, model: str | Path | None = None, revision: str | None = None
) -> Path:
    """Restores what was compressed: a text byte for byte, images as PNG files in a folder.

    Args:
        file: a `.hfz` file.
        output: a new file; None: the name of `file` without `.hfz`, or with `.txt` if nothing but a stem is left. For
            images, a new folder; None: the name of `file` without suffixes.
        model: a folder or a repository with the model that the file was compressed with; None: the repository and
            revision that the file names.
        revision: branch, tag or commit of `model`.

    Returns:
        The file or folder that was written.

    Raises:
        ValueError: `output` exists; the file is foreign, damaged or of a newer version; the model is not the one that
            compressed it, or cannot be had (HubError, LoadError); this machine's arithmetic is another. Nothing is
            written.
        OSError: a file cannot be read or written.
    """
    container = read(Path(file))
    output = check_new(output or _default_output(Path(file), container.kind))
    model_type = _MODEL_TYPES[container.kind]
    fetched = fetch_for(container, model_type, None if model is None else str(model), revision)
    _RESTORE[container.kind](container, fetched, output)
    return output


def describe(file: str | Path) -> dict[str, Any]:
    """What a `.hfz` file says of itself; the model is not needed.

    Raises:
        ValueError: the file is foreign, damaged or of a newer version.
        OSError: it cannot be read.
    """
    container = read(Path(file))
    size = Path(file).stat().st_size
    return {
        "format_version": VERSION,
        "kind": KINDS[container.kind],
        "model": container.model,
        "revision": container.revision or None,
        "weights_sha256": container.weights_sha256.hex(),
        "original_size": container.original_size,
        "original_sha256": container.original_sha256.hex(),
        "size": size,
        "bits_per_byte": 8 * size / container.original_size if container.original_size else None,
        **_DESCRIPTIONS[container.kind](container.parameters),
    }


# By kind of content.
_MODEL_TYPES = {TEXT: GPTConfig.model_type, IMAGES: CodecConfig.model_type, LOSSLESS_IMAGES: None}
_RESTORE: dict[int, Callable[[Container, FetchedModel, Path], None]] = {
    TEXT: restore_text,
    IMAGES: restore_images,
    LOSSLESS_IMAGES: restore_lossless,
}
_DESCRIPTIONS: dict[int, Callable[[bytes], dict[str, Any]]] = {
    TEXT: describe_text,
    IMAGES: describe_images,
    LOSSLESS_IMAGES: describe_lossless,
}


def _default_output(file: Path, kind: int) -> Path:
    if kind != TEXT:
        return file.with_suffix("").with_suffix("") if file.suffix == SUFFIX else file.with_name(f"{file.name}.images")
    output = file.with_suffix("") if file.suffix == SUFFIX else file.with_name(f"{file.name}.txt")
    return output if output.suffix else output.with_suffix(".txt")
