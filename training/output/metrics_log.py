"""metrics.jsonl, and the trackers, which receive the same values."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..config.flags import Arguments, as_recipe


logger = logging.getLogger(__name__)


class MetricsLog:
    """metrics.jsonl, one JSON object a logged or evaluated step, and the trackers, which are told the same.

    Args:
        path: of the file.
        text: what it held when the checkpoint was written that the run goes on from; later lines are dropped, as the
            same steps will be done again.
        accelerator: its main process writes; its trackers are told.
    """

    def __init__(self, path: Path, text: str, accelerator: Accelerator):
        self.path, self.accelerator = path, accelerator
        self._silent: set[str] = set()
        if accelerator.is_main_process:
            temporary = path.with_name(f".{path.name}")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)

    def text(self) -> str:
        """Everything written so far; nothing on other processes than the main one, which may not see the file."""
        return self.path.read_text(encoding="utf-8") if self.accelerator.is_main_process else ""

    def write(self, values: dict[str, Any]) -> None:
        """Appends a line and tells the trackers, whose failures never stop a run."""
        if not self.accelerator.is_main_process:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(json_numbers(values)) + "\n")
        for tracker in self.accelerator.trackers:
            try:
                tracker.log({k: v for k, v in values.items() if k != "step"}, step=int(values["step"]))
            except Exception as error:
                if tracker.name not in self._silent:
                    logger.warning("The tracker %s fails, and the run goes on without it: %s", tracker.name, error)
                self._silent.add(tracker.name)


def json_numbers(values: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity, which JSON does not know, as null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def start_trackers(accelerator: Accelerator, arguments: Arguments) -> None:
    """Starts --report_to; one that cannot start is named and left out."""
    config = {k: v for k, v in as_recipe(arguments).items() if isinstance(v, (int, float, str, bool))}
    wanted, started = accelerator.log_with, []
    for name in set(arguments.run.report_to) - {"all", "none", *map(str, wanted)}:
        logger.warning("The tracker %s is left out: its package is not installed.", name)
    for name in wanted:
        accelerator.log_with, accelerator.trackers = [name], []
        try:
            accelerator.init_trackers(Path(arguments.run.output_dir or "hfgen").name, config=config)
            started += accelerator.trackers
        except Exception as error:
            logger.warning("The tracker %s cannot be started and is left out: %s", name, error)
    accelerator.log_with, accelerator.trackers = wanted, started


def end_trackers(accelerator: Accelerator) -> None:
    """Lets every tracker finish; a failure is told and ignored."""
    for tracker in accelerator.trackers:
        try:
            tracker.finish()
        except Exception as error:
            logger.warning("The tracker %s fails at the end: %s", tracker.name, error)
