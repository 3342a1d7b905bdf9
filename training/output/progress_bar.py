"""The progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ..progress import Pace


class ProgressBar:
    """A bar over the whole run, whether its length is given in steps or in seconds.

    Attributes:
        primary_metric: text with the last evaluation, shown from then on.
    """

    def __init__(self, bar: Any):
        self._bar = bar
        self.primary_metric: str | None = None

    def show(self, step: int, fraction: float, means: dict[str, float], pace: Pace) -> None:
        """Updates the bar: step, losses, the last evaluation, speed and time left. `fraction` is in [0, 1]."""
        parts = [f"step {step}", *(f"{name} {value:.4g}" for name, value in list(means.items())[:3])]
        parts += [self.primary_metric] if self.primary_metric else []
        minutes, seconds = divmod(round(pace.seconds_left), 60)
        self._bar.n = fraction
        parts += [f"{pace.steps_per_second:.1f} steps/s", f"{minutes}:{seconds:02d} left"]
        self._bar.set_postfix_str(", ".join(parts))


@contextmanager
def progress_bar(hidden: bool) -> Iterator[ProgressBar]:
    """Shows a bar on standard error, unless `hidden`."""
    # tqdm itself puts ", " before the postfix.
    layout = "{percentage:3.0f}% |{bar:24}|{postfix}"
    with tqdm(total=1.0, bar_format=layout, disable=hidden, leave=True, file=sys.stderr) as bar:
        yield ProgressBar(bar)
