"""Parts of a ranker that are run, and trained, as if the rest had been cut away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compressor.ranker.spec import TokenRule

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class SubNetwork:
    """What of an encoder a forward pass runs.

    Attributes:
        skipped: layers that are left out: the state before one is the state behind it. So are their exits and rules.
        ffn_widths: of each layer's neurons the first so many, at least one; all of them where it is empty.
        token_rules: by layer, rules of the same kind as those of the spec that stand in for them; None for none.
    """

    skipped: frozenset[int] = frozenset()
    ffn_widths: Sequence[int] = ()
    token_rules: Mapping[int, TokenRule | None] = field(default_factory=dict)

    def ffn_width(self, layer: int) -> int | None:
        """Return how many neurons of a layer are run; None for all."""
        return self.ffn_widths[layer] if self.ffn_widths else None

    def token_rule(self, layer: int, own: TokenRule | None) -> TokenRule | None:
        """Return the rule that acts behind a layer, whose own one is given; None behind a layer that is left out."""
        return None if layer in self.skipped else self.token_rules.get(layer, own)


WHOLE = SubNetwork()


@contextmanager
def running(module: Encoder, part: SubNetwork) -> Iterator[None]:
    """Have a module run a part of itself within the block, and afterwards what it ran before."""
    before, module.part = module.part, part
    try:
        yield
    finally:
        module.part = before
