"""Random numbers belong to an example: the same for any number of processes, different for any other use."""

from __future__ import annotations

import math

import pytest
import torch

from training.data.feeds.batches import GlobalBatch
from training.randomness import BatchRNG, derive_seed


CPU = torch.device("cpu")


def rng(*key: int | str, total: int = 24, rows: slice = slice(None)) -> BatchRNG:
    return BatchRNG(key or (0, "draw", 7), total, rows, CPU)


def test_seeds_never_change_between_releases() -> None:
    assert derive_seed(0) == 4761921975702974394
    assert derive_seed(0, "order", 0) == 1829853113658518448
    assert derive_seed(1234, "draw", 99, "generator", 1) == 1745492018480707713
    assert derive_seed(-1, "é") == 1726590514739505742


def test_seeds_are_63_bits_and_differ() -> None:
    seeds = [derive_seed(seed, name, step) for seed in range(10) for name in ("a", "b", "") for step in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # all bits are used
    assert derive_seed(1, 11) != derive_seed(11, 1) != derive_seed(1, 1, 1)


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (1, 3), (4, 3)])
def test_rows_are_the_same_slice_however_the_batch_is_split(processes: int, accumulation: int) -> None:
    whole = rng()
    expected = [whole.normal(3), whole.uniform(), whole.integers(10, 2)]
    parts: list[list[torch.Tensor]] = [[], [], []]
    for micro_step in range(accumulation):
        for rank in range(processes):
            global_batch = GlobalBatch(24 // processes // accumulation, accumulation, rank, processes)
            part = rng(total=global_batch.size, rows=global_batch.rows(micro_step))
            for values, drawn in zip(parts, [part.normal(3), part.uniform(), part.integers(10, 2)]):
                values.append(drawn)
    for values, reference in zip(parts, expected):
        assert torch.equal(torch.cat(values), reference)


def test_each_call_step_and_name_gives_different_numbers() -> None:
    first = rng(0, "draw", 0)
    values = [first.normal(4), first.normal(4), rng(0, "draw", 1).normal(4), rng(1, "draw", 0).normal(4),
              rng(0, "evaluation", 0).normal(4), rng(0, "draw", 0, "generator").normal(4)]  # fmt: skip
    for index, one in enumerate(values):
        for other in values[index + 1 :]:
            assert not torch.isin(one, other).any()
    assert torch.equal(rng(0, "draw", 0).normal(4), values[0])


def test_global_generator_is_left_untouched() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    rng().normal(5)
    assert torch.equal(torch.rand(3), expected)


def test_numbers_have_the_moments_of_their_distributions() -> None:
    count = 40_000
    normal, uniform = rng(total=count).normal(2), rng(total=count).uniform(2)
    # Five standard errors of each mean.
    assert abs(normal.mean()) < 5 / math.sqrt(2 * count)
    assert abs(normal.square().mean() - 1) < 5 * math.sqrt(2 / (2 * count))
    assert abs((normal[:, 0] * normal[:, 1]).mean()) < 5 / math.sqrt(count)
    assert abs(uniform.mean() - 0.5) < 5 * math.sqrt(1 / 12 / (2 * count))
    assert uniform.min() >= 0 and uniform.max() < 1
    counts = torch.bincount(rng(total=count).integers(10), minlength=10)
    assert len(counts) == 10
    assert ((counts - count / 10).abs() < 5 * math.sqrt(count * 0.09)).all()
    # The same position in successive steps is as independent as two positions are.
    series = torch.stack([rng(0, "draw", step).normal() for step in range(2000)])
    assert abs((series[1:, 0] * series[:-1, 0]).mean()) < 5 / math.sqrt(2000)
