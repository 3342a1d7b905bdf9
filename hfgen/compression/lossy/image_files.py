"""From image files to one `.hfz` file, and back to PNG files in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...image_processing import to_pil, to_pixel_values
from ...models.modeling_codec import CodecConfig, CodecModel
from ..container import IMAGES, Container, parse
from ..identity import FetchedModel, fetch
from ..new_files import check_new, write_file, write_folder
from . import image_codec


QUALITY = 0.5


def compress_images(
    files: Sequence[str | Path],
    output: str | Path,
    model: str | Path,
    quality: float = QUALITY,
    revision: str | None = None,
    verify: bool = False,
) -> Container:
    """Compresses images with a codec. What is lost depends on the quality.

    Args:
        files: images that Pillow reads, of any size. Their names must differ before the suffix.
        output: a new file; `.hfz` by custom.
        model: a folder, or a repository on the Hub, with a CodecModel.
        quality: in [0, 1]; rounded to the nearest level of the model.
        revision: branch, tag or commit of the repository.
        verify: decode the symbols before they are written.

    Returns:
        What was written.

    Raises:
        ValueError: `output` exists, an image cannot be read, a name or the quality does not fit, or the model cannot
            be had (HubError, LoadError). Nothing is written.
        OSError: a file cannot be written.
    """
    output = check_new(output)
    fetched = fetch(str(model), revision, CodecConfig.model_type)
    codec = _load(fetched)
    images = [
        (f"{Path(file).stem}.png", to_pixel_values([str(file)], codec.config.num_channels))
        for file in map(Path, files)
    ]
    parameters, payload, digest = image_codec.encode(images, codec, quality)
    size = sum(pixels.numel() for _, pixels in images)
    container = Container(
        IMAGES, fetched.name, fetched.revision, fetched.weights_sha256, size, digest, parameters, payload
    )
    content = container.to_bytes()
    if verify:
        written = parse(content, str(output))
        image_codec.decode(written.parameters, written.payload, codec, written.original_sha256)
    write_file(output, content)
    return container


def restore_images(container: Container, fetched: FetchedModel, folder: Path) -> None:
    """Writes the images of a file to a new folder, which appears only when all of them are there.

    Raises:
        ValueError: the content is not what was written. Nothing is written.
    """
    model = _load(fetched)
    images = image_codec.decode(container.parameters, container.payload, model, container.original_sha256)

    def fill(empty: Path) -> None:
        for name, pixels in images:
            to_pil(pixels)[0].save(empty / name)

    write_folder(folder, fill)


def _load(fetched: FetchedModel) -> CodecModel:
    return CodecModel.from_pretrained(fetched.folder).eval()
