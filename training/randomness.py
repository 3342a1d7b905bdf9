"""Random numbers that belong to an example, not to the process or the moment that works on it.

Every number comes from a generator seeded by (seed, step, purpose). So nothing has to be saved for a run to resume to
the bit, and two processes draw what one process would have drawn for the same global batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Returns a seed of 63 bits: equal parts give equal seeds, on every machine and in every release."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


@dataclass
class BatchRNG:
    """Random numbers for some rows of a global batch. Each call gives new ones.

    Attributes:
        key: what the numbers are for: seed, step, and so on.
        total: examples in the global batch.
        rows: the rows that this process works on now.
        device: where they are drawn and needed.
    """

    key: tuple[int | str, ...]
    total: int
    rows: slice
    device: torch.device
    _count: int = 0

    def normal(self, *shape: int) -> Tensor:
        """Returns standard normal numbers, (rows, *shape)."""
        return torch.randn(self.total, *shape, generator=self._generator(), device=self.device)[self.rows]

    def uniform(self, *shape: int) -> Tensor:
        """Returns uniform numbers in [0, 1), (rows, *shape)."""
        return torch.rand(self.total, *shape, generator=self._generator(), device=self.device)[self.rows]

    def integers(self, high: int, *shape: int) -> Tensor:
        """Returns integers in [0, high), (rows, *shape)."""
        return torch.randint(high, (self.total, *shape), generator=self._generator(), device=self.device)[self.rows]

    def generator(self) -> torch.Generator:
        """Returns a new generator for numbers of another kind."""
        return torch.Generator(self.device).manual_seed(int(self.integers(2**62)[0]))

    def restarted(self) -> BatchRNG:
        """Returns a copy that gives the same numbers from the first one on."""
        return BatchRNG(self.key, self.total, self.rows, self.device)

    def _generator(self) -> torch.Generator:
        self._count += 1
        return torch.Generator(self.device).manual_seed(derive_seed(*self.key, self._count))
