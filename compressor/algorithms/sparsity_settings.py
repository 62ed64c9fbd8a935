"""Settings of methods that put zeros into matrices. No torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from compressor.records import Record

Share = Annotated[float, Field(ge=0, le=1)]


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


class Gradual(Record):
    """How zeros come while a ranker is distilled.

    ``start``: the share of zeros after the first pruning, from where it climbs to the target like a cubic (Zhu and
    Gupta, arXiv 1710.01878). ``ramp``: the shares of training at which pruning begins and ends; what follows is
    recovery. ``prunings``: how many; ``movement`` prunes at every step instead, from nothing.
    ``rewind``: begin the learning rate's schedule anew behind each pruning.
    ``regularize``: until the last pruning, this much of the mean size of a weight is added to the loss, or of the mean
    norm of a block that goes as a whole, so that there is less to lose.
    """

    start: Annotated[float, Field(ge=0, lt=1)] = 0.3
    ramp: tuple[Share, Share] = (0.1, 0.7)
    prunings: PositiveInt = 8
    rewind: bool = True
    regularize: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _ramp_ascends(self) -> Self:
        if self.ramp[0] >= self.ramp[1]:
            raise ValueError(f"the ramp begins at {self.ramp[0]:g} and ends at {self.ramp[1]:g}: it has to begin first")
        return self

    def progress(self, step: int, n_steps: int) -> float:
        """Return how much of the ramp is over after so many steps, from 0 to 1."""
        begin, end = (share * n_steps for share in self.ramp)
        return min(1.0, max(0.0, (step - begin) / max(end - begin, 1e-9)))

    def shares(self, sparsity: float, n_steps: int) -> dict[int, float]:
        """Return the share of zeros behind each pruning by the step after which it comes, counted from 1."""
        begin, end = self.ramp
        found = {}
        for number in range(self.prunings):
            part = number / (self.prunings - 1) if self.prunings > 1 else 1.0
            step = max(1, round(n_steps * (begin + (end - begin) * part)))
            found[step] = cubic(min(self.start, sparsity), sparsity, part)
        return found


def cubic(start: float, end: float, part: float) -> float:
    """Return where between two shares a cubic is that climbs fast first and levels off."""
    return end + (start - end) * (1 - part) ** 3


class MovementSettings(Record):
    """How scores decide, for ``movement``.

    ``threshold``: ``hard``, the best scores stay, as many as the share of the step allows; ``soft``, those whose
    sigmoid lies above a limit that climbs to ``limit``, while ``penalty`` times the mean of all sigmoids is added to
    the loss. Where a soft threshold leaves more than ``sparsity`` allows, the best of them stay in the end.
    ``learning_rate``: of the scores, constant.
    """

    threshold: Literal["hard", "soft"] = "hard"
    learning_rate: PositiveFloat = 0.01
    limit: Annotated[float, Field(gt=0, lt=1)] = 0.1
    penalty: NonNegativeFloat = 400.0
