"""The plots of losses and evaluations, and of rates and distortions."""

from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path
from typing import Any

import PIL.Image

from ..evaluation.rate_distortion import Curve


logger = logging.getLogger(__name__)


def plot_losses(metrics: Path, target: Path, primary_metric: str) -> None:
    """Plots the training losses and the primary metric of the evaluations over the steps. A failure is a warning.

    Args:
        metrics: metrics.jsonl.
        target: the PNG to write; its folder is created.
        primary_metric: name of an evaluation metric.
    """
    try:
        _plot(metrics, target, primary_metric)
    except Exception as error:
        logger.warning("The losses were not plotted: %s: %s", type(error).__name__, error)


def draw_rate_distortion(curves: dict[str, Curve]) -> PIL.Image.Image:
    """Draws the peak signal-to-noise ratio of codecs over their rates, up to the largest rate of the first one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=120)
    shown = [point for curve in list(curves.values())[:1] for point in curve]
    for index, (name, curve) in enumerate(curves.items()):
        points = sorted((point.bits_per_pixel, point.psnr) for point in curve)
        style = {"color": "#c0392b", "linewidth": 2.0, "zorder": 3} if index == 0 else {"linewidth": 1.2}
        axes.plot(*zip(*points), "o-", markersize=3.5, label=name, **style)
    axes.set_xlim(0, 1.05 * max(point.bits_per_pixel for point in shown))
    axes.set_ylim(min(point.psnr for point in shown) - 3, max(point.psnr for point in shown) + 1)
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel("PSNR, dB")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    _remove_clutter(axes)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    file.seek(0)
    return PIL.Image.open(file)


def _plot(metrics: Path, target: Path, primary_metric: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    training = [line for line in lines if "learning_rate" in line]
    losses = [name for name in (training[-1] if training else {}) if name.endswith("loss")]
    evaluations = [line for line in lines if f"eval_{primary_metric}" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), dpi=120)
    for name in losses:
        left.plot(*_curve(training, name), label=name.replace("_", " "), linewidth=1.3)
    # Logarithmic for a loss that falls by orders of magnitude, apart from the steep first lines.
    values = [line[name] for line in training for name in losses if line.get(name) is not None]
    tail = [line[losses[0]] for line in training[len(training) // 10 :] if line.get(losses[0]) is not None]
    if tail and min(values) > 0 and max(tail) > 20 * min(tail):
        left.set_yscale("log")
    left.set_title("Training", loc="left", fontsize=10)
    if len(losses) > 1:
        left.legend(frameon=False, fontsize=9)
    elif losses:
        left.set_ylabel(losses[0].replace("_", " "))
    right.plot(*_curve(evaluations, f"eval_{primary_metric}"), "o-", color="#333333", markersize=4, linewidth=1.3)
    right.set_ylabel(primary_metric.replace("_", " "))
    right.set_title("Evaluation", loc="left", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
        _remove_clutter(axes)
    figure.tight_layout()
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target)
    plt.close(figure)


def _remove_clutter(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _curve(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Returns steps and values. null, which stands for a value that is not finite, leaves a gap."""
    values = [math.nan if line.get(name) is None else line[name] for line in lines]
    return [line["step"] for line in lines], values
