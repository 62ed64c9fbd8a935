"""Which parts of a ranker each step trains: layers left out, neurons cut to nested widths, other token rules."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from compressor.ranker.spec import TokenRule
from compressor.ranker.sub_network import SubNetwork

EachStep = Literal["one", "sandwich"]


@dataclass(frozen=True, kw_only=True)
class DrawnParts:
    """The parts of every step, drawn by seed and step alone: a resumed training, and each process, draws the same.

    Attributes:
        n_layers: the ranker's.
        seed: for the draw.
        layer_drop: the probability with which a step leaves a layer out (LayerDrop, arXiv 1909.11556). One always runs.
        widths: the neurons of every layer at each nested width, the widest first; empty for the full width alone.
        each_step: ``one`` width drawn; or ``sandwich``, the widest, the narrowest and one drawn between them
            (arXiv 1903.05134).
        token_rules: by layer, the rules of which one is drawn for each step, None for none; each layer's on its own.
    """

    n_layers: int
    seed: int
    layer_drop: float = 0.0
    widths: Sequence[Sequence[int]] = ()
    each_step: EachStep = "one"
    token_rules: Mapping[int, Sequence[TokenRule | None]] = field(default_factory=dict)

    def __call__(self, step: int) -> list[SubNetwork]:
        """Return the parts of a step, counted from 0, whose mean loss is its loss."""
        draw = random.Random(f"parts {self.seed} {step}")
        skipped = {layer for layer in range(self.n_layers) if draw.random() < self.layer_drop}
        if len(skipped) == self.n_layers:
            skipped.remove(draw.randrange(self.n_layers))
        chosen = self._widths(draw)
        rules = {layer: draw.choice(choices) for layer, choices in sorted(self.token_rules.items())}
        return [SubNetwork(skipped=frozenset(skipped), ffn_widths=widths, token_rules=rules) for widths in chosen]

    def _widths(self, draw: random.Random) -> Sequence[Sequence[int]]:
        if not self.widths:
            return [()]
        if self.each_step == "one":
            return [draw.choice(self.widths)]
        between = self.widths[1:-1]
        return [self.widths[0], *([draw.choice(between)] if between else []), self.widths[-1]]
