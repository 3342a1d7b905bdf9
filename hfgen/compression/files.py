"""From file to file: fetch the model, code, check, and only then write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ..hub import fetch_model
from ..model_folder import LoadError, read_json
from ..models.modeling_codec import CodecConfig
from ..models.modeling_gpt import GPTConfig, GPTForCausalLM
from . import gpt_text_codec, image_codec, lossless_files
from .container import IMAGES, KINDS, LOSSLESS_IMAGES, SUFFIX, TEXT, VERSION, Container, parse, read
from .identity import FetchedModel, fetch, fetch_for
from .image_files import QUALITY, compress_images, restore_images
from .lossless_files import VAES, compress_lossless, restore_lossless
from .new_files import check_new, write_file


def compress(
    file: str | Path, output: str | Path, model: str | Path, revision: str | None = None, verify: bool = False
) -> Container:
    """Compresses a text with a GPT, without loss.

    Args:
        file: a text in UTF-8.
        output: a new file; `.hfz` by custom.
        model: a folder, or a repository on the Hub, with a GPTForCausalLM and its tokenizer.
        revision: branch, tag or commit of the repository.
        verify: decompress the result before it is written, which takes several times as long.

    Returns:
        What was written.

    Raises:
        ValueError: `output` exists, the text or the model does not fit, or the model cannot be had (HubError,
            LoadError). Nothing is written.
        OSError: a file cannot be read or written.
    """
    output = check_new(output)
    original = Path(file).read_bytes()
    fetched = fetch(str(model), revision, GPTConfig.model_type)
    gpt, tokenizer = load_gpt(fetched.folder)
    parameters, payload = gpt_text_codec.encode(original, gpt, tokenizer)
    digest = sha256(original).digest()
    container = Container(
        TEXT, fetched.name, fetched.revision, fetched.weights_sha256, len(original), digest, parameters, payload
    )
    if verify:
        written = parse(container.to_bytes(), str(output))
        written.check_original(gpt_text_codec.decode(written.parameters, written.payload, gpt, tokenizer))
    write_file(output, container.to_bytes())
    return container


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


def load_gpt(folder: Path) -> tuple[GPTForCausalLM, Any]:
    """A GPT as the codec needs it, in float64 and with eager attention, and its tokenizer.

    Raises:
        LoadError: there is no GPTForCausalLM or no tokenizer in the folder.
    """
    name = GPTForCausalLM.__name__
    architectures = read_json(folder / "config.json").get("architectures") or []
    if architectures[:1] != [name]:
        raise LoadError(f"{folder} must hold a {name}, got {architectures}. Save the model with its output layer.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise LoadError(f"{folder} must hold the model's tokenizer, got none that loads: {error}") from None
    model = GPTForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    return model.eval(), tokenizer


def _restore_text(container: Container, fetched: FetchedModel, output: Path) -> None:
    original = gpt_text_codec.decode(container.parameters, container.payload, *load_gpt(fetched.folder))
    write_file(output, container.check_original(original))


# By kind of content.
_MODEL_TYPES = {TEXT: GPTConfig.model_type, IMAGES: CodecConfig.model_type, LOSSLESS_IMAGES: None}
_RESTORE: dict[int, Callable[[Container, FetchedModel, Path], None]] = {
    TEXT: _restore_text,
    IMAGES: restore_images,
    LOSSLESS_IMAGES: restore_lossless,
}
_DESCRIPTIONS: dict[int, Callable[[bytes], dict[str, Any]]] = {
    TEXT: gpt_text_codec.describe,
    IMAGES: image_codec.describe,
    LOSSLESS_IMAGES: lossless_files.describe,
}


def _default_output(file: Path, kind: int) -> Path:
    if kind != TEXT:
        return file.with_suffix("").with_suffix("") if file.suffix == SUFFIX else file.with_name(f"{file.name}.images")
    output = file.with_suffix("") if file.suffix == SUFFIX else file.with_name(f"{file.name}.txt")
    return output if output.suffix else output.with_suffix(".txt")
