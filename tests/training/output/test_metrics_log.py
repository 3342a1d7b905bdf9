"""What the trackers receive, by reading it back or from stand-ins for packages that are not installed."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.output.metrics_log import MetricsLog


GRAY = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5))
COLOR = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
PICTURES = {"samples": GRAY, "reconstructions": COLOR}


def log_with(folder: Path, *trackers: GeneralTracker) -> MetricsLog:
    accelerator: Any = SimpleNamespace(is_main_process=True, trackers=list(trackers))
    return MetricsLog(folder / "metrics.jsonl", "", accelerator)


def test_tensorboard_gets_pictures_and_texts_under_their_names(tmp_path: Path) -> None:
    tracker = TensorBoardTracker("run", tmp_path)
    tracker.start()
    log_with(tmp_path, tracker).show({**PICTURES, "story": "Once upon a time"}, 7)
    tracker.finish()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert set(events.Tags()["images"]) == set(PICTURES)
    for name, picture in PICTURES.items():
        (event,) = events.Images(name)
        assert event.step == 7
        found = Image.open(io.BytesIO(event.encoded_image_string))
        np.testing.assert_array_equal(np.asarray(found), np.asarray(picture.convert("RGB")))
    (text,) = events.Tensors("story/text_summary")
    assert text.step == 7 and text.tensor_proto.string_val == [b"Once upon a time"]


@pytest.mark.parametrize(("tracker_class", "in_list"), [(WandBTracker, True), (TrackioTracker, False)])
def test_packages_get_pictures_as_their_own_image_class(
    tracker_class: type[Any], in_list: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As both document: run.log({name: Image(picture)}, step=step); accelerate gives wandb lists of them."""
    logged: list[tuple[dict[str, Any], int]] = []
    run = SimpleNamespace(log=lambda values, step: logged.append((values, step)))
    package: Any = SimpleNamespace(init=lambda project: run, Image=lambda picture: ("Image", picture))
    monkeypatch.setitem(sys.modules, tracker_class.name, package)
    tracker = tracker_class("run")
    tracker.start()
    log_with(tmp_path, tracker).show(PICTURES, 7)
    assert {step for _, step in logged} == {7}
    received = {name: value for values, _ in logged for name, value in values.items()}
    images = {name: ("Image", picture) for name, picture in PICTURES.items()}
    assert received == ({name: [image] for name, image in images.items()} if in_list else images)


class NumbersOnly(GeneralTracker):
    """A tracker to which accelerate passes no pictures."""

    name = "numbers_only"
    requires_logging_directory = False

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.logged = fails, []  # type: ignore[var-annotated]

    @property
    def tracker(self) -> None:
        return None

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        if self.fails:
            raise ConnectionError("the server is gone")
        self.logged.append((values, step))


def test_other_trackers_get_texts_but_no_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = NumbersOnly()
    log = log_with(tmp_path, tracker)
    log.show(PICTURES, 7)
    log.show({"samples": "Once upon a time"}, 8)
    assert tracker.logged == [({"samples": "Once upon a time"}, 8)] and caplog.text == ""


def test_a_tracker_that_fails_is_warned_of_once_and_others_get_theirs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, other = NumbersOnly(fails=True), NumbersOnly()
    log = log_with(tmp_path, broken, other)
    with caplog.at_level(logging.WARNING):
        log.show({"samples": "Once"}, 1)
        log.write({"step": 2, "loss": 0.5, "eval_elbo": None})
    assert caplog.text.count("numbers_only failed, and the run continues without it: the server is gone") == 1
    assert other.logged == [({"samples": "Once"}, 1), ({"loss": 0.5}, 2)]
