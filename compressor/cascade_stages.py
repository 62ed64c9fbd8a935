"""A cascade as data: behind which layers a list of candidates shrinks, and to how many. Read by shape and runtime."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from compressor.records import Record

Place = NonNegativeInt | Literal["embeddings"]


def depth_of(place: Place) -> int:
    """Return how many layers have run at a place: 0 behind the embeddings."""
    return 0 if place == "embeddings" else place + 1


class CascadeStage(Record):
    """Where candidates are dropped, and how many go on.

    ``behind``: a layer from 0, by the scores of its exit; or ``embeddings``, before all layers, by the similarity of
    the query's and the document's token embeddings.
    ``keep``: the share of the list, as it came in, that goes on.
    """

    behind: Place
    keep: float = Field(gt=0, le=1)


class Cascade(Record):
    """Stages in the order of depth. Every stage keeps ``keep_at_least`` candidates, or all where there are fewer.

    Literature: the Cascade Transformer (arXiv 2005.02534), and for the stage behind the embeddings similarity-based
    early exit (SEE, SIGIR 2025).
    """

    stages: tuple[CascadeStage, ...] = Field(min_length=1)
    keep_at_least: PositiveInt = 10

    @model_validator(mode="after")
    def _narrows(self) -> Self:
        depths = [depth_of(stage.behind) for stage in self.stages]
        if depths != sorted(set(depths)):
            shown = ", ".join(str(stage.behind) for stage in self.stages)
            raise ValueError(f"stages behind {shown}: they stand in the order of depth, each place once")
        shares = [stage.keep for stage in self.stages]
        if shares != sorted(shares, reverse=True):
            shown = ", ".join(f"{share:g}" for share in shares)
            raise ValueError(f"shares {shown}: each is one of the whole list, so none is above the one before it")
        return self

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The layers whose exits are read."""
        return tuple(stage.behind for stage in self.stages if stage.behind != "embeddings")

    def without_idle_stages(self) -> Self | None:
        """Return the cascade of the stages that drop something; None where all keep all."""
        stages = tuple(stage for stage in self.stages if stage.keep < 1)
        return self.changed(stages=stages) if stages else None

    def counts(self, n_candidates: int) -> list[int]:
        """Return how many of a list's candidates go on behind each stage: the share, rounded up."""
        # By decimal fractions: 0.07 of 100 are 7, and as floats a little more.
        shares = (math.ceil(Fraction(str(stage.keep)) * n_candidates) for stage in self.stages)
        return [min(n_candidates, max(self.keep_at_least, share)) for share in shares]


class ExportedCascade(Cascade):
    """A cascade in a ranker's folder.

    ``files``: one graph for the way to each stage, and one from the last stage to the head.
    """

    files: tuple[str, ...]

    @model_validator(mode="after")
    def _has_a_file_for_each_stretch(self) -> Self:
        if len(self.files) != len(self.stages) + 1:
            raise ValueError(f"{len(self.files)} files for {len(self.stages)} stages: one more than stages are needed")
        return self
