"""Feed-forwards as data: two linears around an activation, with or without a gate, or one linear map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Discriminator, Tag, model_validator

from compressor.ranker.parts_spec import Activation, LinearSpec
from compressor.records import Record


class FeedForwardSpec(Record):
    """``down(act(up(x)))``, or with a gate ``down(act(gate(x)) * up(x))``."""

    activation: Activation
    up: LinearSpec
    gate: LinearSpec | None = None
    down: LinearSpec

    @property
    def width(self) -> int:
        return self.up.outputs

    @model_validator(mode="after")
    def _widths_agree(self) -> Self:
        if self.down.inputs != self.width or (self.gate and self.gate.outputs != self.width):
            raise ValueError(f"up, gate and down disagree about the width ({self.width})")
        return self


class LinearMapSpec(Record):
    """``down(x)``: one linear map in the place of a feed-forward, without neurons of its own."""

    down: LinearSpec


def _kind_of_ffn(value: Any) -> str:
    is_map = set(value) == {"down"} if isinstance(value, Mapping) else isinstance(value, LinearMapSpec)
    return "linear_map" if is_map else "feed_forward"


# Told apart by what they have: specs that were stored before there were linear maps stay as they are.
FeedForwardBlock = Annotated[
    Annotated[FeedForwardSpec, Tag("feed_forward")] | Annotated[LinearMapSpec, Tag("linear_map")],
    Discriminator(_kind_of_ffn),
]
