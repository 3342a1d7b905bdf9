"""Contexts that a decoder can know, and tables that are frequencies."""

import math

import pytest
import torch
from torch import Tensor

from hfgen.models.symbol_tables import (
    ACTIVITY_BOUNDS,
    NUM_CONTEXTS,
    PRECISION,
    coding_passes,
    count_entries,
    flat_entries,
    symbol_contexts,
    table_entries,
    to_frequencies,
)


SIZES = pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 4), (5, 6), (7, 2)])


def random_symbols(*shape: int, seed: int = 0, largest: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator, dtype=torch.int32)


@SIZES
def test_each_symbol_is_coded_in_one_pass(size: tuple[int, int]) -> None:
    assert torch.equal(torch.stack(coding_passes(*size)).sum(0), torch.ones(size, dtype=torch.long))


@SIZES
def test_contexts_depend_on_earlier_passes_only(size: tuple[int, int]) -> None:
    """As a decoder fills in one pass after the other, from nothing."""
    symbols = random_symbols(2, 3, *size)
    expected = symbol_contexts(symbols)

    decoded = torch.zeros_like(symbols)
    for mask in coding_passes(*size):
        assert torch.equal(symbol_contexts(decoded)[..., mask], expected[..., mask])
        decoded[..., mask] = symbols[..., mask]


def test_contexts_by_hand() -> None:
    """The second pass has the sums of diagonal neighbors, the third of those beside, above and below; bounds are 0, 1,
    2, 4, 8, and each pass has six contexts of its own after that of the first."""
    symbols = torch.tensor([[1, 0, -3], [0, 5, 0], [0, 0, 9]])
    #     corners 1 + 3 + 0 + 9 = 13: above 8, the last of the second pass
    #     above the middle 1 + 3 + 5 = 9, left of it 1 + 5 + 0 = 6, right 3 + 5 + 9, below 5 + 9
    second, third = 1, 1 + len(ACTIVITY_BOUNDS) + 1

    expected = torch.tensor([[0, third + 5, 0], [third + 4, second + 5, third + 5], [0, third + 5, 0]])

    assert torch.equal(symbol_contexts(symbols), expected)
    assert torch.equal(symbol_contexts(0 * symbols).unique(), torch.tensor([0, second, third]))
    assert int(symbol_contexts(torch.full((9, 9), 2**15)).max()) == NUM_CONTEXTS - 1


def test_entries_of_tables() -> None:
    symbols = torch.tensor([[-3, -2, 0, 2, 3, -(2**15)]])

    assert table_entries(symbols, max_symbol=2).tolist() == [[5, 0, 2, 4, 5, 5]]


def test_counts_say_how_often_each_entry_is_used() -> None:
    symbols = random_symbols(3, 2, 5, 6, largest=3)

    counts = count_entries(symbols, max_symbol=2)

    assert counts.shape == (2, NUM_CONTEXTS, 6) and int(counts.sum()) == symbols.numel()
    in_second_channel = (symbols[:, 1] == 2) & (symbol_contexts(symbols)[:, 1] == 0)
    assert int(counts[1, 0, 4]) == int(in_second_channel.sum()) > 0
    assert torch.equal(counts.flatten()[flat_entries(symbols, 2)].min(), counts[counts > 0].min())


def test_frequencies_are_shares_of_the_counts() -> None:
    counts = torch.zeros(2, NUM_CONTEXTS, 4, dtype=torch.long)
    counts[0, 0] = torch.tensor([3_000_000, 1_000_000, 0, 0])

    frequencies = to_frequencies(counts)

    assert frequencies.dtype == torch.int32 and int(frequencies.min()) >= 1
    assert torch.equal(frequencies.sum(-1), torch.full((2, NUM_CONTEXTS), 2**PRECISION))
    assert frequencies[0, 0].tolist() == pytest.approx([0.75 * 2**16, 0.25 * 2**16, 1, 1], abs=4)
    # A context that was never seen has the table of its channel, and a channel that was never used any symbol.
    assert frequencies[0, 5].tolist() == pytest.approx(frequencies[0, 0].tolist(), abs=4)
    assert frequencies[1, 0].tolist() == pytest.approx([2**14] * 4, abs=4)


def test_tables_code_what_they_were_counted_on_in_its_entropy() -> None:
    symbols = (random_symbols(4, 2, 64, 64) + random_symbols(4, 2, 64, 64, seed=1)).div(3, rounding_mode="trunc")
    counts = count_entries(symbols, max_symbol=7)
    probabilities = to_frequencies(counts).double() / 2**PRECISION

    bits = -probabilities.log2().flatten()[flat_entries(symbols, 7)].sum()

    seen = counts[counts > 0].double()
    shares = (counts / counts.sum(-1, keepdim=True))[counts > 0]
    entropy = -(seen * shares.log2()).sum()
    assert float(entropy) <= float(bits) < 1.01 * float(entropy)
    assert float(bits) < symbols.numel() * math.log2(15)
