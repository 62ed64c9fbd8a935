"""Token reduction as data: which of a row's document tokens go on behind a layer, and what judges them.

Only tokens of the document can go. The document is all that stands behind a row's first separator and is no separator
itself; the first token, the query and all separators stay. A text that spells the separator out (``[SEP]``) is read as
the tokenizer reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from compressor.records import Record

Count = TypeVar("Count", int, Any)

LEAST_MERGED_SHARE = 0.5  # half of the tokens merges into the other half
_MOST_PARTS = 10_000  # of a share's denominator: int64 holds its product with any row's length


class AttentionScorer(Record):
    """A token counts by the attention that it gets from the first token and the query's, on average over heads.

    These are the queries and keys of the layer that the rule stands behind, as the layer itself computed them, and the
    shares are over all real tokens of the row, whatever the layer's own window is.
    """

    reads_attention: ClassVar[bool] = True

    kind: Literal["attention"] = "attention"


class PageRankScorer(Record):
    """A token counts by its PageRank over the layer's attention, restarted at the first token and the query's.

    ``s <- (1 - restart) P^T s + restart e``, ``steps`` times from ``s = e``: P is the mean over heads of the attention
    of all tokens, shares over all real tokens of the row, and e is spread evenly over the tokens named.
    """

    reads_attention: ClassVar[bool] = True

    kind: Literal["pagerank"] = "pagerank"
    restart: Annotated[float, Field(gt=0, lt=1)] = 0.15
    steps: PositiveInt = 4


class LearnedScorer(Record):
    """A token counts by a product of its own state behind the layer with what was learned, and with what asks.

    With z a token's state less its mean, over its deviation, and q the mean z of the first token and the query's:
    ``(direction + match * q) . z``; both vectors are weights of the ranker. No attention is looked at, so that it may
    stay fused (after Token Cropr, arXiv 2412.00965, whose learned queries do not look at what asks).
    """

    reads_attention: ClassVar[bool] = False

    kind: Literal["learned"] = "learned"


AttentionShares = Annotated[AttentionScorer | PageRankScorer, Field(discriminator="kind")]
TokenScorer = Annotated[AttentionScorer | PageRankScorer | LearnedScorer, Field(discriminator="kind")]


class PoolRule(Record):
    """Windows of ``stride`` document tokens become one each, their mean, at the position of the first of them.

    Windows start with the document, so that a row's do not depend on its neighbors; the last may be shorter. A
    separator within the document ends a window, too.

    ``queries_only``: in the next layer's attention windows ask, and see the tokens that they are made of, not windows:
    keys and values are made of all of them (Funnel-Transformer, arXiv 2006.03236, "pool query only").
    """

    reads_attention: ClassVar[bool] = False

    kind: Literal["pool"] = "pool"
    stride: Annotated[int, Field(ge=2, le=64)]
    queries_only: bool = False

    def n_left(self, n_tokens: int) -> int:
        """Return how many tokens are left of a document of so many without a separator within."""
        return -(-n_tokens // self.stride)

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what rules did not have from the first, so that stored rankers keep their fingerprints."""
        written: dict[str, Any] = write(self)
        return written if self.queries_only else {name: written[name] for name in written if name != "queries_only"}


class ShareRule(Record):
    """A rule that leaves ``ceil(share * n)`` of n document tokens, or does so in the mean."""

    kind: Literal["keep_share", "keep_threshold", "merge"]
    share: Annotated[float, Field(ge=0.001, le=1)]

    @property
    def fraction(self) -> tuple[int, int]:
        """The share as it is written, in whole numbers: 0.7 is 7 of 10, where the nearest float is a bit more."""
        exact = Fraction(str(self.share)).limit_denominator(_MOST_PARTS)
        return exact.numerator, exact.denominator

    def n_left(self, n_tokens: Count) -> Count:
        """Return how many of a document's tokens stay, by the share; an array for one of whole numbers."""
        part, whole = self.fraction
        return -(-part * n_tokens // whole)


class KeepRule(ShareRule):
    """A choice among document tokens by their scores."""

    kind: Literal["keep_share", "keep_threshold"]
    scorer: TokenScorer = AttentionScorer()

    @property
    def reads_attention(self) -> bool:
        """Whether the layer must have an attention."""
        return self.scorer.reads_attention


class KeepShareRule(KeepRule):
    """Of n document tokens that reach the rule the best ``ceil(share * n)`` stay, of equal ones the first."""

    kind: Literal["keep_share"] = "keep_share"
    share: Annotated[float, Field(ge=0.001, lt=1)]


class KeepThresholdRule(KeepRule):
    """Document tokens stay whose score is ``threshold`` times the mean one of their row or more; the best always does.

    Scores are shares of all n real tokens of the row that reach the rule, so their mean is 1 / n, and a threshold means
    the same in short rows and in long ones (Learned Token Pruning, arXiv 2107.00910, whose own thresholds do not).
    ``share``: of document tokens, what stayed where the threshold was set; costs are told by it.
    """

    kind: Literal["keep_threshold"] = "keep_threshold"
    threshold: NonNegativeFloat
    scorer: AttentionShares = AttentionScorer()


class MergeRule(ShareRule):
    """Of n document tokens those that resemble many others merge into groups, until ``ceil(share * n)`` are left.

    A token's energy is the mean over its row's other document tokens of ``exp(-((1 - c) / (1 - margin))^2 / 2)``, c the
    cosine of the two tokens' keys: those of the layer that the rule stands behind, before any rotation, summed over
    heads. Of the 2r tokens of highest energy each of the first r is merged into the most similar of the other r, of
    equal ones the first. What has merged is the mean of its tokens, each of which counts once, and stands where that
    other token stood (PiToMe, arXiv 2405.16148, in the form that its authors have for text).

    ``keep_query_terms``: tokens whose id occurs in the query do not merge: they are evidence of an exact match. Where
    fewer than 2r others are left, all of these merge in pairs, and more tokens stay than the share says. A window, or
    what has merged before, goes by the id of the token where it stands.
    """

    reads_attention: ClassVar[bool] = True

    kind: Literal["merge"] = "merge"
    share: Annotated[float, Field(ge=LEAST_MERGED_SHARE, lt=1)]
    margin: Annotated[float, Field(ge=0, le=0.99)]
    keep_query_terms: bool = True


TokenRule = Annotated[PoolRule | KeepShareRule | KeepThresholdRule | MergeRule, Field(discriminator="kind")]


def shows_tokens(rule: TokenRule | None) -> bool:
    """Return whether the next layer's attention sees the tokens as they were before the rule."""
    return isinstance(rule, PoolRule) and rule.queries_only


def ask_for_query_terms(rules: Iterable[TokenRule | None]) -> bool:
    """Return whether any of these rules asks which tokens of the document occur in the query."""
    return any(isinstance(rule, MergeRule) and rule.keep_query_terms for rule in rules)
