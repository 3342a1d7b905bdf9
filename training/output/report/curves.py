"""Curves of metrics.jsonl as SVG, drawn without a library, so that a page can hold and color them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from hfgen.metrics import metric_named

from .pictures_in_page import spread


WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 348, 12, 180
# More points could not be told apart; the rest is left out evenly.
MOST_POINTS = 400
# A curve whose values span more than this, all of them positive, is drawn on a logarithmic axis.
LOGARITHMIC_FROM = 20
# What each line of a training has besides its losses.
NOT_LOSSES = {"step", "seconds", "examples_per_second"}

Point = tuple[float, float]


@dataclass
class Curve:
    """The values of one metric over the steps: in training, and in the evaluations.

    Attributes:
        name: of the metric, as in metrics.jsonl, without "eval_".
        training, evaluation: (step, value); NaN where a value was not finite.
    """

    name: str
    training: list[Point] = field(default_factory=list)
    evaluation: list[Point] = field(default_factory=list)

    @property
    def title(self) -> str:
        label = metric_named(self.name).label
        return self.name.replace("_", " ").capitalize() if label.startswith("`") else label


@dataclass
class Axis:
    """Maps values to coordinates.

    Attributes:
        low, high: the values at its ends, different from each other.
        start, end: their coordinates.
        is_log: equal ratios have equal lengths; both values must then be positive.
        is_whole: values are counts, and so are the ticks.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    is_whole: bool = False

    def place(self, value: float) -> float:
        """Returns the coordinate of a value."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers between the ends, at most seven; usually at least three."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1,), (1, 3), (1, 2, 5)):
                found = [d * 10.0**e for e in decades for d in digits if self.low <= d * 10.0**e <= self.high]
                if len(found) >= 3:
                    break
            return found[:: math.ceil(len(found) / 7)]
        rough = (self.high - self.low) / 4
        unit = 10.0 ** math.floor(math.log10(rough))
        factors = (1, 2, 5, 10) if self.is_whole else (1, 2, 2.5, 5, 10)
        step = next(unit * factor for factor in factors if unit * factor >= rough * 0.8)
        step = max(step, 1.0) if self.is_whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def read_curves(metrics_text: str, primary_metric: str) -> list[Curve]:
    """Reads the curves of a run: those of its losses and of what its evaluations measured more than once.

    Args:
        metrics_text: content of metrics.jsonl.
        primary_metric: comes first.
    """
    curves: dict[str, Curve] = {}
    for line in map(json.loads, metrics_text.splitlines()):
        is_training = "learning_rate" in line
        for key, value in line.items():
            is_evaluated = key.startswith("eval_")
            if key in NOT_LOSSES or not (is_evaluated or is_training) or not _is_number(value):
                continue
            curve = curves.setdefault(key.removeprefix("eval_"), Curve(key.removeprefix("eval_")))
            point = (float(line["step"]), math.nan if value is None else float(value))
            (curve.evaluation if is_evaluated else curve.training).append(point)
    drawn = [curve for curve in curves.values() if _has_course(curve.training) or _has_course(curve.evaluation)]
    return sorted(drawn, key=lambda curve: (curve.name != primary_metric, curve.name == "learning_rate"))


def _is_number(value: object) -> bool:
    """Also true of None, which stands for a number that is not finite."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _has_course(points: list[Point]) -> bool:
    return len({step for step, value in points if math.isfinite(value)}) > 1


def draw_curve(curve: Curve) -> Markup:
    """Draws a curve as an SVG element: a line for the training, a line with a dot for each evaluation.

    Args:
        curve: with at least two finite values in one of its parts.
    """
    parts = {"training": curve.training, "evaluation": curve.evaluation}
    parts = {name: spread(points, MOST_POINTS) for name, points in parts.items() if points}
    finite = [point for points in parts.values() for point in points if math.isfinite(point[1])]
    across = Axis(0, max(step for step, _ in finite), LEFT, RIGHT, is_whole=True)
    up = _value_axis([value for _, value in finite], may_be_log=curve.name != "learning_rate")
    grid = [*_draw_values(up), *_draw_steps(across)]
    lines = [line for name, points in parts.items() for line in _draw_points(points, name, across, up)]
    hover = json.dumps(_hover_points(parts, across, up), ensure_ascii=True, separators=(",", ":"))
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" data-points="{}">{}</svg>').format(
        WIDTH, HEIGHT, describe_curve(curve), hover, Markup("").join([*grid, *lines])
    )


def describe_curve(curve: Curve) -> str:
    """The curve in words, for those who cannot see it."""
    words = []
    for name, points in (("in training", curve.training), ("in evaluations", curve.evaluation)):
        finite = [point for point in points if math.isfinite(point[1])]
        if finite:
            ends = dict.fromkeys((finite[0], finite[-1]))
            words.append(f"{name} " + " and ".join(f"{value:.4g} at step {step:,.0f}" for step, value in ends))
    return f"{curve.title}: {', '.join(words)}."


def _value_axis(values: list[float], may_be_log: bool) -> Axis:
    """With some room above and below the values."""
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low > LOGARITHMIC_FROM:
        room = (high / low) ** 0.04
        return Axis(low / room, high * room, BOTTOM, TOP, is_log=True)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room, BOTTOM, TOP)


def _draw_values(axis: Axis) -> list[Markup]:
    """Lines across with their values at the left."""
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
    label = Markup('<text x="{}" y="{:.1f}" class="y">{}</text>')
    drawn: list[Markup] = []
    for tick in axis.ticks():
        y = axis.place(tick)
        drawn += [line.format(LEFT, RIGHT, y, y), label.format(LEFT - 7, y + 3.5, format_tick(tick))]
    return drawn


def _draw_steps(axis: Axis) -> list[Markup]:
    """Steps below the axis, and the word."""
    ticks = [
        Markup('<text x="{:.1f}" y="{}" class="x">{}</text>').format(axis.place(tick), BOTTOM + 15, format_tick(tick))
        for tick in axis.ticks()
    ]
    return [*ticks, Markup('<text x="{}" y="{}" class="name">step</text>').format(RIGHT, HEIGHT - 2)]


def _draw_points(points: Sequence[Point], kind: str, across: Axis, up: Axis) -> list[Markup]:
    """A line for each run of finite values, and dots where a value is an evaluation or has no neighbors."""
    runs: list[list[Point]] = [[]]
    for step, value in points:
        if math.isfinite(value):
            runs[-1].append((across.place(step), up.place(value)))
        elif runs[-1]:
            runs.append([])
    drawn: list[Markup] = []
    for run in filter(None, runs):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
        drawn.append(Markup('<polyline class="{}" points="{}"/>').format(kind, path))
        if kind == "evaluation" or len(run) == 1:
            drawn += [Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(kind, x, y) for x, y in run]
    return drawn


def _hover_points(parts: dict[str, list[Point]], across: Axis, up: Axis) -> list[list[float | str]]:
    """Coordinates of each point, and the words that appear beside it."""
    return [
        [round(across.place(step), 1), round(up.place(value), 1), f"step {step:,.0f}: {value:.4g}"]
        for points in parts.values()
        for step, value in points
        if math.isfinite(value)
    ]


def format_tick(value: float) -> str:
    """A number in few characters: 0, 0.025, 150, 12k, 3M, 1e−07."""
    if value == 0:
        return "0"
    for least, unit, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.4g}{letter}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")
