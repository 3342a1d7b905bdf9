"""The codec's training: what its examples are, and the tables that a run publishes, once and at its end."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfgen import CodecModel
from tests.runs import TWO, Fault, copy_run, shared_run, streamed, train
from training.config.flags import DataArguments
from training.data.feeds.batches import GlobalBatch
from training.data.images import load_images
from training.train_codec import wrap_around


def published(folder: Path) -> torch.Tensor:
    """The tables of a finished run."""
    return load_file(folder / "model.safetensors")["tables"]


def test_images_that_wrap_around_are_moved_each_by_its_own_shift() -> None:
    images = torch.rand(3, 2, 4, 6)

    moved = wrap_around(images, torch.tensor([0, 1, 3]), torch.tensor([0, 4, 5]))

    expected = [images[0], images[1].roll((1, 4), (1, 2)), images[2].roll((3, 5), (1, 2))]
    assert torch.equal(moved, torch.stack(expected))


def test_the_tables_are_counted_on_the_training_images_with_the_published_weights() -> None:
    folder = shared_run("codec").folder
    data = load_images(DataArguments(max_train_samples=50), 0)
    batch = next(data.train.batches(0, GlobalBatch(50), torch.device("cpu")))
    model = CodecModel.from_pretrained(folder).eval()

    model.freeze_tables([batch["pixel_values"]])

    # A symbol on the edge between two integers may be rounded otherwise in batches of another size.
    assert (model.tables - published(folder)).abs().sum() <= 1e-3 * model.tables.sum()
    last = max((folder / "checkpoints").glob("step-*"))
    assert not load_file(last / "model.safetensors")["tables"].any()


def test_the_results_are_rates_by_these_tables() -> None:
    folder = shared_run("codec").folder
    results = json.loads((folder / "results.json").read_text())
    data = load_images(DataArguments(max_train_samples=50, max_eval_samples=37), 0)
    model = CodecModel.from_pretrained(folder).eval()
    # 36 of 37 images of 8 x 8 pixels in six rows.
    mosaic = (data.eval_pixels[:36].view(6, 6, 8, 8).permute(0, 2, 1, 3).reshape(1, 1, 48, 48)) / 255

    for name, quality in (("q0", 0.0), ("q50", 0.5), ("q100", 1.0)):
        bits = float(model.code_lengths(model.encode_symbols(mosaic, quality), quality)) + 8 * 256
        assert results["metrics"][f"bits_per_pixel_{name}"] == pytest.approx(bits / 48**2, rel=1e-3)
    assert (folder / "samples" / "step-000012-rate-distortion.png").is_file()


def test_an_interrupted_run_and_a_longer_one_publish_their_own_tables(tmp_path: Path) -> None:
    expected = published(shared_run("codec").folder)

    assert train("codec", tmp_path, fault=Fault(signal.SIGTERM, at_step=6)).code == 0
    assert train("codec", tmp_path).code == 0
    assert torch.equal(published(tmp_path), expected)

    longer = train("codec", tmp_path, "--max_train_steps", 16)
    assert longer.code == 0, longer.output
    assert not torch.equal(published(tmp_path), expected)


def test_tables_of_the_moving_average_and_of_several_processes(tmp_path: Path) -> None:
    for name, flags, processes in (
        ("ema", ["--ema_decay", "0.9"], 1),
        ("two", TWO, 2),
        ("stream", streamed("codec"), 1),
    ):
        run = train("codec", tmp_path / name, *flags, processes=processes)
        assert run.code == 0, run.output
        assert CodecModel.from_pretrained(tmp_path / name).has_tables


def test_a_published_codec_is_trained_on_without_its_old_tables(tmp_path: Path) -> None:
    start = copy_run("codec", tmp_path / "start")

    run = train("codec", tmp_path / "run", "--model_name_or_path", start)

    assert run.code == 0, run.output
    first = min((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert not load_file(first / "model.safetensors")["tables"].any()
    assert published(tmp_path / "run").any()
