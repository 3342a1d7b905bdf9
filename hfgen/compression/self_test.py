"""Does this machine compute a model as the one did that wrote the file? A few numbers in the header say so."""

from __future__ import annotations

import numpy as np

from .logit_levels import TOLERANCE


SELF_TEST_NUMBERS = 2
# A number of the self-test is off by about as much as a single logit; the worst of millions is off by some times more.
_SELF_TEST_TOLERANCE = TOLERANCE / 16


def mix(outputs: np.ndarray) -> np.ndarray:
    """Sums in which the last bits of many outputs of a network add up, (SELF_TEST_NUMBERS,).

    Outputs of any shape count with pseudo-random signs. A sum is over the root of their number, which scales it as one
    of them."""
    parts = np.array_split(outputs.ravel(), SELF_TEST_NUMBERS)
    return np.array([part @ _signs(len(part)) / len(part) ** 0.5 for part in parts])


def check_self_test(expected: np.ndarray, found: np.ndarray) -> None:
    """Compares the encoder's numbers with those of this machine.

    Raises:
        ValueError: what the network gives may differ by more than the encoder allows for.
    """
    difference = _difference(expected, found)
    if not difference < _SELF_TEST_TOLERANCE:  # NaN fails it
        raise ValueError(
            f"The self-test must differ by less than {_SELF_TEST_TOLERANCE:.1e}, got {difference:.1e}. This machine, "
            "or its version of torch, computes the model too differently from where the file was compressed. Nothing "
            "was written."
        )


def check_independence(at_once: np.ndarray, in_parts: np.ndarray, parts: str) -> None:
    """Compares the numbers of what was computed at once and in parts, such as "tokens".

    Raises:
        ValueError: they differ by more than the last bits, as they do in single precision.
    """
    difference = _difference(at_once, in_parts)
    if not difference < _SELF_TEST_TOLERANCE:
        raise ValueError(
            f"The model's outputs must not depend on how many {parts} are computed at once, got a difference of "
            f"{difference:.1e}. Some of its arithmetic is not in float64. Use another model."
        )


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(expected - found).max())


def _signs(count: int) -> np.ndarray:
    """+1 and -1, by a multiplicative hash of the place."""
    return 1.0 - 2.0 * (np.arange(count, dtype=np.uint64) * 2654435761 >> 16 & 1)
