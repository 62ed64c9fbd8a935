"""`calibrate_scores`: scores on the teacher's scale, so that thresholds set for it still mean the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import FiniteFloat, PositiveFloat, PositiveInt, model_validator

from compressor.errors import RunError
from compressor.passes.contract import Need, Pass, Supply
from compressor.passes.refusals import refuse_bi_encoder
from compressor.ranker.spec import ClassifierHead, RankerSpec
from compressor.records import Record
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.data import RankingData
    from compressor.data.ranking_data import Pair
    from compressor.ranker.ranker import Ranker


class Scale(Record):
    """``mean`` and standard ``deviation`` of raw logits over the calibration pairs."""

    mean: FiniteFloat
    deviation: PositiveFloat


@register("calibrate_scores")
class CalibrateScores(Pass):
    """Bring raw logits to the teacher's scale by one factor and one constant, which go into the scoring head.

    Nothing is reordered, so no ranking measure moves, nor does any time: it is for whoever compares scores with a
    threshold. Best behind all that changes scores; a quantized ranker has its head in fp32, so behind `quantize`, too.

    ``to``: ``teacher``, or ``{mean: M, deviation: S}`` of another ranker whose thresholds are in use.
    ``fit``: ``moments``, mean and standard deviation become those, so that about as many candidates pass a threshold as
    did; ``least_squares``, scores come nearest to the teacher's on the mean, and are drawn together by what the ranker
    does not know; ``shift``, the mean alone; ``none``.
    ``n_pairs``: calibration pairs, which teacher and ranker both score.

    Heads of exits keep their scale: calibrate behind `cut_at_exit`.
    """

    to: Literal["teacher"] | Scale = "teacher"
    fit: Literal["moments", "least_squares", "shift", "none"] = "moments"
    n_pairs: PositiveInt = 1024

    @model_validator(mode="after")
    def _has_scores_to_come_near(self) -> Self:
        if self.fit == "least_squares" and isinstance(self.to, Scale):
            raise ValueError("least_squares needs scores to come near, and a mean and deviation are none: fit: moments")
        return self

    def needs(self) -> frozenset[Need]:
        if self.fit == "none":
            return frozenset()
        return frozenset({"calibration", "teacher"} if self.to == "teacher" else {"calibration"})

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_bi_encoder(spec)
        if self.fit == "none":
            return spec
        head = spec.head
        assert isinstance(head, ClassifierHead)  # noqa: S101  # a bi-encoder was refused
        return spec.changed(head=head.changed(output=head.output.changed(bias=True)))

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self.fit == "none":
            return ranker.changed()
        import torch

        data = supply.data("calibration")
        pairs = data.sample_pairs(self.n_pairs, supply.seed)
        own = ranker.score(data.texts(pairs)).astype(np.float64)
        factor, constant = self._line(own, data, pairs, supply)
        supply.note("factor", round(factor, 6))
        supply.note("constant", round(constant, 6))
        weights = dict(ranker.weights)
        scaled = "head.output.weight" if "head.output.weight" in weights else "head.output.up"
        weights[scaled] = weights[scaled] * factor
        weights["head.output.bias"] = weights.get("head.output.bias", torch.zeros(1)) * factor + constant
        return ranker.changed(spec=self.plan(ranker.spec), weights=weights)

    def _line(self, own: np.ndarray, data: RankingData, pairs: list[Pair], supply: Supply) -> tuple[float, float]:
        """Return factor and constant.

        Raises:
            RunError: no factor above zero brings the scores near.
        """
        covariance = None
        if isinstance(self.to, Scale):
            mean, deviation = self.to.mean, self.to.deviation
        else:
            wanted = _teacher_scores(data, pairs, supply)
            mean, deviation = float(wanted.mean()), float(wanted.std())
            covariance = float(((own - own.mean()) * (wanted - mean)).mean())
        spread = float(own.std())
        if self.fit == "shift":
            return 1.0, mean - float(own.mean())
        if not spread or (covariance is not None and covariance <= 0):
            found = "do not rise with the teacher's" if spread else "are all the same"
            raise RunError(
                f"{self.verb}: on {len(own):,} calibration pairs the ranker's scores {found}: train it first, or set "
                "fit: shift"
            )
        factor = deviation / spread if self.fit == "moments" or covariance is None else covariance / spread**2
        return factor, mean - factor * float(own.mean())


def _teacher_scores(data: RankingData, pairs: list[Pair], supply: Supply) -> np.ndarray:
    from compressor.training.labelling import teacher_scores
    from compressor.training.teachers import RankerTeacher

    return teacher_scores([RankerTeacher()], data, pairs, own=supply.teacher).values.astype(np.float64)
