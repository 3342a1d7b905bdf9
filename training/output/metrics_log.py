"""metrics.jsonl, and the experiment trackers, which receive the same values and the samples."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from ..config.flags import Arguments, as_recipe
from ..objective import Sample


logger = logging.getLogger(__name__)


class MetricsLog:
    """metrics.jsonl, one JSON object per logged or evaluated step, and the trackers, which receive the same values.

    Args:
        path: of the file.
        text: its content when the checkpoint that the run resumes from was saved. Later lines are dropped, because
            their steps will be repeated.
        accelerator: its main process writes; has the trackers.
    """

    def __init__(self, path: Path, text: str, accelerator: Accelerator):
        self.path, self.accelerator = path, accelerator
        self._silent: set[str] = set()
        if accelerator.is_main_process:
            temporary = path.with_name(f".{path.name}")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)

    def text(self) -> str:
        """Returns everything written so far; nothing in other processes, which may not see the file."""
        return self.path.read_text(encoding="utf-8") if self.accelerator.is_main_process else ""

    def write(self, values: dict[str, Any]) -> None:
        """Appends a line and passes it to the trackers, whose failures never stop a run."""
        if not self.accelerator.is_main_process:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(json_numbers(values)) + "\n")
        known = {k: v for k, v in values.items() if k != "step" and v is not None}
        self._pass_on(lambda tracker: tracker.log(known, step=int(values["step"])))

    def show(self, samples: dict[str, Sample], step: int) -> None:
        """Passes samples to the trackers under their names: texts to all, pictures to those of [`_log_pictures`]."""
        texts = {name: sample for name, sample in samples.items() if isinstance(sample, str)}
        pictures = {name: sample for name, sample in samples.items() if not isinstance(sample, str)}
        if texts:
            self._pass_on(lambda tracker: tracker.log(texts, step=step))
        if pictures:
            self._pass_on(lambda tracker: _log_pictures(tracker, pictures, step))

    def _pass_on(self, log: Callable[[GeneralTracker], None]) -> None:
        for tracker in self.accelerator.trackers:
            try:
                log(tracker)
            except Exception as error:
                if tracker.name not in self._silent:
                    logger.warning("The tracker %s failed, and the run continues without it: %s", tracker.name, error)
                self._silent.add(tracker.name)


def _log_pictures(tracker: Any, pictures: dict[str, PIL.Image.Image], step: int) -> None:
    """Logs pictures in the form that a tracker takes; trackers that are not named here get none."""
    if tracker.name == "tensorboard":
        batches = {name: np.asarray(picture.convert("RGB"))[None] for name, picture in pictures.items()}
        tracker.log_images(batches, step=step, dataformats="NHWC")
    elif tracker.name in ("wandb", "swanlab"):
        tracker.log_images({name: [picture] for name, picture in pictures.items()}, step=step)
    elif tracker.name == "trackio":
        import trackio

        tracker.log({name: trackio.Image(picture) for name, picture in pictures.items()}, step=step)


def json_numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Replaces NaN and infinity, which are not valid JSON, with None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def start_trackers(accelerator: Accelerator, arguments: Arguments) -> None:
    """Starts the trackers of --report_to, one by one: one that cannot start is reported and left out."""
    settings = {k: v for k, v in as_recipe(arguments).items() if isinstance(v, (int, float, str, bool))}
    installed = [str(name) for name in accelerator.log_with]
    for name in set(arguments.run.report_to) - {"all", "none", *installed}:
        logger.warning("The tracker %s is left out, because its package is not installed.", name)
    for name in installed:
        tracker_class = LOGGER_TYPE_TO_CLASS[name]
        folder = [accelerator.logging_dir] if tracker_class.requires_logging_directory else []
        try:
            tracker = tracker_class(Path(arguments.run.output_dir).name, *folder)
            tracker.start()
            tracker.store_init_configuration(settings)
        except Exception as error:
            logger.warning("The tracker %s cannot be started and is left out: %s", name, error)
        else:
            accelerator.trackers.append(tracker)


def end_trackers(accelerator: Accelerator) -> None:
    """Lets every tracker finish. Failures are logged and ignored."""
    for tracker in accelerator.trackers:
        try:
            tracker.finish()
        except Exception as error:
            logger.warning("The tracker %s failed at the end: %s", tracker.name, error)
