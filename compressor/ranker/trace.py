"""What a forward pass shows of its inside: states, relations between tokens, scores of exits."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from compressor.ranker.reductions import Reduction
from compressor.ranker.tokens import TokenLayout

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder

QueryKeyValue = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One forward pass, layer by layer. States and relations are packed: padding is nowhere in them.

    Attributes:
        logits: the head's result, ``[B, 1]``, or ``[B, width]`` for a bi-encoder.
        states: ``[T, width]`` each: the embeddings' output, then what comes out of each layer; ``[B, width]`` of the
            last where only first tokens were computed there.
        relations: queries, keys and values of the layers that were asked for, ``[T, heads * head width]`` each.
        exits: logits ``[B, 1]`` by layer, for layers with an exit.
        skipped: layers that were left out: behind them stands the state before them, as a rule left it, and no
            relations and no exit.
        layouts: where the tokens of each state stand; relations of a layer stand where the state behind it does.
        reductions: what token rules made of the states behind their layers, by layer.
    """

    logits: Tensor
    states: list[Tensor]
    layouts: list[TokenLayout]
    reductions: dict[int, Reduction] = field(default_factory=dict)
    relations: dict[int, QueryKeyValue] = field(default_factory=dict)
    exits: dict[int, Tensor] = field(default_factory=dict)
    skipped: frozenset[int] = frozenset()

    def left_of(self, values: Tensor, state: int) -> Tensor:
        """Return what of values of all tokens, ``[T, width]``, is left at a state of this pass, as its rules left it.

        So another ranker that lets no token go can be compared with this one: of its tokens those that stayed here are
        taken, and where windows were averaged here, its are.
        """
        for layer, reduction in sorted(self.reductions.items(), key=lambda item: item[0]):
            if layer < state - 1:  # state 0 is the embeddings, and a rule acts behind its layer's own state
                values = reduction.states(values)
        return values


@contextmanager
def watched_relations(module: Encoder, layers: Collection[int]) -> Iterator[dict[int, QueryKeyValue]]:
    """Yield a dict that holds queries, keys and values of some layers once the forward pass has run in the block."""
    parts: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}
    hooks = []
    for layer in layers:
        attention = module.layers[layer].attention
        for name in ("query", "key", "value"):

            def keep(
                _: object, __: object, result: Tensor, *, found: dict[str, Tensor] = parts[layer], name: str = name
            ) -> None:
                found[name] = result

            hooks.append(getattr(attention, name).register_forward_hook(keep))
    relations: dict[int, QueryKeyValue] = {}
    try:
        yield relations
        relations |= {layer: (found["query"], found["key"], found["value"]) for layer, found in parts.items()}
    finally:
        for hook in hooks:
            hook.remove()
