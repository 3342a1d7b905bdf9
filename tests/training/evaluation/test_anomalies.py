"""Thresholds and metrics of anomaly detection against answers by hand, and trainings that end with a detector."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hfgen import AutoencoderModel
from hfgen.models.anomaly import AnomalyOutput
from tests.runs import ONE, TWO, Fault, differences, everything, metrics, start, streamed, train
from tests.training.data.test_normal_images import normal_images_of, write_anomalies
from training.data.feeds.indexed import TensorFeed
from training.data.normal_images import Masks, NormalImageData
from training.distributed.processes import Processes
from training.evaluation.anomalies import (
    AnomalyEstimator,
    class_metrics,
    conformal_threshold,
    pixel_metrics,
    ranking_metrics,
    threshold_metrics,
    training_images,
    warn_of_few,
)


CPU = torch.device("cpu")


def scores_of(normal: list[float], strange: list[float]) -> tuple[Tensor, Tensor]:
    scores = torch.tensor([*normal, *strange], dtype=torch.float64)
    return scores, torch.arange(len(scores)) < len(normal)


@pytest.mark.parametrize(
    ("images", "rate", "expected"),
    [(99, 0.01, 98), (199, 0.01, 197), (100, 0.01, 99), (98, 0.01, 97), (20, 0.01, 19), (9, 0.5, 4), (99, 0.29, 70)],
)
def test_threshold_is_the_score_that_leaves_the_wanted_share_above_it(images: int, rate: float, expected: int) -> None:
    """Scores are 0, 1, 2, ...: of 99, one may be above; of 98, none is known to be large enough, and it is the
    largest."""
    scores = torch.arange(images, dtype=torch.float64)[torch.randperm(images)]
    assert conformal_threshold(scores, rate) == expected


def test_share_of_false_alarms_is_the_wanted_one_on_average() -> None:
    """The average over many draws of 39 held-out scores and one new one, whose rate is known: 2 of 40."""
    draws = torch.rand(40_000, 40, generator=torch.Generator().manual_seed(0)).double()
    alarms = [float(draw[39]) > conformal_threshold(draw[:39], 0.05) for draw in draws[:4000]]
    assert np.mean(alarms) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


def test_too_few_images_for_the_rate_are_said(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_few(99, 0.01)
    assert not caplog.messages
    warn_of_few(19, 0.01)
    assert "19 normal images are held out" in caplog.text and "up to 0.05 of other normal images" in caplog.text


def test_ranking_counts_pairs() -> None:
    """Of 6 pairs, the anomaly is above in 4, and one is a tie. Alarms from the top: yes, no, then a tie of both."""
    scores, is_normal = scores_of([1, 3, 5], [3, 6])
    found = ranking_metrics(scores, is_normal)
    assert found.values["auroc"] == pytest.approx((1 + 0.5 + 3) / 6)
    # Recall rises by 1/2 at precision 1, and by 1/2 at the tie, where 2 of 4 alarms are right.
    assert found.values["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)


def test_decisions_at_the_threshold() -> None:
    """Alarms are 5 and 6: one of three normal images, and one of two anomalies."""
    found = threshold_metrics(*scores_of([1, 3, 5], [3, 6]), threshold=3)
    assert found.values == pytest.approx({"false_alarm_rate": 1 / 3, "f1": 2 * 0.5 * 0.5 / (0.5 + 0.5)})


def test_worst_class_is_the_one_that_is_hardest_to_find() -> None:
    scores, is_normal = scores_of([1, 3], [2, 4, 0.5, 2])
    labels = torch.tensor([1, 1, 0, 0, 2, 2])
    found = class_metrics(scores, is_normal, labels, ["a", "good", "b"], threshold=3)
    assert found.values == {"worst_class_auroc": 0.25}
    assert found.details["worst_class"] == "b"
    assert found.details["classes"] == [
        {"name": "a", "images": 2, "is_normal": False, "alarms": 0.5, "auroc": 0.75},
        {"name": "good", "images": 2, "is_normal": True, "alarms": 0.0},
        {"name": "b", "images": 2, "is_normal": False, "alarms": 0.0, "auroc": 0.25},
    ]


def test_pixels_are_ranked_over_all_images() -> None:
    maps, masks = torch.tensor([[0.1, 0.9, 0.2], [0.3, 0.4, 0.5]]), torch.tensor([[0, 1, 0], [0, 0, 1]])
    assert pixel_metrics(maps, masks).values == {"pixel_auroc": 1.0}
    maps[1, 2] = 0.35  # below one of four pixels that are normal
    assert pixel_metrics(maps, masks).values == {"pixel_auroc": pytest.approx(7 / 8)}
    assert "no anomalous pixels" in pixel_metrics(maps, 0 * masks).missing["pixel_auroc"]


@pytest.mark.parametrize(("normal", "strange", "reason"), [([1.0], [], "no anomalous"), ([], [1.0], "no normal")])
def test_what_cannot_be_measured_has_its_reason(normal: list[float], strange: list[float], reason: str) -> None:
    scores, is_normal = scores_of(normal, strange)
    found = ranking_metrics(scores, is_normal) | threshold_metrics(scores, is_normal, 0.5)
    found |= class_metrics(scores, is_normal, torch.zeros(1, dtype=torch.long), ["a"], 0.5)
    assert {"auroc", "average_precision", "f1", "worst_class_auroc"} <= {*found.missing}
    assert all(reason in why for why in found.missing.values())


class Brightness:
    """Takes bright images and pixels for strange ones, and remembers what it was fitted to."""

    def __init__(self) -> None:
        self.fitted: list[Tensor] = []

    def fit_anomaly(self, batches: Any) -> None:
        self.fitted = list(batches)

    def predict_anomaly(self, pixel_values: Tensor) -> AnomalyOutput:
        maps = pixel_values.mean(1)
        return AnomalyOutput(scores=maps.flatten(1).mean(1), maps=maps)


class OneOfTwo(Processes):
    """A process of two whose sums wait for the other one."""

    def __init__(self, rank: int, parts: list[list[Tensor]]):
        super().__init__()
        self.rank, self.count, self.parts, self.sums = rank, 2, parts, 0

    def sum(self, values: Tensor) -> Tensor:
        self.parts[self.rank].append(values)
        self.sums += 1
        return sum(part[self.sums - 1] for part in self.parts if len(part) >= self.sums)  # type: ignore[return-value]


def gray_images(*grays: int) -> Tensor:
    return torch.tensor(grays, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()


def data_of(masks: Masks | None = None) -> NormalImageData:
    """40 images to train on, 19 held out with grays from 0 to 18, and of each class 5 to evaluate on."""
    return NormalImageData(
        TensorFeed(gray_images(*range(40)), None, seed=0),
        gray_images(0, 1, 2, 3, 200, 10, 20, 30, 40, 50),
        torch.tensor([0] * 5 + [1] * 5), (2, 2), 1, ["good", "bad"], "grays", "test",
        normal_names=["good"], held_out=gray_images(*range(19)), is_normal=torch.arange(10) < 5, masks=masks,
    )  # fmt: skip


def run(model: Any, data: NormalImageData, processes: Processes | None = None, **how: Any) -> AnomalyEstimator:
    """What has done its work in batches of 4, with a false-alarm rate of a tenth."""
    estimator = AnomalyEstimator(model, model, data, 0.1, 4, processes or Processes(), CPU, **how)
    for _ in estimator.steps():
        pass
    return estimator


def test_estimator_fits_to_training_images_and_sets_the_threshold_by_those_held_out() -> None:
    model = Brightness()
    estimator = run(model, data_of())
    found = estimator.result()
    assert sorted((torch.cat(model.fitted)[:, 0, 0, 0] * 255).round().int().tolist()) == list(range(40))
    # 2 of 20 may be above it: of the grays from 0 to 18, those are 17 and 18, with the image that is scored.
    assert estimator.thresholds == pytest.approx({"anomaly_threshold": 17 / 255, "anomaly_map_threshold": 17 / 255})
    assert found.details["held_out_images"] == 19 and found.details["normal_labels"] == ["good"]
    assert found.values["auroc"] == pytest.approx(20 / 25) and found.values["false_alarm_rate"] == 1 / 5
    assert found.values["f1"] == pytest.approx(2 * 4 / (4 + 5 + 1)) and "pixel_auroc" not in found.values
    assert estimator.scores is not None and estimator.rows[estimator.scores.argmax()] == 4


def test_two_processes_measure_what_one_does() -> None:
    one = run(Brightness(), data_of()).result()
    parts: list[list[Tensor]] = [[], []]
    both = [run(Brightness(), data_of(), OneOfTwo(rank, parts)) for rank in range(2)]
    both[0].result()
    assert both[1].result() == one


def test_evaluation_in_the_middle_of_a_run_is_a_part_of_the_last_one() -> None:
    model = Brightness()
    estimator = run(model, data_of(), limit=5, at_end=False)
    assert estimator.result().values == pytest.approx({"auroc": 4 / 6, "average_precision": 0.58333}, abs=1e-4)
    assert estimator.rows.tolist() == [0, 2, 4, 6, 8] and estimator.thresholds == {}


def test_masks_measure_where_the_map_is_high(tmp_path: Path) -> None:
    """The anomalous image without a mask does not count; nor do masks before the end."""
    from PIL import Image

    half = np.zeros((2, 2), np.uint8)
    half[0] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    encoded: list[Any] = [None] * 9 + [{"bytes": None, "path": str(tmp_path / "mask.png")}]
    data = data_of(Masks(encoded, torch.arange(10) < 5, (2, 2), "grays"))
    data.eval_pixels[9, 0, 1] = 25  # the normal half of that image
    found = run(Brightness(), data).result()
    # Of 5 * 4 + 2 normal pixels, the four of the gray 200 are above.
    assert found.values["pixel_auroc"] == pytest.approx(18 / 22)
    middle = run(Brightness(), data, at_end=False).result()
    assert "pixel_auroc" not in middle.values | middle.missing


def test_images_to_fit_to_are_the_first_ones_each_once() -> None:
    feed = TensorFeed(gray_images(*range(40)), None, seed=0)
    first, epoch = (torch.cat(list(training_images(feed, count, CPU))) for count in (10, 1000))
    assert len(first) == 10 and torch.equal(epoch[:10], first)
    assert len(epoch) == len(epoch.unique(dim=0)) == 40


# ---------------------------------------------------------------------------------------------------------- trainings

NORMAL = ["--normal_label", "0", "--max_train_samples", 1000, "--max_eval_samples", 1000]


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_detector_of_one_digit_beats_chance_on_the_others(tmp_path: Path) -> None:
    """With a moving average, whose detector must be the one that was measured."""
    flags = [*NORMAL, "--max_train_steps", 100, "--hidden_channels", 8, 16, "--per_device_train_batch_size", 32,
             "--gradient_accumulation_steps", 1, "--checkpointing_steps", 100, "--learning_rate", 0.005,
             "--erase_prob", 0, "--false_alarm_rate", 0.1, "--ema_decay", 0.9]  # fmt: skip
    done = train("autoencoder", tmp_path, *flags)
    assert done.code == 0, done.output
    results, model = results_of(tmp_path), AutoencoderModel.from_pretrained(tmp_path)
    details = results["metrics_details"]
    assert results["metrics"]["auroc"] > 0.9 and results["metrics"]["worst_class_auroc"] > 0.7
    assert results["metrics"]["false_alarm_rate"] < 0.4 and results["metrics_missing"] == {}
    assert (model.config.anomaly_dim, model.config.noise_std, model.config.erase_prob) == (400, 0.1, 0)
    assert {row["name"] for row in details["classes"]} == {*"0123456789"} and details["worst_class"] != "0"
    in_the_middle = [line["eval_auroc"] for line in metrics(tmp_path) if "eval_auroc" in line][:-1]
    assert len(in_the_middle) == 3 and in_the_middle[-1] > 0.8

    data = normal_images_of("digits", "0")
    found = model.eval().predict_anomaly(data.eval_batch(torch.arange(297), CPU)["pixel_values"])
    assert model.config.anomaly_threshold == details["anomaly_threshold"] == results["anomaly_threshold"] > 0
    assert ranking_metrics(found.scores, data.is_normal).values["auroc"] == pytest.approx(results["metrics"]["auroc"])
    alarms = found.is_anomaly[data.is_normal].double().mean()
    assert float(alarms) == pytest.approx(results["metrics"]["false_alarm_rate"])

    assert (tmp_path / "samples" / "step-000100-anomalies.png").is_file()
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert "Normal is `0`, and the model was trained on nothing else." in card and "| `0` (normal) | 27 |" in card


def test_folder_without_anomalies_gets_a_threshold_and_says_what_is_missing(tmp_path: Path) -> None:
    data = write_anomalies(tmp_path / "data", kinds=())
    done = train("autoencoder", tmp_path / "run", "--dataset_name", data, "--max_train_steps", 2)
    assert done.code == 0, done.output
    results = results_of(tmp_path / "run")
    assert results["anomaly_threshold"] > 0 and results["metrics"]["auroc"] is None
    assert results["metrics_missing"]["auroc"] == "the evaluation split has no anomalous images"
    assert set(results["metrics"]) - set(results["metrics_missing"]) == {
        "mse", "reconstruction_loss", "psnr", "false_alarm_rate",
    }  # fmt: skip


def test_folder_with_masks_is_measured_by_pixel(tmp_path: Path) -> None:
    data = write_anomalies(tmp_path / "data")
    done = train("autoencoder", tmp_path / "run", "--dataset_name", data, "--max_train_steps", 4, "--anomaly_dim", 0)
    assert done.code == 0, done.output
    assert results_of(tmp_path / "run")["metrics"]["pixel_auroc"] > 0.9  # the dots are all that is bright


def test_streamed_images_end_with_a_threshold(tmp_path: Path) -> None:
    """The stream of the training is not disturbed by the one that the detector is fitted to."""
    done = train("autoencoder", tmp_path, *streamed("autoencoder"), "--normal_label", "all", "--eval_steps", 3)
    assert done.code == 0, done.output
    assert results_of(tmp_path)["anomaly_threshold"] > 0 and results_of(tmp_path)["metrics"]["auroc"] is None


@pytest.mark.slow
def test_two_processes_and_a_resumed_run_end_with_the_detector_of_one(tmp_path: Path) -> None:
    flags = [*NORMAL, "--eval_steps", 3]
    two = start("autoencoder", tmp_path / "two", *flags, *TWO, processes=2)
    one = start("autoencoder", tmp_path / "one", *flags, *ONE)
    stopped = train("autoencoder", tmp_path / "run", *flags, *ONE, fault=Fault(signal.SIGTERM, at_step=6))
    assert stopped.code == 0 and "Stopped after step 7" in stopped.output, stopped.output
    assert train("autoencoder", tmp_path / "run", *flags, *ONE).code == 0
    assert one.wait().code == two.wait().code == 0, two.output
    assert differences(everything(tmp_path / "one"), everything(tmp_path / "run")) == []
    values = [results_of(tmp_path / name) for name in ("one", "two")]
    assert values[1]["metrics"] == pytest.approx(values[0]["metrics"], rel=1e-3)
    assert values[1]["anomaly_threshold"] == pytest.approx(values[0]["anomaly_threshold"], rel=1e-3)


def test_thresholds_of_a_published_model_are_not_those_of_the_run_that_starts_from_it(tmp_path: Path) -> None:
    assert train("autoencoder", tmp_path / "base", *NORMAL, "--max_train_steps", 1).code == 0
    done = train("autoencoder", tmp_path / "run", "--model_name_or_path", tmp_path / "base", "--max_train_steps", 1)
    assert done.code == 0, done.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config.get("anomaly_threshold") is None and results_of(tmp_path / "base")["anomaly_threshold"] > 0


def test_a_normal_class_that_does_not_exist_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    done = train("autoencoder", tmp_path / "run", "--normal_label", "ten")
    assert done.code == 1 and "--normal_label must be a class of digits" in done.output, done.output
    assert not (tmp_path / "run").exists()
