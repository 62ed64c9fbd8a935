"""Settings of masks that are learned. No torch."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from compressor.records import Record

ShareOfTraining = Annotated[float, Field(ge=0, le=1)]


class Regrowth(Record):
    """How many dropped units come back, and as many of the weakest go instead, while a ranker is cut.

    ``every``: steps between. ``share``: of the dropped units, or of those that stay where these are fewer; at the
    start, from where it falls to nothing.
    """

    every: PositiveInt = 50
    share: Annotated[float, Field(gt=0, le=1)] = 0.5


class RampSettings(Record):
    """When and how fast a cost falls to its budget.

    ``ramp``: the shares of the training at which the target begins to fall and at which it has reached the budget.
    ``learning_rate``: of scores, constant: without the warm-up and the decay of the weights' own.
    """

    ramp: tuple[ShareOfTraining, ShareOfTraining] = (0.1, 0.6)
    learning_rate: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _ramp_ascends(self) -> Self:
        if self.ramp[0] >= self.ramp[1]:
            raise ValueError(f"the ramp begins at {self.ramp[0]:g} and ends at {self.ramp[1]:g}: it has to begin first")
        return self

    def progress(self, step: int, n_steps: int) -> float:
        """Return how much of the way to the budget is over at a step, from 0 to 1."""
        begin, end = (share * n_steps for share in self.ramp)
        return min(1.0, max(0.0, (step - begin) / max(end - begin, 1e-9)))


class MaskSettings(RampSettings):
    """When and how fast units go: ``ramp`` and ``learning_rate``, and

    ``hidden``: whether residual dimensions are masked too. ``regrow``: none, or how.
    """

    hidden: bool = False
    regrow: Regrowth | None = None


class TokenGateSettings(Record):
    """How thresholds of token rules learn.

    ``temperature``: how soft they are, in mean scores of a row. ``learning_rate``: theirs, constant.
    ``budget_weight``: of the squared distance between the share of tokens that is kept and the budget.
    """

    temperature: PositiveFloat = 0.1
    learning_rate: PositiveFloat = 0.01
    budget_weight: NonNegativeFloat = 10.0


class ShareGateSettings(RampSettings):
    """How shares of token rules learn: ``ramp`` and ``learning_rate``, and

    ``bins``: into how many ranges of equal size the ranks of a row's document tokens fall, each with a mask of its own.
    """

    bins: Annotated[int, Field(ge=2, le=100)] = 20


class TokenOrderSettings(Record):
    """How early layers learn the order in which the last layer's attention goes to document tokens.

    ``weight``: of the loss at the start; it falls in a straight line and is 0 once the budget is reached. ``top``: of
    each row's tokens, how many, the best first, are put in order.
    """

    weight: NonNegativeFloat = 0.01
    top: Annotated[int, Field(ge=2, le=512)] = 20


class TokenScorerSettings(Record):
    """How learned scorers of token rules learn while a ranker is trained.

    ``weight``: of the squared errors of scores and of their differences, as heads tell them from the tokens that a
    scorer picks. ``hidden``: the width of heads; by default the ranker's. ``learning_rate``: theirs, constant; scorers
    learn as fast as the ranker.
    """

    weight: PositiveFloat = 0.05
    hidden: PositiveInt | None = None
    learning_rate: PositiveFloat = 0.001
