"""What is found in histories of measurements that are made up: good runs, broken runs, runs that are over."""

from __future__ import annotations

from typing import Any

import pytest

from training.evaluation.convergence import PATIENCE, ConvergenceWatch, best_row, findings, stop_reason


GOOD: dict[str, float] = {
    "quick_fid_standard_error": 0.2, "quick_coverage": 0.9, "feature_distance_ratio": 0.97, "class_kl": 0.01,
    "pair_accuracy": 0.55, "pair_accuracy_train": 0.57, "overfitting_ratio": 0.1, "largest_logit": 2.0,
    "gradient_norm_generator": 1.0, "skipped_steps": 0,
}  # fmt: skip
LEARNING = [80, 40, 25, 18, 14, 11, 9, 8]
FLAT = [8.05, 7.95, 8.1, 8.0]


def history(distances: list[float], **others: Any) -> list[dict[str, float]]:
    """Rows of a good run with these distances; of the other metrics, one value for all rows or a list."""
    rows = []
    for index, distance in enumerate(distances):
        changed = {name: value[index] if isinstance(value, list) else value for name, value in others.items()}
        rows.append({"step": 100 * (index + 1), "quick_fid": distance, **GOOD, **changed})
    return rows


def kinds(rows: list[dict[str, float]]) -> list[tuple[str, int]]:
    return [(found.kind, found.step) for found in findings(rows)]


def test_a_good_run_has_no_problems_and_goes_on_while_it_learns() -> None:
    for count in range(len(LEARNING) + 1):
        assert findings(history(LEARNING[:count])) == [] and stop_reason(history(LEARNING[:count])) is None


def test_a_run_has_converged_on_a_plateau_with_the_discriminator_near_chance() -> None:
    for count in range(PATIENCE):
        assert stop_reason(history(LEARNING + FLAT[:count])) is None
    reason = stop_reason(history(LEARNING + FLAT))
    assert reason is not None
    assert reason.startswith("Converged at step 1200: the samples, with a classifier FID of 7.95 at step 1000, have")
    assert "in 55 % of pairs, where 50 % is chance" in reason


@pytest.mark.parametrize(("error", "last"), [(0.0, 7.5), (0.4, 7.5), (3.0, 7.1)])
def test_a_gain_counts_if_it_is_larger_than_the_error_of_the_measurement_or_large(error: float, last: float) -> None:
    slowly = history([*LEARNING[:-1], 8.0, 7.9, 7.8, 7.7, last], quick_fid_standard_error=error)
    assert stop_reason(slowly) is None
    assert stop_reason(history([*LEARNING[:-1], 8.0, 7.9, 7.8, 7.7, 7.9], quick_fid_standard_error=error + 0.4))


def test_a_run_goes_on_while_samples_cover_more_and_more() -> None:
    coverage = [0.1 * count for count in range(1, 9)] + [0.81, 0.815, 0.81, 0.85]
    rows = history(LEARNING + FLAT, quick_coverage=coverage, quick_coverage_standard_error=0.02)
    assert stop_reason(rows) is None
    assert stop_reason([*rows[:-1], {**rows[-1], "quick_coverage": 0.81}]) is not None


def test_a_plateau_is_at_least_a_third_of_the_run() -> None:
    rows = history(LEARNING + FLAT)
    late = [{**row, "step": row["step"] + 800} for row in rows]
    assert stop_reason(rows) is not None and stop_reason(late) is None
    reason = stop_reason(late + [{**late[-1], "step": 2000 + 100 * count} for count in range(1, 5)])
    assert reason is not None and "in the last 8 evaluations" in reason


def test_a_run_is_not_over_while_the_discriminator_tells_images_apart_unless_it_is_long_stalled() -> None:
    assert stop_reason(history(LEARNING + FLAT, pair_accuracy=0.9)) is None
    assert stop_reason(history(LEARNING + FLAT, pair_accuracy=0.2)) is None  # nor while it is fooled
    reason = stop_reason(history(LEARNING + FLAT + FLAT, pair_accuracy=0.9))
    assert reason is not None and reason.startswith("Stalled at step 1600") and "in 90 % of pairs" in reason


def test_evaluations_that_measured_no_quality_neither_stop_a_run_nor_are_the_best() -> None:
    rows = history([10, 9])
    unmeasured = [{name: value for name, value in row.items() if name != "quick_fid"} for row in history([0] * 9)]
    assert stop_reason(unmeasured) is None and best_row(unmeasured) is None and findings(unmeasured) == []
    assert best_row(rows + unmeasured) is rows[1] and stop_reason(rows + unmeasured) is None


