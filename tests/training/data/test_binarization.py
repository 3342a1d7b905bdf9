"""Training images are redrawn every time they are seen, evaluation images never; a resumed run repeats the draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.data.tiny_data import CPU, assert_same, images_of, picture, take, write_parquet
from training.data.binarization import binarized
from training.data.feeds.batches import GlobalBatch
from training.data.images import DecodedPixels, ImageData


def grays(folder: Path, values: list[int], **args: object) -> ImageData:
    """Single-colored images; the same ones to train and to evaluate on."""
    for split in ("train", "test"):
        write_parquet(folder, [picture(value, size=(32, 32)) for value in values], split)
    return images_of(folder, **args)


def test_pixels_are_white_as_often_as_they_are_bright(tmp_path: Path) -> None:
    values = [0, 51, 128, 204, 255]
    data = binarized(grays(tmp_path, values), seed=0)
    gray = grays(tmp_path, values)
    white = {value: [] for value in values}
    pairs = zip(take(data.train, 40, GlobalBatch(5)), take(gray.train, 40, GlobalBatch(5)))
    for batch, original in pairs:
        assert set(batch["pixel_values"].unique().tolist()) <= {0.0, 1.0}
        for drawn, image in zip(batch["pixel_values"], original["pixel_values"]):
            white[round(float(image[0, 0, 0]) * 255)].append(drawn)
    for value, images in white.items():
        count, p = 32 * 32 * len(images), value / 255
        # Five standard errors: all pixels are independent, within an image and from one epoch to the next.
        share = torch.stack(images).double().mean().item()
        assert abs(share - p) <= 5 * (p * (1 - p) / count) ** 0.5, value
        spread = torch.stack(images).double().mean(0).var().item()
        assert spread == pytest.approx(p * (1 - p) / len(images), rel=0.3), value


def test_images_are_drawn_anew_in_each_epoch(tmp_path: Path) -> None:
    data = binarized(grays(tmp_path, [128] * 4), seed=0)
    first, second = take(data.train, 2, GlobalBatch(4))
    share = (first["pixel_values"] == second["pixel_values"]).double().mean().item()
    assert share == pytest.approx(0.5, abs=5 * 0.5 / (4 * 32 * 32) ** 0.5)


def test_batches_follow_from_seed_and_step() -> None:
    """On both kinds of feeds: streamed images come in an order of their own, and are drawn the same way."""
    global_batch = GlobalBatch(4, accumulation=2)
    for args in ({}, {"in_memory": False}):
        data = [binarized(images_of("digits", max_train_samples=50, **args), seed) for seed in (0, 0, 1)]
        whole, again, other = (take(entry.train, 10, global_batch) for entry in data)
        assert_same(whole, again)
        assert_same(whole[6:], take(data[0].train, 4, global_batch, first_step=3))
        assert not torch.equal(whole[0]["pixel_values"], other[0]["pixel_values"])


def test_stream_resumes_from_its_state() -> None:
    def stream() -> ImageData:
        return binarized(images_of("digits", streaming=True, shuffle_buffer_size=50, max_eval_samples=2), seed=0)

    data = stream()
    whole = take(data.train, 6, GlobalBatch(8))
    data = stream()
    assert_same(whole[:3], take(data.train, 3, GlobalBatch(8)))
    resumed = stream().train.batches(3, GlobalBatch(8), CPU, data.train.state())
    assert_same(whole[3:], [next(resumed) for _ in range(3)])


def test_two_processes_draw_what_one_draws() -> None:
    feed = binarized(images_of("digits", max_train_samples=50), seed=0).train
    (whole,) = take(feed, 1, GlobalBatch(8))
    halves = [take(feed, 1, GlobalBatch(4, rank=rank, processes=2))[0] for rank in (0, 1)]
    assert_same([whole], [{name: torch.cat([half[name] for half in halves]) for name in whole}])


def test_evaluation_images_are_fixed_however_they_are_held_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [25 * i for i in range(10)]
    held = binarized(grays(tmp_path, values), seed=0)
    monkeypatch.setattr("training.data.feeds.batches.IN_MEMORY_BYTES", 1)
    large = binarized(grays(tmp_path, values), seed=1)
    assert isinstance(large.eval_pixels.pixels, DecodedPixels)
    (whole,) = held.eval_batches(10, CPU)
    for data in (held, large):
        parts = [batch["pixel_values"] for batch in data.eval_batches(3, CPU)]
        assert torch.equal(torch.cat(parts), whole["pixel_values"])
    assert set(whole["pixel_values"].unique().tolist()) == {0.0, 1.0}
    share = whole["pixel_values"].double().mean((1, 2, 3))
    assert torch.allclose(share, torch.tensor(values).double() / 255, atol=5 * 0.5 / 32)
    assert held.describe()["split"] == "test, binarized once"


def test_binary_images_stay_what_they_are(tmp_path: Path) -> None:
    data = grays(tmp_path, [0, 255, 255, 0])
    assert_same(take(data.train, 3, GlobalBatch(4)), take(binarized(data, seed=0).train, 3, GlobalBatch(4)))
    assert_same(list(data.eval_batches(4, CPU)), list(binarized(data, seed=0).eval_batches(4, CPU)))


def test_color_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--dynamic_binarization .* 3 channels.* --num_channels 1"):
        binarized(images_of("digits", num_channels=3), seed=0)
