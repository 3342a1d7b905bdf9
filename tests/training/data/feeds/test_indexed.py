"""Feeds start at any step, and give the same batches wherever the examples are held."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.data.tiny_data import CPU, assert_same, images_of, take, text_of, write_texts
from training.data.feeds.batches import Feed, GlobalBatch
from training.data.feeds.indexed import DatasetFeed, HeldTokens, TokenFeed
from training.data.feeds.workers import default_num_workers


def feed_of_each_kind(folder: Path) -> dict[str, Feed]:
    tokens = HeldTokens(np.random.default_rng(0).integers(0, 50, 333).astype(np.uint16))
    write_texts(folder, [" ".join(f"w{i}-{j}" for j in range(i % 7 + 30)) for i in range(150)])
    stream = {"streaming": True, "max_eval_samples": 2}
    return {
        "tensor": images_of("digits", max_train_samples=50, max_eval_samples=2).train,
        "dataset": images_of("digits", max_train_samples=50, max_eval_samples=2, in_memory=False).train,
        "tokens": TokenFeed(tokens, 10, seed=0),
        "stream": images_of("digits", shuffle_buffer_size=50, **stream).train,
        "stream-workers": images_of("digits", dataloader_num_workers=2, **stream).train,
        "stream-text": text_of(folder, streaming=True, shuffle_buffer_size=10).train,
    }


def test_every_feed_starts_at_any_step_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    """Else the dropout of a resumed run would differ from that of an uninterrupted one."""
    global_batch = GlobalBatch(4, accumulation=3, rank=1, processes=2)
    for name, feed in feed_of_each_kind(tmp_path).items():
        torch.manual_seed(0)
        expected = torch.rand(2)
        torch.manual_seed(0)
        whole = feed.batches(0, global_batch, CPU)
        assert len(list(islice(whole, 21))) == 21
        assert torch.equal(torch.rand(2), expected), name
        state = feed.state()
        assert_same(list(islice(whole, 4)), list(islice(feed.batches(7, global_batch, CPU, state), 4)))


def test_memory_and_workers_give_identical_batches() -> None:
    expected = take(images_of("digits", max_train_samples=100).train, 6, GlobalBatch(40))
    for workers in (0, 2):
        data = images_of("digits", max_train_samples=100, in_memory=False, dataloader_num_workers=workers)
        assert isinstance(data.train, DatasetFeed)
        assert_same(take(data.train, 6, GlobalBatch(40)), expected)


def test_default_number_of_workers_is_the_cores_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert default_num_workers() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_num_workers() == 3
    data = images_of("digits", in_memory=False, max_train_samples=20, max_eval_samples=2)
    assert isinstance(data.train, DatasetFeed) and data.train.num_workers == 3
    assert getattr(images_of("digits", streaming=True, max_eval_samples=2).train, "num_workers", None) == 0


def test_labels_are_the_tokens_that_follow() -> None:
    for batch in take(TokenFeed(HeldTokens(np.arange(100)), 8, seed=0), 10, GlobalBatch(5)):
        assert batch["input_ids"].shape == batch["labels"].shape == (5, 8)
        assert torch.equal((batch["input_ids"] + 1) % 100, batch["labels"])


def test_every_token_is_used_equally_often_at_every_position() -> None:
    length, context, epochs = 61, 4, 2000
    feed = TokenFeed(HeldTokens(np.arange(length)), context, seed=0)
    assert feed.num_examples == 15
    inputs = torch.cat([batch["input_ids"] for batch in take(feed, epochs, GlobalBatch(15))])
    for epoch in inputs.view(epochs, -1)[:50]:
        assert len(set(epoch.tolist())) == 60  # no token twice, and only the remainder left out
    starts = {min(epoch.tolist()[::context]) for epoch in inputs.view(epochs, -1)[:50]}
    assert len(starts) > 3  # the cut moves from epoch to epoch
    uses = torch.bincount(inputs.flatten(), minlength=length) / epochs
    assert (uses - 60 / 61).abs().max() < 0.02
    positions = torch.stack([torch.bincount(inputs[:, at], minlength=length) for at in range(context)]) / epochs
    assert (positions - 15 / 61).abs().max() < 0.06  # five standard errors


def test_text_shorter_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens must be longer than a context of 8, got 8"):
        TokenFeed(HeldTokens(np.arange(8)), 8, seed=0)