def test_the_best_state_is_the_one_with_the_smallest_distance_and_the_first_of_equal_ones() -> None:
    watch, rows = ConvergenceWatch(stops=True), history([9, 7, 8, 7, 6])
    assert [watch.is_best(rows[:count]) for count in range(1, 6)] == [True, True, False, False, True]


def test_of_states_that_are_as_near_the_one_with_the_better_coverage_is_the_best() -> None:
    coverage = [0.3, 0.5, 0.6, 0.9, 0.55]
    rows = history([9, 7, 7.3, 8, 7.1], quick_coverage=coverage, quick_fid_standard_error=0.5)
    watch = ConvergenceWatch(stops=True)
    assert [watch.is_best(rows[:count]) for count in range(1, 6)] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("metric", "values", "words"),
    [
        ("quick_coverage", [0.6, 0.8, 0.3], "30 % of the kinds of real images, after 80 %"),
        ("feature_distance_ratio", [0.9, 0.9, 0.5], "0.50 times as much"),
        ("class_kl", [0.1, 0.1, 0.9], "0.90 nats"),
    ],
)
def test_collapse_is_named_when_it_begins(metric: str, values: list[float], words: str) -> None:
    rows = history([80, 40, 38], **{metric: values})
    (found,) = findings(rows)
    assert (found.kind, found.step) == ("collapse", 300) and words in found.text
    assert "Try a smaller --learning_rate" in found.text


def test_samples_may_resemble_each_other_at_first_if_they_differ_more_and_more() -> None:
    assert kinds(history([500, 300, 200], feature_distance_ratio=[0.1, 0.3, 0.5])) == []
    assert kinds(history([500, 300, 200], feature_distance_ratio=[0.1, 0.1, 0.1])) == [("collapse", 200)]
    assert kinds(history([500, 300], feature_distance_ratio=[0.0, 0.0])) == [("collapse", 200)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"largest_logit": [2, 3, 150]}, "logits reach 150"),
        ({"gradient_norm_generator": [1.0, 1.2, 40]}, "the gradient of the generator is 36 times as long"),
        ({"quick_fid": [80, 40, 400]}, "rose from 40 to 400"),
        ({"skipped_steps": [0, 0, 3]}, "not finite"),
    ],
)
def test_divergence_is_named_when_it_begins(changes: dict[str, list[float]], words: str) -> None:
    (found,) = findings(history([80, 40, 38], **changes))
    assert (found.kind, found.step) == ("divergence", 300) and words in found.text


def test_an_overfitting_discriminator_is_named() -> None:
    rows = history(
        [80, 40, 38], pair_accuracy=[0.6, 0.6, 0.55], pair_accuracy_train=[0.6, 0.65, 0.98],
        overfitting_ratio=[0, 0.3, 0.9],
    )  # fmt: skip
    (found,) = findings(rows)
    assert (found.kind, found.step) == ("discriminator overfitting", 300)
    assert "98 % of pairs, held-out images only in 55 %" in found.text and "augmentation" in found.text
    # The ratio is noise where it tells nothing apart at all.
    assert findings(history([80, 40], overfitting_ratio=0.9)) == []


def test_a_discriminator_that_has_won_is_named_unless_samples_still_improve() -> None:
    assert kinds(history([6000, 6100], pair_accuracy=1.0)) == [("discriminator too strong", 200)]
    assert kinds(history([80, 40, 20], pair_accuracy=1.0)) == []
    assert kinds(history([6000, 6100], pair_accuracy=1.0, quick_coverage=[0.02, 0.08])) == []
    assert kinds(history([6000, 6100], pair_accuracy=1.0, feature_distance_ratio=[0.1, 0.2])) == []


def test_a_problem_that_lasts_is_named_once_and_one_that_returns_again() -> None:
    rows = history([80, 40, 30, 30, 30, 30], feature_distance_ratio=[0.9, 0.5, 0.5, 0.9, 0.5, 0.5])
    assert kinds(rows) == [("collapse", 200), ("collapse", 500)]
    watch = ConvergenceWatch()
    assert [len(watch.new_problems(rows[:count])) for count in range(1, 7)] == [0, 1, 0, 0, 1, 0]
    assert [problem["step"] for problem in watch.describe(rows)["problems"]] == [200, 500]


def test_only_a_run_that_is_asked_to_stops() -> None:
    rows = history(LEARNING + FLAT)
    assert ConvergenceWatch(stops=False).stop_reason(rows) is None
    assert ConvergenceWatch(stops=True).stop_reason(rows) == stop_reason(rows) is not None
