"""The seed alone determines the order of examples, and each process gets its own."""

from __future__ import annotations

import pytest
import torch

from tests.training.data.tiny_data import take
from training.data.feeds.batches import EpochOrder, GlobalBatch
from training.data.feeds.indexed import TensorFeed


def test_each_epoch_is_a_new_permutation_and_batches_span_epochs() -> None:
    order = EpochOrder(10, seed=0)
    parts = list(order.positions(0, 40))
    assert [epoch for epoch, _ in parts] == [0, 1, 2, 3]
    assert all(sorted(part.tolist()) == list(range(10)) for _, part in parts)
    assert len({tuple(part.tolist()) for _, part in parts}) == 4
    spanning = list(order.positions(7, 14))
    assert [(epoch, len(part)) for epoch, part in spanning] == [(0, 3), (1, 4)]
    sequence = torch.cat([part for _, part in parts])
    assert torch.equal(torch.cat([part for _, part in spanning]), sequence[7:14])
    assert not torch.equal(EpochOrder(10, seed=1).epoch(0), order.epoch(0))


@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(12, 1, 1), (6, 1, 2), (4, 3, 1), (2, 3, 2)])
def test_processes_and_micro_steps_make_up_the_same_global_batches(
    batch_size: int, accumulation: int, processes: int
) -> None:
    pixels = torch.arange(25, dtype=torch.uint8).view(-1, 1, 1, 1)
    whole = torch.cat([batch["pixel_values"] for batch in take(TensorFeed(pixels, None, 3), 5, GlobalBatch(12))])
    parts = [GlobalBatch(batch_size, accumulation, rank, processes) for rank in range(processes)]
    ranks = [take(TensorFeed(pixels, None, 3), 5 * accumulation, part) for part in parts]
    rows = [batches[micro]["pixel_values"] for micro in range(5 * accumulation) for batches in ranks]
    assert torch.equal(torch.cat(rows), whole)
