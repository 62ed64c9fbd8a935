"""Where zeros may stand: anywhere, in blocks of neighbors, or so many of every few. No torch."""

from __future__ import annotations

import math
import re
from typing import NamedTuple, Self

_BLOCK, _N_OF_M = re.compile(r"block_(\d+)"), re.compile(r"(\d+):(\d+)")
_MOST_IN_GROUP = 16  # hardware has 4 and 8; choices of N out of M are tried one by one


class SparsityPattern(NamedTuple):
    """Groups of neighbors along the inputs of a matrix, ``weight[row, group * size : (group + 1) * size]``.

    Attributes:
        size: weights of a group.
        kept: how many of each group stay, N of M; None: groups stay or go as a whole.
    """

    size: int = 1
    kept: int | None = None

    @classmethod
    def of(cls, text: str) -> Self:
        """Read ``unstructured``, ``block_4`` or ``2:4``, which keeps 2 of every 4.

        Raises:
            ValueError: it is none of them.
        """
        if text == "unstructured":
            return cls()
        if found := _BLOCK.fullmatch(text):
            size = int(found[1])
            if 2 <= size <= _MOST_IN_GROUP:
                return cls(size)
        if found := _N_OF_M.fullmatch(text):
            kept, size = int(found[1]), int(found[2])
            if 1 <= kept < size <= _MOST_IN_GROUP:
                return cls(size, kept)
        raise ValueError(
            f"{text!r} is no pattern; allowed: unstructured, block_N, or N:M with N below M, both up to "
            f"{_MOST_IN_GROUP}"
        )

    @property
    def sparsity(self) -> float | None:
        """The share of zeros, where the pattern decides it."""
        return None if self.kept is None else 1 - self.kept / self.size

    def at(self, sparsity: float) -> Self:
        """Return the pattern on the way to this one at which at most so large a share of weights is zero."""
        if self.kept is None:
            return self
        kept = max(self.kept, math.ceil(self.size * (1 - sparsity) - 1e-9))
        return type(self)(self.size, kept) if kept < self.size else type(self)(self.size, self.size)
