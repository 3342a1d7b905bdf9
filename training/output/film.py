"""A film of a training: pictures of the same latents, drawn at equal distances, as an animated WebP.

The pictures are kept in a hidden folder, so that a run that resumes continues the film.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import PIL.Image

from hfgen.model_folder import step_of

from ..data.sources.splits import one_line


logger = logging.getLogger(__name__)
FRAMES = 40
FOLDER, NAME = ".film", "film.webp"
MILLISECONDS, LAST_MILLISECONDS = 150, 2000
WIDEST = 512  # pixels
# Of the training so far: further pictures wait until the run is longer.
LARGEST_SHARE = 0.02


def is_due(previous: float, progress: float) -> bool:
    """Whether it is time for a picture after a step that took a run from one progress in [0, 1] to another."""
    return int(FRAMES * previous) < int(FRAMES * progress)


def is_cheap(drawing_seconds: float, seconds: float) -> bool:
    """Whether pictures, which took some seconds so far, are still a small share of the seconds of training."""
    return drawing_seconds <= LARGEST_SHARE * seconds


def forget_after(output_dir: Path, step: int) -> None:
    """Deletes pictures of steps that a run which resumes will repeat."""
    for path in (output_dir / FOLDER).glob("step-*"):
        if step_of(path) > step:
            path.unlink(missing_ok=True)


def write_film(output_dir: Path, last_step: int, finished: Path | None = None) -> Path | None:
    """Writes samples/film.webp from the pictures. A failure is a warning.

    Args:
        output_dir: of the run.
        last_step: of the run, or of the state that is published: pictures of later ones are left out.
        finished: the picture of the finished model, the last one of the film, if there is such a file.

    Returns:
        the file, or None if there are fewer than two pictures.
    """
    try:
        frames = [path for path in sorted((output_dir / FOLDER).glob("step-*.png")) if step_of(path) <= last_step]
        frames += [finished] if finished is not None and finished.is_file() else []
        if len(frames) < 2:
            return None
        return _write(frames, output_dir / "samples" / NAME)
    except Exception as error:
        logger.warning("The film was not written: %s: %s", type(error).__name__, one_line(error))
        return None


def _write(frames: list[Path], target: Path) -> Path:
    pictures = []
    for path in frames:
        with PIL.Image.open(path) as picture:
            picture.thumbnail((WIDEST, 4 * WIDEST))
            pictures.append(picture.convert("RGB"))
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.name}")
    durations = [MILLISECONDS] * (len(pictures) - 1) + [LAST_MILLISECONDS]
    pictures[0].save(temporary, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0,
                     quality=70)  # fmt: skip
    os.replace(temporary, target)
    return target
