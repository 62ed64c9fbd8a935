"""Attention as data: heads, which tokens see each other, positions that act inside attention."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from compressor.ranker.parts_spec import LinearSpec
from compressor.records import Record


class FullPattern(Record):
    """Every token sees every token."""

    kind: Literal["full"] = "full"


class WindowPattern(Record):
    """A token sees tokens at most ``reach`` positions away on either side."""

    kind: Literal["window"] = "window"
    reach: PositiveInt


class CausalPattern(Record):
    """A token sees itself and what stands before it."""

    kind: Literal["causal"] = "causal"


AttentionPattern = Annotated[FullPattern | WindowPattern | CausalPattern, Field(discriminator="kind")]


class RotarySpec(Record):
    """Rotary positions over the whole head width, halves rotated (not interleaved)."""

    kind: Literal["rotary"] = "rotary"
    base: PositiveFloat


class AttentionSpec(Record):
    """Multi-head attention; ``positions`` holds schemes that act inside attention (room for relative bias)."""

    heads: PositiveInt
    head_width: PositiveInt
    pattern: AttentionPattern = FullPattern()
    positions: RotarySpec | None = None
    query: LinearSpec
    key: LinearSpec
    value: LinearSpec
    output: LinearSpec

    @model_validator(mode="after")
    def _widths_agree(self) -> Self:
        width = self.heads * self.head_width
        for name in ("query", "key", "value"):
            if getattr(self, name).outputs != width:
                raise ValueError(f"{name} gives {getattr(self, name).outputs} values, heads × head_width is {width}")
        if self.output.inputs != width:
            raise ValueError(f"output takes {self.output.inputs} values, heads × head_width is {width}")
        if self.positions and self.head_width % 2:
            raise ValueError(f"rotary positions turn pairs of values, head_width {self.head_width} is odd")
        return self
