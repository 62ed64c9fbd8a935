"""Settings of methods that put zeros into matrices. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from compressor.records import Record


class FisherSettings(Record):
    """How the curvature of scores is estimated, for ``obert`` and ``fisher_diagonal``.

    ``block_size``: so many neighbors in a matrix are taken to matter together (50 in oBERT); what they do to others is
    left out. Memory grows with it, time too.
    ``damping``: added to the diagonal, as a share of its mean in each matrix: small values trust few candidates far.
    ``temperature``: of the listwise softmax that weighs candidates; none weighs all alike.
    ``recomputations``: in so many steps the share of zeros is reached, each with a curvature measured anew.
    """

    block_size: Annotated[int, Field(ge=1, le=512)] = 48
    damping: PositiveFloat = 0.01
    temperature: PositiveFloat | None = None
    recomputations: PositiveInt = 1
