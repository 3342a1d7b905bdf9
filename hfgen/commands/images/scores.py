"""How strange images are to an Auto-Encoder, which of them are anomalies, and where: what `hfgen score` does.

Files are read and scored in batches, so that a folder of any size needs no more memory than a batch.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...hub import fetch_model
from ...image_processing import IMAGE_SUFFIXES, overlay_maps, to_pil, to_pixel_values
from ...models import AutoencoderConfig, AutoencoderModel


BATCH_SIZE = 64
LEAST_SIDE = 256  # pixels of a map's picture: smaller images are enlarged


@dataclass(frozen=True)
class ScoredImage:
    """What is known of a file.

    Attributes:
        path: of the file, as it was given or found in a folder.
        score: larger for images that are less like the training images; None if the file could not be read.
        is_anomaly: whether the score is above the model's threshold; None if the model has none.
        map: (height, width) of the model, larger where the image is stranger.
        error: why the file could not be read.
    """

    path: Path
    score: float | None = None
    is_anomaly: bool | None = None
    map: Tensor | None = None
    error: str = ""


def score(
    name_or_path: str, images: Sequence[Path], as_json: bool, maps: Path | None = None, revision: str | None = None
) -> int:
    """Prints the score of every image as soon as it is known.

    Args:
        name_or_path: folder or Hub repository of an Auto-Encoder.
        images: files, and folders that are searched for images.
        as_json: whether to print a JSON object per line instead of a table.
        maps: folder for pictures of the images with their maps, at the same places as the images; None for none.
        revision: branch, tag or commit of the repository.

    Returns:
        The exit status: 0, or 1 if files could not be read.

    Raises:
        ValueError: The model cannot be used, or there are no images.
    """
    folder = fetch_model(name_or_path, revision, AutoencoderConfig.model_type)
    model = AutoencoderModel.from_pretrained(folder).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    home, counts = _common_folder(images), Counter[str]()
    if not as_json:
        print(f"{'score':>12}  {'anomaly':7}  file")
    for image in score_images(model, find_files(images, leave_out=maps)):
        counts["files"] += 1
        if image.error:
            counts["unreadable"] += 1
            print(f"hfgen score: {image.path}: {image.error}", file=sys.stderr)
        else:
            counts["anomalies"] += bool(image.is_anomaly)
        picture = None if maps is None or image.error else _picture_path(maps, home, image.path)
        if picture is not None:
            _write_map(image, picture, model.config.anomaly_map_threshold)
        if as_json:
            print(json.dumps(_as_json(image, picture)), flush=True)
        elif not image.error:
            print(f"{image.score:12.6g}  {_WORDS[image.is_anomaly]:7}  {image.path}", flush=True)
    if not counts["files"]:
        raise ValueError(
            f"IMAGES must hold images, got {', '.join(map(str, images))}, where no file has a usual suffix such as "
            ".png or .jpg. Check the names."
        )
    print(_summary(counts, model.config.anomaly_threshold), file=sys.stderr)
    return 1 if counts["unreadable"] else 0


def find_files(paths: Iterable[Path], leave_out: Path | None = None) -> Iterator[Path]:
    """Yields files as they are given, and of folders all images, by the order of their names.

    Hidden files and folders are left out; links are followed.

    Args:
        paths: files and folders; a file may be missing.
        leave_out: a folder that is not searched.
    """
    for path in paths:
        if path.is_dir():
            yield from _walk(path, leave_out, frozenset())
        else:
            yield path


def score_images(
    model: AutoencoderModel, files: Iterable[Path], batch_size: int = BATCH_SIZE
) -> Iterator[ScoredImage]:
    """Yields the files in their order, scored; those that cannot be read have an error instead.

    Args:
        model: in evaluation mode.
        files: of images, of any size; read as for training.
        batch_size: files held at a time.
    """
    remaining = iter(files)
    while batch := list(islice(remaining, batch_size)):
        pixels, errors = [], {}
        for path in batch:
            try:
                pixels.append(to_pixel_values(path, model.config.num_channels, tuple(model.config.image_size)))
            except ValueError as error:
                reason = str(error).removeprefix("images, position 0: ")
                errors[path] = reason if path.exists() else "there is no such file or folder. Check the spelling."
        scored = iter(_predict(model, pixels, [path for path in batch if path not in errors]))
        for path in batch:
            yield ScoredImage(path, error=errors[path]) if path in errors else next(scored)


def _predict(model: AutoencoderModel, pixels: list[Tensor], paths: list[Path]) -> list[ScoredImage]:
    if not pixels:
        return []
    output: Any = model.predict_anomaly(torch.cat(pixels).to(model.device).float() / 255)
    decisions = [None] * len(paths) if output.is_anomaly is None else output.is_anomaly.tolist()
    return [
        ScoredImage(*values) for values in zip(paths, output.scores.tolist(), decisions, output.maps.float().cpu())
    ]


def _walk(folder: Path, leave_out: Path | None, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above or (leave_out is not None and real == os.path.realpath(leave_out)):
        return  # a link to a folder that it is in, or the maps of an earlier run
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, leave_out, above | {real})
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path


_WORDS = {True: "yes", False: "no", None: "-"}


def _as_json(image: ScoredImage, picture: Path | None) -> dict[str, object]:
    if image.error:
        return {"file": str(image.path), "error": image.error}
    found: dict[str, object] = {"file": str(image.path), "score": image.score, "is_anomaly": image.is_anomaly}
    return found if picture is None else {**found, "map": str(picture)}


def _summary(counts: Counter[str], threshold: float | None) -> str:
    read = counts["files"] - counts["unreadable"]
    if threshold is None:
        text = (
            f"{read:,} of {counts['files']:,} files were scored. The model has no threshold to tell anomalies by: "
            "train one with --normal_label, or compare the scores with those of normal images."
        )
    else:
        text = f"{counts['anomalies']:,} of {read:,} images are anomalies, with scores above {threshold:.6g}."
    return f"{text} {counts['unreadable']:,} files could not be read." if counts["unreadable"] else text


def _common_folder(paths: Sequence[Path]) -> Path:
    """The folder below which all images lie, so that no two have the same place in it."""
    return Path(os.path.commonpath([os.path.abspath(path if path.is_dir() else path.parent) for path in paths]))


def _picture_path(maps: Path, home: Path, image: Path) -> Path:
    place = Path(os.path.abspath(image)).relative_to(home)
    return maps / place.with_name(f"{place.name}.png" if place.suffix.lower() != ".png" else place.name)


def _write_map(image: ScoredImage, target: Path, threshold: float | None) -> None:
    """Writes the image in its own size, painted red where its map is high."""
    assert image.map is not None
    pixels = to_pixel_values(image.path, 3).float() / 255
    (picture,) = to_pil(overlay_maps(pixels, image.map[None], threshold))
    scale = -(-LEAST_SIDE // max(picture.size))
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * scale, picture.height * scale), resample=0).save(target)
