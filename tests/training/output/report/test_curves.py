"""The curves of metrics.jsonl: which there are, and where their points lie."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from training.output.report.curves import (
    BOTTOM,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    Axis,
    Curve,
    describe_curve,
    draw_curve,
    format_tick,
    read_curves,
)  # fmt: skip


def lines(*values: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in values)


def training(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "seconds": step / 10, **values, "learning_rate": 0.1 / step, "examples_per_second": 9.0}


def points(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    """The corners of each line of a kind."""
    found = re.findall(rf'<polyline class="{kind}" points="([^"]*)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in found]  # type: ignore[misc]


def test_losses_and_evaluations_of_one_metric_share_a_curve() -> None:
    text = lines(
        training(1, loss=3.0, kl_loss=1.0), {"step": 1, "eval_elbo": -9.0, "eval_kl_loss": 2.0}, training(2, loss=2.0),
        {"step": 2, "eval_elbo": -8.0, "eval_kl_loss": 1.5, "eval_nll": 7.0},
    )  # fmt: skip
    curves = read_curves(text, "elbo")

    assert [curve.name for curve in curves] == ["elbo", "loss", "kl_loss", "learning_rate"]  # nll: a single value
    assert curves[0].evaluation == [(1, -9), (2, -8)] and curves[0].training == []
    assert curves[2].training == [(1, 1)] and curves[2].evaluation == [(1, 2), (2, 1.5)]
    assert [curve.title for curve in curves] == ["ELBO", "Loss", "KL", "Learning rate"]


def test_points_lie_where_their_values_are() -> None:
    (line,) = points(draw_curve(Curve("psnr", evaluation=[(0, 10.0), (50, 20.0), (100, 30.0)])), "evaluation")
    room, height = 0.06 * 20, BOTTOM - TOP

    assert [x for x, _ in line] == pytest.approx([LEFT, (LEFT + RIGHT) / 2, RIGHT], abs=0.05)
    margin = height * room / (20 + 2 * room)
    assert [y for _, y in line] == pytest.approx([BOTTOM - margin, (BOTTOM + TOP) / 2, TOP + margin], abs=0.05)


def test_a_loss_that_falls_by_orders_of_magnitude_has_equal_steps_for_equal_ratios() -> None:
    (line,) = points(draw_curve(Curve("loss", training=[(1, 1000.0), (2, 100.0), (3, 10.0), (4, 1.0)])), "training")
    gaps = [low - high for (_, high), (_, low) in zip(line, line[1:])]

    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.11) and gaps[0] > 40


def test_a_learning_rate_that_goes_to_zero_stays_linear() -> None:
    (line,) = points(draw_curve(Curve("learning_rate", training=[(0, 1e-3), (1, 5e-4), (2, 1e-9)])), "training")
    assert line[1][1] == pytest.approx((line[0][1] + line[2][1]) / 2, abs=0.1)


def test_what_is_not_finite_is_a_gap() -> None:
    text = lines(*(training(step, loss=None if step == 3 else 1.0 / step) for step in range(1, 7)))
    (curve, *_) = read_curves(text, "loss")
    drawn = points(draw_curve(curve), "training")

    assert [len(line) for line in drawn] == [2, 3]


@pytest.mark.parametrize("low, high, expected", [
    (0, 100, [0, 20, 40, 60, 80, 100]), (-0.3, 0.3, [-0.2, 0, 0.2]), (1.02, 1.09, [1.02, 1.04, 1.06, 1.08]),
    (0, 1000, [0, 200, 400, 600, 800, 1000]), (90, 110, [90, 95, 100, 105, 110]),
])  # fmt: skip
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert Axis(low, high, 0, 1).ticks() == pytest.approx(expected)


@pytest.mark.parametrize("low, high, expected", [
    (1, 1000, [1, 10, 100, 1000]), (0.9, 40, [1, 3, 10, 30]), (2, 60, [3, 10, 30]), (1e-12, 1, None),
])  # fmt: skip
def test_ticks_of_a_logarithmic_axis(low: float, high: float, expected: list[float] | None) -> None:
    ticks = Axis(low, high, 0, 1, is_log=True).ticks()
    assert 3 <= len(ticks) <= 7
    assert expected is None or ticks == pytest.approx(expected)


@pytest.mark.parametrize("last", [1, 2, 3, 7, 12, 1_000_000])
def test_steps_are_whole(last: int) -> None:
    ticks = Axis(0, last, 0, 1, is_whole=True).ticks()
    assert ticks == [round(tick) for tick in ticks] and 2 <= len(ticks) <= 7


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0], [-3.0, -3.0], [0.0, 1e-30], [1e30, -1e30]])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    svg = str(draw_curve(Curve("loss", training=list(enumerate(values, 1)))))
    assert ElementTree.fromstring(svg).get("role") == "img" and "nan" not in svg.lower().replace("svg", "")


def test_a_long_run_keeps_its_first_and_last_point() -> None:
    svg = draw_curve(Curve("loss", training=[(step, 1 + 1 / step) for step in range(1, 5001)]))
    (line,) = points(svg, "training")

    assert len(line) == MOST_POINTS and line[-1][0] == RIGHT and line[0][1] < line[-1][1]


def test_a_curve_is_told_in_words() -> None:
    curve = Curve("loss", training=[(1, 3.0), (1000, 1.25)], evaluation=[(1000, 1.5)])
    words = "Loss: in training 3 at step 1 and 1.25 at step 1,000, in evaluations 1.5 at step 1,000."

    assert describe_curve(curve) == words and f'aria-label="{words}"' in draw_curve(curve)


def test_names_are_escaped() -> None:
    svg = str(draw_curve(Curve('"><script>alert(1)</script>', training=[(1, 1.0), (2, 2.0)])))
    assert "<script" not in svg and ElementTree.fromstring(svg).tag == "svg"


@pytest.mark.parametrize("value, text", [
    (0, "0"), (0.025, "0.025"), (-1.5, "−1.5"), (150, "150"), (12_000, "12k"), (3e6, "3M"), (1e-7, "1e−07"),
])  # fmt: skip
def test_ticks_take_few_characters(value: float, text: str) -> None:
    assert format_tick(value) == text
