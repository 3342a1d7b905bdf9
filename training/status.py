"""What a run says while it trains: metrics.jsonl, trackers, the progress bar."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from training.arguments import Arguments, as_recipe
from training.progress import Pace


logger = logging.getLogger(__name__)


class RunningMeans:
    """Averages of values over updates, examples and processes since they were last taken.

    The sums stay on the device, so that adding does not wait for it. They are part of a checkpoint: a run may stop
    between two lines of metrics.jsonl.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds the values of one update."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The averages; what is added from now on counts for the next ones. The loop waits for the device here."""
        means = {
            name: float(sums.sum() / (self._counts[name] * len(sums))) for name, sums in self._by_process().items()
        }
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds: sums by process, (processes,), and counts."""
        counts = {f"{name}:count": torch.tensor(count) for name, count in self._counts.items()}
        return {**{f"{name}:sums": sums for name, sums in self._by_process().items()}, **counts}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`; if the number of processes has changed, each one goes on from the mean of all."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        for key, sums in state.items():
            name, _, entry = key.rpartition(":")
            if entry == "sums":
                own = sums[rank] if len(sums) == processes else sums.mean()
                self._sums[name] = own.float().to(self.accelerator.device)
                self._counts[name] = int(state[f"{name}:count"])

    def _by_process(self) -> dict[str, Tensor]:
        if not self._sums:
            return {}
        table = torch.stack(list(self._sums.values()))[None]
        if self.accelerator.num_processes > 1:
            table = self.accelerator.gather(table)
        return dict(zip(self._sums, table.cpu().double().unbind(1)))


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


class ProgressBar:
    """A bar over the whole run, whether its length is given in steps or in seconds."""

    def __init__(self, bar: Any):
        self._bar = bar
        self.headline: str | None = None

    def show(self, step: int, fraction: float, means: dict[str, float], pace: Pace) -> None:
        """Updates the bar: step, losses, the last evaluation, rate and time left."""
        parts = [f"step {step}", *(f"{name} {value:.4g}" for name, value in list(means.items())[:3])]
        parts += [self.headline] if self.headline else []
        minutes, seconds = divmod(round(pace.seconds_left), 60)
        self._bar.n = fraction
        parts += [f"{pace.steps_per_second:.1f} steps/s", f"{minutes}:{seconds:02d} left"]
        self._bar.set_postfix_str(", ".join(parts))


@contextmanager
def progress_bar(hidden: bool) -> Iterator[ProgressBar]:
    """Shows a bar on standard error."""
    # tqdm puts ", " before the postfix of its own accord.
    layout = "{percentage:3.0f}% |{bar:24}|{postfix}"
    with tqdm(total=1.0, bar_format=layout, disable=hidden, leave=True, file=sys.stderr) as bar:
        yield ProgressBar(bar)
