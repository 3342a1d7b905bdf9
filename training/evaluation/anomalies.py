"""Fits the anomaly detector of a model, sets its threshold, and measures how well it finds anomalies.

The threshold is a quantile of the scores of normal images that were not trained on. If it is the k-th smallest of n
such scores, k = n + 1 - floor((n + 1) rate), another normal image is above it with a probability of at most `rate`,
whatever the distribution of the scores (Vovk et al. 2005, "Algorithmic Learning in a Random World").
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..data.feeds.batches import Feed, evenly_spread, image_batch
from ..data.normal_images import NormalImageData
from ..distributed.processes import Processes
from ..objective import Metrics, Steps


logger = logging.getLogger(__name__)
MOST_FITTED = 50_000  # training images: further ones hardly change the statistics
MOST_STREAMED = 4096  # of a stream, which does not say when all of them have been read
FEWEST_FITTED = 256
MOST_PIXELS = 2**24  # scores of pixels that are ranked together
RANKING, AT_THRESHOLD = ("auroc", "average_precision"), ("f1", "worst_class_auroc")


class AnomalyEstimator:
    """Fits a detector to normal training images and measures it; a [`training.objective.Estimator`].

    Every process fits the same detector to the same images, and predicts its share of the others.

    Args:
        model: the [`hfgen.AutoencoderModel`] that is measured.
        trained: the one that is optimized, `model` itself or one whose moving average it is.
        data: normal images to train on, some that are held out, and images to evaluate on.
        false_alarm_rate: share of normal images that may score above the threshold.
        batch_size: images predicted at a time.
        processes: of the run.
        device: of this process.
        limit: number of images to evaluate on, evenly spread over the split; None for all.
        at_end: whether the model is finished. If not, the detector is fitted to fewer images, and there is no
            threshold and what depends on it.

    Attributes:
        rows: indices of the evaluation images that are measured.
        scores: float64 (rows,), after `result`.
        thresholds: config fields that follow from the images held out, after `result`.
    """

    def __init__(
        self,
        model: Any,
        trained: Any,
        data: NormalImageData,
        false_alarm_rate: float,
        batch_size: int,
        processes: Processes,
        device: torch.device,
        limit: int | None = None,
        at_end: bool = True,
    ):
        self.model, self.trained = model, trained
        self.data, self.false_alarm_rate = data, false_alarm_rate
        self.batch_size, self.processes, self.device, self.at_end = batch_size, processes, device, at_end
        self.rows = evenly_spread(data.num_eval_examples, limit)
        self.scores: Tensor | None = None
        self.thresholds: dict[str, float] = {}
        # All numbers that other processes predict are 0 here until they are summed. Of the images held out there are
        # scores and the largest values of their maps.
        self._held_out = torch.zeros(2, len(data.held_out) if at_end else 0, dtype=torch.float64)
        self._scores = torch.zeros(len(self.rows), dtype=torch.float64)
        height, width = data.image_size
        self._masks = data.masks if at_end else None
        self._stride = max(1, math.ceil(len(self.rows) * height * width / MOST_PIXELS))
        pixels = 0 if self._masks is None else math.ceil(height * width / self._stride)
        self._map_values = torch.zeros(len(self.rows), pixels)
        self._mask_values = torch.zeros(len(self.rows), pixels, dtype=torch.uint8)

    def steps(self) -> Steps:
        """Does the work of this process in pieces; see [`training.objective.Estimator`]."""
        yield 0.0
        count = MOST_FITTED if self.at_end else max(FEWEST_FITTED, len(self.rows))
        self.model.fit_anomaly(training_images(self.data.train, count, self.device))
        if self.trained is not self.model and self.model.anomaly_detector is not None:
            # The buffers of a moving average follow those of the model that is trained.
            self.trained.anomaly_detector.load_state_dict(self.model.anomaly_detector.state_dict())
        for places in self._own(self._held_out.shape[1]):
            yield 0.0
            if len(places):
                pixels = self.data.held_out[places].to(self.device)
                output = self.model.predict_anomaly(image_batch(pixels, None)["pixel_values"])
                self._held_out[:, places] = torch.stack([output.scores, output.maps.flatten(1).amax(1)]).double().cpu()
        for places in self._own(len(self.rows)):
            yield 0.0
            if len(places):
                images = self.data.eval_batch(self.rows[places], self.device)
                self._keep(places, self.model.predict_anomaly(images["pixel_values"]))

    def result(self) -> Metrics:
        """Returns the metrics, the same in every process. Collective call, after the steps of all processes."""
        parts = (self._held_out, self._scores, self._map_values, self._mask_values)
        held_out, self.scores, map_values, mask_values = (self.processes.sum(part) for part in parts)
        try:
            return self._measure(held_out, self.scores, map_values, mask_values)
        except Exception as error:
            return Metrics.failed([*RANKING, *AT_THRESHOLD], error)

    def _keep(self, places: Tensor, output: Any) -> None:
        self._scores[places] = output.scores.double().cpu()
        if self._masks is not None:
            self._map_values[places] = output.maps.flatten(1)[:, :: self._stride].float().cpu()
            self._mask_values[places] = self._masks[self.rows[places]].flatten(1)[:, :: self._stride].byte()

    def _measure(self, held_out: Tensor, scores: Tensor, map_values: Tensor, mask_values: Tensor) -> Metrics:
        data, is_normal = self.data, self.data.is_normal[self.rows]
        if not self.at_end:
            # That a split has no anomalies at all is said at the end.
            return Metrics() if data.is_normal.all() else ranking_metrics(scores, is_normal)
        threshold, map_threshold = (conformal_threshold(values, self.false_alarm_rate) for values in held_out)
        self.thresholds = {"anomaly_threshold": threshold, "anomaly_map_threshold": map_threshold}
        details = {
            "normal_labels": data.normal_names,
            "held_out_images": len(data.held_out),
            "false_alarm_rate_wanted": self.false_alarm_rate,
        }
        labels = None if data.eval_labels is None else data.eval_labels[self.rows]
        metrics = Metrics(details={**details, **self.thresholds}) | ranking_metrics(scores, is_normal)
        metrics |= threshold_metrics(scores, is_normal, threshold)
        metrics |= class_metrics(scores, is_normal, labels, data.label_names, threshold)
        if self._masks is not None:
            known = self._masks.are_known[self.rows]
            metrics |= pixel_metrics(map_values[known], mask_values[known])
        return metrics

    def _own(self, count: int) -> Iterator[Tensor]:
        """Yields this process's batches of `count` places, and an empty one in a round without one: every process
        takes part in as many rounds."""
        batches = torch.arange(count).split(self.batch_size) if count else ()
        for first in range(0, len(batches), self.processes.count):
            index = first + self.processes.rank
            yield batches[index] if index < len(batches) else torch.arange(0)


def warn_of_few(held_out: int, false_alarm_rate: float) -> None:
    """Warns if there are too few normal images held out for the false-alarm rate that is wanted."""
    if (held_out + 1) * false_alarm_rate < 1 - 1e-9:
        logger.warning(
            "%d normal images are held out, too few to show a false-alarm rate of %g: the threshold is the largest of "
            "their scores, and up to %.2g of other normal images may be above it. Use more images, or a larger "
            "--false_alarm_rate.", held_out, false_alarm_rate, 1 / (held_out + 1),
        )  # fmt: skip


def training_images(feed: Feed, count: int, device: torch.device) -> Iterator[Tensor]:
    """Yields the first `count` images of a feed in batches: at most one epoch, or 4,096 of a stream.

    They do not depend on the number of processes, nor on a resume, and training continues where it is.
    """
    for batch in feed.first_batches(min(count, feed.num_examples or MOST_STREAMED)):
        yield batch["pixel_values"].to(device)


def conformal_threshold(scores: Tensor, false_alarm_rate: float) -> float:
    """Returns the score that another normal image exceeds with a probability of at most `false_alarm_rate`.

    Args:
        scores: (images,) of normal images that were not trained on. If there are fewer than 1 / false_alarm_rate - 1,
            no score is known to be large enough, and the largest one is returned.
        false_alarm_rate: between 0 and 1.
    """
    count = len(scores)
    allowed = math.floor((count + 1) * false_alarm_rate + 1e-9)  # rounding errors must not cost an image
    return float(scores.sort().values[min(count - allowed, count - 1)])


def ranking_metrics(scores: Tensor, is_normal: Tensor) -> Metrics:
    """Returns AUROC and average precision of finding the images that are not normal."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if reason := _not_both(is_normal):
        return Metrics(missing=dict.fromkeys(RANKING, reason))
    is_anomalous, values = (~is_normal).numpy(), scores.numpy()
    return Metrics({
        "auroc": float(roc_auc_score(is_anomalous, values)),
        "average_precision": float(average_precision_score(is_anomalous, values)),
    })  # fmt: skip


