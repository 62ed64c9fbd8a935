"""Token reduction as data: which of a row's document tokens go on behind a layer, and what judges them.

Only tokens of the document can go. The document is all that stands behind a row's first separator and is no separator
itself; the first token, the query and all separators stay. A text that spells the separator out (``[SEP]``) is read as
the tokenizer reads it.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from compressor.records import Record

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


TokenScorer = Annotated[AttentionScorer | PageRankScorer, Field(discriminator="kind")]


class PoolRule(Record):
    """Windows of ``stride`` document tokens become one each, their mean, at the position of the first of them.

    Windows start with the document, so that a row's do not depend on its neighbors; the last may be shorter. A
    separator within the document ends a window, too.
    """

    reads_attention: ClassVar[bool] = False

    kind: Literal["pool"] = "pool"
    stride: Annotated[int, Field(ge=2, le=64)]

    def n_left(self, n_tokens: int) -> int:
        """Return how many tokens are left of a document of so many without a separator within."""
        return -(-n_tokens // self.stride)


class KeepShareRule(Record):
    """Of n document tokens that reach the rule the best ``ceil(share * n)`` stay, of equal ones the first."""

    kind: Literal["keep_share"] = "keep_share"
    share: Annotated[float, Field(ge=0.001, lt=1)]
    scorer: TokenScorer = AttentionScorer()

    @property
    def reads_attention(self) -> bool:
        """Whether the layer must have an attention."""
        return self.scorer.reads_attention

    @property
    def fraction(self) -> tuple[int, int]:
        """The share as it is written, in whole numbers: 0.7 is 7 of 10, where the nearest float is a bit more."""
        exact = Fraction(str(self.share)).limit_denominator(_MOST_PARTS)
        return exact.numerator, exact.denominator

    def n_left(self, n_tokens: int) -> int:
        """Return how many of a document's tokens stay."""
        return math.ceil(Fraction(*self.fraction) * n_tokens)


TokenRule = Annotated[PoolRule | KeepShareRule, Field(discriminator="kind")]
