"""How does a network's output become exact? Logits on a grid, and integer weights from there.

Two machines compute a logit in float64 that differs in its last bits: other instructions, other numbers of threads,
other shapes of batches. Rounded to a grid, both give the same integer unless a point halfway between two grid points
lies between them. The encoder finds the logits that are closer than `TOLERANCE` to such a point and records which way
each was rounded, so the decoder never has to decide them. The decoder's integers are then the encoder's for certain
wherever its logits differ by less than `TOLERANCE`. That is thousands of times more than what other instructions,
threads and batches do: 3e-14, measured on logits up to 20 of a GPT with four layers.

The share of recorded logits is 2 * TOLERANCE * LEVELS_PER_NAT = 2^-26. The grid changes a logit by at most 1/64, which
costs about (1/32)^2 / 24 = 4e-5 nats per token.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from functools import cache

import numpy as np

from .container import ByteReader, pack_integer


LEVELS_PER_NAT = 32
TOLERANCE = 2.0**-32
# Weight of the likeliest token: exp(0).
_ONE = 1 << 32
# Beyond it, a product with LEVELS_PER_NAT loses the digits that count.
_MAX_LOGIT = 1 << 16


@dataclass
class Decisions:
    """Logits too close to call, and which way the encoder rounded them.

    Attributes:
        places: (decisions,), int64, ascending: where the logit is among all logits of the file.
        ups: (decisions,), int64, 1 where it was rounded up and 0 where down.
    """

    places: np.ndarray
    ups: np.ndarray

    def to_bytes(self) -> bytes:
        """Returns their number, and for each twice the distance from the one before, plus 1 if rounded up."""
        steps = np.diff(self.places, prepend=0) * 2 + self.ups
        return b"".join(map(pack_integer, [len(steps), *steps.tolist()]))

    @classmethod
    def from_reader(cls, reader: ByteReader, num_logits: int) -> Decisions:
        """Reads what `to_bytes` returned.

        Raises:
            ValueError: a place is not below the number of logits, or bytes are missing.
        """
        steps = [reader.integer(2 * num_logits + 1) for _ in range(reader.integer(num_logits))]
        coded = np.array(steps, np.int64)
        return cls(np.cumsum(coded >> 1), coded & 1)


def round_logits(logits: np.ndarray, first_place: int) -> tuple[np.ndarray, Decisions]:
    """The encoder's rounding.

    Args:
        logits: float64, any shape.
        first_place: the place of the first of them among all logits of the file, row by row.

    Returns:
        levels, int64 of the same shape, and the decisions to record.

    Raises:
        ValueError: a logit is not finite, or huge.
    """
    below, fractions = _split(logits)
    levels = below + (fractions >= 0.5)
    (undecided,) = np.nonzero(np.abs(fractions.ravel() - 0.5) < TOLERANCE * LEVELS_PER_NAT)
    return levels, Decisions(undecided + first_place, (levels - below).ravel()[undecided])


def round_logits_as(logits: np.ndarray, first_place: int, decisions: Decisions) -> np.ndarray:
    """The decoder's rounding: `round_logits`, with the encoder's decisions.

    Raises:
        ValueError: a logit is not finite, or huge.
    """
    below, fractions = _split(logits)
    levels = below + (fractions >= 0.5)
    first, last = np.searchsorted(decisions.places, [first_place, first_place + logits.size])
    places = decisions.places[first:last] - first_place
    levels.flat[places] = below.flat[places] + decisions.ups[first:last]
    return levels


def _split(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grid point at or below each logit, and the rest in units of the grid."""
    if not (np.abs(logits) < _MAX_LOGIT).all():  # NaN fails every comparison
        raise ValueError(f"The model's logits must be finite and below {_MAX_LOGIT}, got others. Use another model.")
    scaled = logits * LEVELS_PER_NAT
    below = np.floor(scaled)
    return below.astype(np.int64), scaled - below


def weights_of_levels(levels: np.ndarray) -> np.ndarray:
    """Integer weights in proportion to exp(logit), (..., tokens) -> the same: from 0 to 2^32, that of the largest."""
    table = _exponentials()
    return table[np.minimum(levels.max(axis=-1, keepdims=True) - levels, len(table) - 1)]


@cache
def _exponentials() -> np.ndarray:
    """2^32 exp(-level / LEVELS_PER_NAT), rounded, up to where it is 0.

    By decimal arithmetic, which is the same everywhere; the last digits of `math.exp` depend on the C library.
    """
    table = [_ONE]
    with decimal.localcontext(decimal.Context(prec=40, rounding=decimal.ROUND_HALF_EVEN)):
        while table[-1]:
            exponential = (decimal.Decimal(-len(table)) / LEVELS_PER_NAT).exp()
            table.append(int((exponential * _ONE).to_integral_value()))
    return np.array(table, np.int64)