def threshold_metrics(scores: Tensor, is_normal: Tensor, threshold: float) -> Metrics:
    """Returns F1 of the decisions, and the share of normal images that are taken for anomalies."""
    from sklearn.metrics import f1_score

    is_alarm = scores > threshold
    metrics = Metrics()
    if is_normal.any():
        metrics.values["false_alarm_rate"] = float(is_alarm[is_normal].double().mean())
    else:
        metrics.missing["false_alarm_rate"] = "the evaluation split has no normal images"
    if reason := _not_both(is_normal):
        metrics.missing["f1"] = reason
    else:
        metrics.values["f1"] = float(f1_score((~is_normal).numpy(), is_alarm.numpy(), zero_division=0.0))
    return metrics


def class_metrics(
    scores: Tensor, is_normal: Tensor, labels: Tensor | None, names: list[str], threshold: float
) -> Metrics:
    """Returns the AUROC of the class that is hardest to tell from normal images, and in the details every class.

    Args:
        scores, is_normal: (images,).
        labels: (images,) indices of classes; None if there are none.
        names: of the classes.
        threshold: above which a score is an alarm.
    """
    if reason := _not_both(is_normal):
        return Metrics(missing={"worst_class_auroc": reason})
    if labels is None:
        return Metrics(missing={"worst_class_auroc": "the images have no classes"})
    table, aurocs = [], {}
    for label in labels.unique().tolist():
        name, is_own = names[label], labels == label
        row = {"name": name, "images": int(is_own.sum()), "is_normal": bool(is_normal[is_own].all()),
               "alarms": float((scores[is_own] > threshold).double().mean())}  # fmt: skip
        if not row["is_normal"]:
            compared = is_own | is_normal
            row["auroc"] = aurocs[name] = ranking_metrics(scores[compared], is_normal[compared]).values["auroc"]
        table.append(row)
    worst = min(aurocs, key=lambda name: aurocs[name])
    return Metrics({"worst_class_auroc": aurocs[worst]}, details={"worst_class": worst, "classes": table})


def pixel_metrics(maps: Tensor, masks: Tensor) -> Metrics:
    """Returns the AUROC of finding anomalous pixels.

    Args:
        maps: (images, pixels), larger where an image is stranger.
        masks: (images, pixels), 1 for anomalous pixels and 0 for others.
    """
    from sklearn.metrics import roc_auc_score

    is_anomalous = masks.flatten() != 0
    if is_anomalous.all() or not is_anomalous.any():
        kind = "normal" if is_anomalous.all() else "anomalous"
        return Metrics(missing={"pixel_auroc": f"the masks have no {kind} pixels"})
    return Metrics({"pixel_auroc": float(roc_auc_score(is_anomalous.numpy(), maps.flatten().numpy()))})


def _not_both(is_normal: Tensor) -> str:
    """Why normal images and others cannot be compared; empty if they can."""
    if is_normal.all():
        return "the evaluation split has no anomalous images"
    return "" if is_normal.any() else "the evaluation split has no normal images"
