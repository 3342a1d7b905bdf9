"""metrics.jsonl, and the trackers, which receive the same values."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from ..config.flags import Arguments, as_recipe


logger = logging.getLogger(__name__)


class MetricsLog:
    """metrics.jsonl, one JSON object per logged or evaluated step, and the trackers, which receive the same values.

    Args:
        path: of the file.
        text: its content when the checkpoint that the run resumes from was written. Later lines are dropped, because
            the same steps will be done again.
        accelerator: its main process writes the file and feeds its trackers.
    """

    def __init__(self, path: Path, text: str, accelerator: Accelerator):
        self.path, self.accelerator = path, accelerator
        self._failed: set[str] = set()
        if accelerator.is_main_process:
            temporary = path.with_name(f".{path.name}")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)

    def text(self) -> str:
        """Returns everything written so far; "" on other processes, which may not see the file."""
        return self.path.read_text(encoding="utf-8") if self.accelerator.is_main_process else ""

    def write(self, values: dict[str, Any]) -> None:
        """Appends a line, and hands the values to the trackers, whose failures never stop a run."""
        if not self.accelerator.is_main_process:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(json_numbers(values)) + "\n")
        for tracker in self.accelerator.trackers:
            try:
                tracker.log({k: v for k, v in values.items() if k != "step"}, step=int(values["step"]))
            except Exception as error:
                if tracker.name not in self._failed:
                    logger.warning("The tracker %s fails, and the run continues without it: %s", tracker.name, error)
                self._failed.add(tracker.name)


def json_numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values with null in place of NaN and infinity, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def start_trackers(accelerator: Accelerator, arguments: Arguments) -> None:
    """Starts the trackers of --report_to; one that cannot start is reported and left out."""
    config = {k: v for k, v in as_recipe(arguments).items() if isinstance(v, (int, float, str, bool))}
    wanted, started = accelerator.log_with, list[GeneralTracker]()
    for name in set(arguments.run.report_to) - {"all", "none", *map(str, wanted)}:
        logger.warning("The tracker %s is left out: its package is not installed.", name)
    # One by one: accelerate starts all trackers of `log_with` or, if one of them fails, none.
    for name in wanted:
        accelerator.log_with, accelerator.trackers = [name], []
        try:
            accelerator.init_trackers(Path(arguments.run.output_dir).name, config=config)
            started += accelerator.trackers
        except Exception as error:
            logger.warning("The tracker %s cannot be started and is left out: %s", name, error)
    accelerator.log_with, accelerator.trackers = wanted, started


def end_trackers(accelerator: Accelerator) -> None:
    """Lets every tracker finish; a failure is reported and ignored."""
    for tracker in accelerator.trackers:
        try:
            tracker.finish()
        except Exception as error:
            logger.warning("The tracker %s fails at the end: %s", tracker.name, error)
