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


class MaskSettings(Record):
    """When and how fast units go.

    ``ramp``: the shares of the training at which the target begins to fall and at which it has reached the budget.
    ``learning_rate``: of scores, constant: without the warm-up and the decay of the weights' own.
    ``hidden``: whether residual dimensions are masked too. ``regrow``: none, or how.
    """

    ramp: tuple[ShareOfTraining, ShareOfTraining] = (0.1, 0.6)
    learning_rate: PositiveFloat = 0.1
    hidden: bool = False
    regrow: Regrowth | None = None

    @model_validator(mode="after")
    def _ramp_ascends(self) -> Self:
        if self.ramp[0] >= self.ramp[1]:
            raise ValueError(f"the ramp begins at {self.ramp[0]:g} and ends at {self.ramp[1]:g}: it has to begin first")
        return self


class TokenGateSettings(Record):
    """How thresholds of token rules learn.

    ``temperature``: how soft they are, in mean scores of a row. ``learning_rate``: theirs, constant.
    ``budget_weight``: of the squared distance between the share of tokens that is kept and the budget.
    """

    temperature: PositiveFloat = 0.1
    learning_rate: PositiveFloat = 0.01
    budget_weight: NonNegativeFloat = 10.0
