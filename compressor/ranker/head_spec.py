"""Heads as data: what becomes of a pooled state."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compressor.ranker.parts_spec import Activation, LinearSpec, NormSpec
from compressor.records import Record


class ClassifierHead(Record):
    """One logit from a pooled state: dense, activation, norm (each optional), then the output linear."""

    kind: Literal["classifier"] = "classifier"
    pool: Literal["first", "mean"]
    dense: LinearSpec | None = None
    activation: Activation | None = None
    norm: NormSpec | None = None
    output: LinearSpec

    @model_validator(mode="after")
    def _one_logit(self) -> Self:
        if self.output.outputs != 1:
            raise ValueError(f"a ranker's head gives one logit, not {self.output.outputs}")
        if self.dense and self.dense.outputs != self.output.inputs:
            raise ValueError(f"dense gives {self.dense.outputs} values, output takes {self.output.inputs}")
        return self


class SimilarityHead(Record):
    """A bi-encoder's head: a pooled unit vector per text; the score of a pair is the cosine."""

    kind: Literal["similarity"] = "similarity"
    pool: Literal["first", "mean"]


Head = Annotated[ClassifierHead | SimilarityHead, Field(discriminator="kind")]
