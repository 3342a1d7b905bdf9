"""Tables for entropy coding: how often each symbol occurs, given those around it that are decoded already.

A codec's symbols are integers (batch, channels, height, width). They are coded in three passes, so that a decoder
knows about all symbols of the passes before. Which table a symbol has, its context, follows from them by integer
arithmetic only, and the tables are integers themselves, counted once and stored with a model's weights. So a decoder
reads the very symbols that were encoded, on every machine.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


PRECISION = 16  # bits: the frequencies of a table sum to 2^16
# The magnitudes of four neighbors add up to at most 0, 1, 2, 4, 8, or to more.
ACTIVITY_BOUNDS = (0, 1, 2, 4, 8)
NUM_CONTEXTS = 1 + 2 * (len(ACTIVITY_BOUNDS) + 1)
# How many counts the table of a channel is worth where the tables of its contexts begin.
POOLED_COUNTS = 30.0


def coding_passes(height: int, width: int) -> list[Tensor]:
    """Which symbols of a channel are coded in each pass, as masks (height, width): first those in even rows and
    columns, then those in odd rows and columns, which lie diagonally between them, then all others."""
    odd_rows = torch.arange(height)[:, None] % 2 == 1
    odd_columns = torch.arange(width) % 2 == 1
    return [~(odd_rows | odd_columns), odd_rows & odd_columns, odd_rows ^ odd_columns]


def symbol_contexts(symbols: Tensor) -> Tensor:
    """Which table of its channel each symbol has, from 0 to NUM_CONTEXTS - 1, by integer arithmetic.

    It depends on how large four neighbors are that are coded in an earlier pass: the nearest ones on the diagonals in
        the
    second pass, and those beside, above and below in the third. The first pass has one table for each channel.

    Args:
        symbols: (..., height, width), integers. Those of the same pass and of later ones make no difference.

    Returns:
        int64, of the same shape.
    """
    height, width = symbols.shape[-2:]
    cap = ACTIVITY_BOUNDS[-1] + 1
    near = F.pad(symbols.long().abs().clamp(max=cap), (1, 1, 1, 1))
    above, here, below = near[..., :-2, :], near[..., 1:-1, :], near[..., 2:, :]
    diagonal = above[..., :-2] + above[..., 2:] + below[..., :-2] + below[..., 2:]
    beside = above[..., 1:-1] + below[..., 1:-1] + here[..., :-2] + here[..., 2:]
    _, second, third = (mask.to(symbols.device) for mask in coding_passes(height, width))
    bounds = torch.tensor(ACTIVITY_BOUNDS, device=symbols.device)
    activity = torch.bucketize(torch.where(second, diagonal, beside).contiguous(), bounds)
    offset = torch.where(second, 1, 1 + len(ACTIVITY_BOUNDS) + 1)
    return torch.where(second | third, activity + offset, 0)


def table_entries(symbols: Tensor, max_symbol: int) -> Tensor:
    """The entry of its context's table that each symbol has; symbols that are larger have the last one.

    Args:
        symbols: integers (..., height, width).
        max_symbol: tables have entries for -max_symbol to max_symbol, and one more.

    Returns:
        int64, of the same shape, from 0 to 2 * max_symbol + 1.
    """
    return torch.where(symbols.abs() > max_symbol, 2 * max_symbol + 1, symbols.long() + max_symbol)


def count_entries(symbols: Tensor, max_symbol: int) -> Tensor:
    """How often each entry of each table is used, int64 (channels, NUM_CONTEXTS, 2 * max_symbol + 2).

    Args:
        symbols: integers (batch, channels, height, width).
        max_symbol: see [`table_entries`].
    """
    shape = (symbols.shape[1], NUM_CONTEXTS, 2 * max_symbol + 2)
    used = flat_entries(symbols, max_symbol)
    return torch.bincount(used.flatten(), minlength=shape[0] * shape[1] * shape[2]).view(shape)


def flat_entries(symbols: Tensor, max_symbol: int) -> Tensor:
    """Where in the flattened tables (channels, NUM_CONTEXTS, 2 * max_symbol + 2) the frequency of each symbol is.

    Returns:
        int64 (batch, channels, height, width).
    """
    channels = torch.arange(symbols.shape[1], device=symbols.device)[:, None, None]
    tables = channels * NUM_CONTEXTS + symbol_contexts(symbols)
    return tables * (2 * max_symbol + 2) + table_entries(symbols, max_symbol)


def to_frequencies(counts: Tensor) -> Tensor:
    """Counts (..., NUM_CONTEXTS, entries) as integer frequencies of at least 1 that sum to 2^16, int32.

    The table of a context begins at that of its channel, and leaves it the more often it was used.
    """
    pooled = counts.sum(-2, keepdim=True).double() + 0.02
    weights = counts + POOLED_COUNTS * pooled / pooled.sum(-1, keepdim=True)
    entries = counts.shape[-1]
    shares = weights / weights.sum(-1, keepdim=True) * (2**PRECISION - entries)
    frequencies = shares.floor().to(torch.int32) + 1
    left = 2**PRECISION - frequencies.sum(-1, keepdim=True)
    likeliest = frequencies.argmax(-1, keepdim=True)
    return frequencies.scatter_add(-1, likeliest, left.to(torch.int32))
