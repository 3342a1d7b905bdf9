"""Has a GAN converged, and what goes wrong? Measurements go in, findings in words come out.

A history is a list of rows, one for each evaluation in the middle of a run, metric name -> value, with "step" among
them; a metric that could not be measured is absent. Everything here follows from the history, so a run that resumes
comes to the same findings. The thresholds are no theory: they are what separates good runs from bad ones in practice.

A discriminator cannot certify by itself that the game is over: it may only have stopped learning. So a run counts as
converged when the quality of its samples, which another network measures, has stopped improving while the
discriminator is near chance on images that it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any


Row = dict[str, float]
History = list[Row]

PATIENCE = 4  # evaluations without a gain that make a plateau
LEAST_SHARE = 1 / 3  # of the steps so far, that a plateau covers: learning becomes slower and slower
LEAST_GAIN = 0.02  # of the best distance: smaller gains are none, however exact the measurement
MOST_ERROR = 0.1  # of a distance: larger differences count, however inexact it is
NEAR_CHANCE = (0.35, 0.65)  # pair accuracy
# Collapse
LOST_COVERAGE = 0.5  # of its running maximum, once that was at least
COVERAGE_TO_LOSE = 0.1
SMALL_DISTANCE = 0.6  # between samples, over that between real images
RECOVERY = 1.2  # a variety that has grown this much since the last evaluation is no collapse, but learning
MISSING_CLASSES = 0.6  # KL in nats; 0.69 if half of the classes are missing
# Divergence
LARGE_LOGIT = 20.0
GRADIENT_GROWTH = 10.0  # over the median of the evaluations before
LOST_QUALITY = 3.0  # the distance over the best one before
# Discriminator
CERTAIN = 0.98  # pair accuracy of a discriminator that has won
OVERFITTING_RATIO, OVERFITTING_GAP = 0.5, 0.1


@dataclass(frozen=True)
class Finding:
    """A problem that begins.

    Attributes:
        kind: "collapse", "divergence", "discriminator overfitting" or "discriminator too strong".
        step: of the evaluation that shows it first.
        text: what was seen, with numbers, and what to change.
    """

    kind: str
    step: int
    text: str


def findings(history: History) -> list[Finding]:
    """Returns each problem of a run at the evaluation where it begins, and again where it returns after a while."""
    found: list[Finding] = []
    for kind, (look, advice) in _PROBLEMS.items():
        was_seen = False
        for count in range(1, len(history) + 1):
            seen = look(history[:count])
            if seen and not was_seen:
                step = int(history[count - 1]["step"])
                found.append(Finding(kind, step, f"{kind} at step {step}: {seen}. {advice}"))
            was_seen = bool(seen)
    return sorted(found, key=lambda finding: finding.step)


def best_row(history: History) -> Row | None:
    """Returns the evaluation with the best samples; None if none measured them.

    It has the smallest distance from real images; of those that are as near, as far as that can be told, the best
    coverage. Rows are compared in their order, because only the state of the best one so far is kept.
    """
    best: Row | None = None
    smallest = math.inf
    for row in history:
        if "quick_fid" in row:
            smallest = min(smallest, row["quick_fid"])
            if best is None or _is_better(row, best, smallest):
                best = row
    return best


def _is_better(row: Row, best: Row, smallest: float) -> bool:
    limit = smallest + _error(row)
    if row["quick_fid"] > limit or best["quick_fid"] > limit:
        return row["quick_fid"] < best["quick_fid"]
    return (row.get("quick_coverage", 0.0), -row["quick_fid"]) > (best.get("quick_coverage", 0.0), -best["quick_fid"])


def _error(row: Row) -> float:
    """How far its distance may be from the true one."""
    least, most = (share * row["quick_fid"] for share in (LEAST_GAIN, MOST_ERROR))
    return min(max(row.get("quick_fid_standard_error", 0.0), least), most)


def stop_reason(history: History) -> str | None:
    """Returns in words why a run may end now; None if it should go on.

    It has converged if the last `PATIENCE` evaluations, and all in the last third of the run so far, show no gain and
    a discriminator near chance. It is stalled after twice as many without a gain, whatever the discriminator says.
    """
    rows = [row for row in history if "quick_fid" in row]
    best, patience = best_row(rows), _patience(rows)
    if best is None or not _is_plateau(rows, patience):
        return None
    recent = [row["pair_accuracy"] for row in rows[-patience:] if "pair_accuracy" in row]
    step = int(rows[-1]["step"])
    quality = f"the samples, with a classifier FID of {best['quick_fid']:.3g} at step {int(best['step'])}"
    pairs = f"in {100 * mean(recent):.0f} % of pairs" if recent else "in an unknown share of pairs"
    if recent and NEAR_CHANCE[0] <= mean(recent) <= NEAR_CHANCE[1]:
        return (
            f"Converged at step {step}: {quality}, have not improved beyond the error of measurement in the last "
            f"{patience} evaluations, and the discriminator prefers the real image {pairs}, where 50 % is chance."
        )
    if _is_plateau(rows, max(2 * PATIENCE, patience)):
        return (
            f"Stalled at step {step}: {quality}, have not improved beyond the error of measurement in the last "
            f"{max(2 * PATIENCE, patience)} evaluations, but the discriminator still prefers the real image {pairs}, "
            "so the game is not over. A larger generator, or a smaller learning rate of the discriminator, may go "
            "further."
        )
    return None


def _patience(rows: History) -> int:
    """How many evaluations without a gain make a plateau."""
    return max(PATIENCE, sum(row["step"] > (1 - LEAST_SHARE) * rows[-1]["step"] for row in rows))


def _is_plateau(rows: History, patience: int) -> bool:
    """Whether the last `patience` evaluations are no better than those before, beyond the error of measurement."""
    before, after = rows[:-patience], rows[-patience:]
    if not before:
        return False
    nearest = min(before, key=lambda row: row["quick_fid"])
    gain = nearest["quick_fid"] - min(row["quick_fid"] for row in after)
    most = max(before, key=lambda row: row.get("quick_coverage", 0.0))
    wider = max(row.get("quick_coverage", 0.0) for row in after) - most.get("quick_coverage", 0.0)
    return gain <= _error(nearest) and wider <= most.get("quick_coverage_standard_error", 0.0)


def _collapse(history: History) -> str:
    *before, row = history
    most = max((past["quick_coverage"] for past in before if "quick_coverage" in past), default=0.0)
    coverage = row.get("quick_coverage", most)
    if most >= COVERAGE_TO_LOSE and coverage < LOST_COVERAGE * most:
        return f"samples cover {100 * coverage:.0f} % of the kinds of real images, after {100 * most:.0f} % before"
    distance = row.get("feature_distance_ratio", 1.0)
    previous = before[-1].get("feature_distance_ratio", 0.0) if before else 0.0
    # Samples of the first steps resemble each other in every run, and differ more and more.
    if before and distance < SMALL_DISTANCE and distance < RECOVERY * max(previous, 1e-3):
        return f"samples differ from each other {distance:.2f} times as much as real images do"
    missing = row.get("class_kl", 0.0)
    if missing > MISSING_CLASSES and before:
        return (
            f"the classes of samples differ from those of real images by {missing:.2f} nats, as if most were missing"
        )
    return ""


def _divergence(history: History) -> str:
    *before, row = history
    if abs(row.get("largest_logit", 0.0)) > LARGE_LOGIT:
        return f"the discriminator's logits reach {row['largest_logit']:.0f}"
    for name in (name for name in row if name.startswith("gradient_norm_")):
        usual = [past[name] for past in before if name in past]
        if len(usual) > 1 and row[name] > GRADIENT_GROWTH * median(usual):
            phase = name.removeprefix("gradient_norm_")
            return f"the gradient of the {phase} is {row[name] / median(usual):.0f} times as long as it was"
    best = best_row(before)
    if best is not None and row.get("quick_fid", 0.0) > LOST_QUALITY * best["quick_fid"]:
        return f"the classifier FID of samples rose from {best['quick_fid']:.3g} to {row['quick_fid']:.3g}"
    if before and row.get("skipped_steps", 0.0) > before[-1].get("skipped_steps", 0.0):
        return "losses or gradients were not finite, and those steps were skipped"
    return ""


def _overfitting(history: History) -> str:
    row = history[-1]
    train, held_out = row.get("pair_accuracy_train"), row.get("pair_accuracy")
    ratio = row.get("overfitting_ratio", 0.0)
    if train is None or held_out is None or ratio <= OVERFITTING_RATIO or train - held_out <= OVERFITTING_GAP:
        return ""
    return (
        f"the discriminator prefers training images to samples in {100 * train:.0f} % of pairs, held-out images only "
        f"in {100 * held_out:.0f} %"
    )


def _too_strong(history: History) -> str:
    if len(history) < 2:
        return ""
    accuracies = [row.get("pair_accuracy", 0.0) for row in history[-2:]]
    if min(accuracies) < CERTAIN or _learns(*history[-2:]):
        return ""
    return f"it tells real images from samples in {100 * accuracies[-1]:.1f} % of pairs, and samples do not improve"


def _learns(previous: Row, last: Row) -> bool:
    """Whether samples have become better, or differ from each other more, as in the first steps of every run."""
    if "quick_fid" not in previous or "quick_fid" not in last:
        return False
    return (
        last["quick_fid"] < (1 - LEAST_GAIN) * previous["quick_fid"]
        or last.get("quick_coverage", 0.0) > previous.get("quick_coverage", 0.0) + LEAST_GAIN
        or last.get("feature_distance_ratio", 0.0) > RECOVERY * previous.get("feature_distance_ratio", 0.0)
    )


# Kind -> what looks for it in a history, at its last row, and what to change.
_PROBLEMS: dict[str, tuple[Callable[[History], str], str]] = {
    "collapse": (
        _collapse,
        "Try a smaller --learning_rate, a stronger penalty on the discriminator's gradient, or a larger batch",
    ),
    "divergence": (
        _divergence,
        "Try a smaller --learning_rate, --max_grad_norm 1, or a stronger penalty on the discriminator's gradient",
    ),
    "discriminator overfitting": (
        _overfitting,
        "Use more training images, --augmentation always, a smaller discriminator, or a stronger penalty on its "
        "gradient",
    ),
    "discriminator too strong": (
        _too_strong,
        "Try a smaller --discriminator_learning_rate, a smaller discriminator, or a stronger penalty on its gradient",
    ),
}


@dataclass(frozen=True)
class ConvergenceWatch:
    """Follows the evaluations of a run; a [`training.objective.Watch`].

    Attributes:
        stops: --stop_when_converged: whether the run ends when it has converged, and its best state is published.
        adapt: told of all evaluations so far, at the start of a run and after each evaluation.
        has_few_images: whether a discriminator could learn the images by heart, so that `adapt` is to hear more often.
    """

    stops: bool = False
    adapt: Callable[[History], None] = lambda history: None
    has_few_images: bool = False

    draws_film = True

    @property
    def publishes_best(self) -> bool:
        """Whether the state of the best evaluation is published."""
        return self.stops

    @property
    def evaluations(self) -> int:
        """How many evaluations a run has by default."""
        return 20 if self.stops else 8 if self.has_few_images else 4

    def follow(self, history: History) -> None:
        """Lets the training adapt to its evaluations."""
        self.adapt(history)

    def new_problems(self, history: History) -> list[str]:
        """Returns the problems that begin with the last evaluation, in words."""
        return [f"{found.text}." for found in findings(history) if found.step == int(history[-1]["step"])]

    def is_best(self, history: History) -> bool:
        """Whether the last evaluation is the best one so far."""
        return best_row(history) is history[-1]

    def stop_reason(self, history: History) -> str | None:
        """Returns in words why the run ends now; None if it goes on."""
        return stop_reason(history) if self.stops else None

    def describe(self, history: History) -> dict[str, Any]:
        """Returns what results.json and the card say about the course of the run."""
        return {"problems": [asdict(found) for found in findings(history)]}
