"""Parts of a ranker that are run, and trained, as if the rest had been cut away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class SubNetwork:
    """What of an encoder a forward pass runs.

    Attributes:
        skipped: layers that are left out: the state before one is the state behind it. So are their exits.
        ffn_widths: of each layer's neurons the first so many, at least one; all of them where it is empty.
    """

    skipped: frozenset[int] = frozenset()
    ffn_widths: Sequence[int] = ()

    def ffn_width(self, layer: int) -> int | None:
        """Return how many neurons of a layer are run; None for all."""
        return self.ffn_widths[layer] if self.ffn_widths else None


WHOLE = SubNetwork()


@contextmanager
def running(module: Encoder, part: SubNetwork) -> Iterator[None]:
    """Have a module run a part of itself within the block, and afterwards what it ran before."""
    before, module.part = module.part, part
    try:
        yield
    finally:
        module.part = before
