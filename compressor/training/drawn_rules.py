"""Which token rules training puts in the place of a ranker's own, so that it ranks well with any of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from compressor.ranker.spec import KeepShareRule, MergeRule, PoolRule, RankerSpec, TokenRule
from compressor.records import Record


class DrawnTokenRules(Record):
    """The numbers of which each step draws one for every token rule.

    ``strides``: of pools, 1 for none. ``shares``: of the document tokens that are kept, or left where
    tokens merge, 1 for all.
    """

    strides: tuple[Annotated[int, Field(ge=1, le=64)], ...] = ()
    shares: tuple[Annotated[float, Field(ge=0.001, le=1)], ...] = ()

    @model_validator(mode="after")
    def _there_is_a_choice(self) -> Self:
        if not self.strides and not self.shares:
            raise ValueError("name strides, or shares, of which to draw")
        for name in ("strides", "shares"):
            numbers = getattr(self, name)
            if len(set(numbers)) < len(numbers):
                raise ValueError(f"{name} has a number twice: each is drawn as often as the others")
            if len(numbers) == 1:
                raise ValueError(f"{name} has one number alone, of which nothing is drawn: name two or more")
        return self

    def by_layer(self, spec: RankerSpec) -> dict[int, Sequence[TokenRule | None]]:
        """Return what is drawn of behind each layer of a ranker whose rule has another number here, by its index."""
        found: dict[int, Sequence[TokenRule | None]] = {}
        for layer in spec.rule_layers:
            rule = spec.layers[layer].token_rule
            if isinstance(rule, PoolRule) and self.strides:
                found[layer] = [None if stride == 1 else rule.changed(stride=stride) for stride in self.strides]
            elif isinstance(rule, KeepShareRule | MergeRule) and self.shares:
                found[layer] = [None if share == 1 else rule.changed(share=share) for share in self.shares]
        return found
