"""Layers as data: attention, feed-forward, norms, and what may stand behind a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import model_validator

from compressor.ranker.attention_spec import AttentionSpec
from compressor.ranker.ffn_spec import FeedForwardBlock, FeedForwardSpec
from compressor.ranker.head_spec import ClassifierHead
from compressor.ranker.parts_spec import FloatKind, LinearSpec, NormSpec, float_kind
from compressor.ranker.token_rule_spec import KeepRule, LearnedScorer, TokenRule, shows_tokens
from compressor.records import Record


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
    ffn: FeedForwardBlock | None
    ffn_norm: NormSpec | None
    token_rule: TokenRule | None = None
    exit: ClassifierHead | None = None

    @property
    def has_learned_scorer(self) -> bool:
        """Whether tokens are judged behind it by vectors of its own."""
        return isinstance(self.token_rule, KeepRule) and isinstance(self.token_rule.scorer, LearnedScorer)

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

    @property
    def states(self) -> FloatKind:
        """What all between the layer's linears is computed in: half precision where any linear has it, else fp32."""
        return next((kind for kind in self._float_kinds() if kind != "fp32"), "fp32")

    def _float_kinds(self) -> list[FloatKind]:
        parts = [part for block in (self.attention, self.ffn) if block for _, part in block]
        return [float_kind(part.precision) for part in parts if isinstance(part, LinearSpec)]

    @model_validator(mode="after")
    def _one_half_precision(self) -> Self:
        if {"fp16", "bf16"} <= set(self._float_kinds()):
            raise ValueError("fp16 and bf16 do not go together within a layer")
        if self.token_rule and self.states != "fp32":
            raise ValueError("a token rule judges tokens in fp32: the layer that it stands behind stays in fp32")
        return self

    @model_validator(mode="after")
    def _no_norm_is_read_by_nobody(self) -> Self:
        if self.norm_placement == "pre":
            for name in ("attention", "ffn"):
                if getattr(self, name) is None and getattr(self, f"{name}_norm") is not None:
                    raise ValueError(f"{name}_norm stands before {name}, which is absent: take it away too")
        return self


def check_token_rules(layers: Sequence[LayerSpec]) -> None:
    """Check that the layers of one ranker have token rules only where these can judge and where somebody reads on.

    Raises:
        ValueError: they do not.
    """
    if layers[-1].token_rule:
        raise ValueError(f"layers.{len(layers) - 1} is the last: no layer reads what a token rule would leave")
    below = None
    for index, layer in enumerate(layers):
        rule = layer.token_rule
        if rule and rule.reads_attention and not layer.attention:
            raise ValueError(f"layers.{index} has no attention, by which its token rule judges tokens")
        if rule and rule.reads_attention and shows_tokens(below):
            raise ValueError(
                f"layers.{index} has windows that see tokens and not each other, by which its token rule would judge"
                " them: let it stand behind a later layer"
            )
        below = rule
