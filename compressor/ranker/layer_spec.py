"""Layers as data: attention, feed-forward, norms, and what may stand behind a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Tag, model_validator

from compressor.ranker.attention_spec import AttentionSpec
from compressor.ranker.head_spec import ClassifierHead
from compressor.ranker.parts_spec import Activation, LinearSpec, NormSpec
from compressor.ranker.token_rule_spec import TokenRule
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
_FeedForward = Annotated[
    Annotated[FeedForwardSpec, Tag("feed_forward")] | Annotated[LinearMapSpec, Tag("linear_map")],
    Discriminator(_kind_of_ffn),
]


class LayerSpec(Record):
    """One encoder layer. A norm that is absent is the identity (ModernBERT's first attention norm).

    ``attention`` or ``ffn``, or both, may be absent: such a block adds nothing to the residual stream. Its norm stays
    where it stands behind the block (post), and goes where it stands before it (pre), as nobody reads it there.
    In the feed-forward's place may stand a linear map, with the residual and the norm that a feed-forward has.
    ``exit``: a head that scores from this layer's states as the ranker's head does from the last layer's, through the
    same final norm. Where the spec's own scores are asked for it is not computed.
    ``token_rule``: which tokens go on to the next layer; an exit reads the states before it.
    """

    norm_placement: Literal["post", "pre"]
    attention: AttentionSpec | None
    attention_norm: NormSpec | None
    ffn: _FeedForward | None
    ffn_norm: NormSpec | None
    token_rule: TokenRule | None = None
    exit: ClassifierHead | None = None

    @property
    def heads(self) -> int:
        """Attention heads; 0 without attention."""
        return self.attention.heads if self.attention else 0

    @property
    def head_width(self) -> int:
        """The width of a head; 1 without attention, of which nothing is counted then."""
        return self.attention.head_width if self.attention else 1

    @property
    def ffn_width(self) -> int:
        """Feed-forward neurons; 0 without a feed-forward, and of a linear map, which has none."""
        return self.ffn.width if isinstance(self.ffn, FeedForwardSpec) else 0

    @model_validator(mode="after")
    def _no_norm_is_read_by_nobody(self) -> Self:
        if self.norm_placement == "pre":
            for name in ("attention", "ffn"):
                if getattr(self, name) is None and getattr(self, f"{name}_norm") is not None:
                    raise ValueError(f"{name}_norm stands before {name}, which is absent: take it away too")
        return self
