"""What a recipe may say about each score loss: its weight and its options. Plain records, no torch.

The functions stand in `ranking_losses.RANKING_LOSSES` under the same names; each takes its record's fields, ``weight``
apart, as keywords.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from compressor.records import Record

TargetKind = Literal["teacher", "labels"]
LambdaScheme = Literal["ndcg_loss1", "ndcg_loss2", "ndcg_loss2pp", "lambdarank"]


class LossOptions(Record):
    """``weight``: the loss's factor in a mixture.

    Class attributes: ``target``, whether it learns from teacher scores or from labels; ``least``, how many items a list
    needs to teach anything: pair- and listwise losses are 0 on shorter lists.
    """

    target: ClassVar[TargetKind] = "teacher"
    least: ClassVar[int] = 2

    weight: PositiveFloat = 1.0

    def keywords(self) -> dict[str, Any]:
        """Return the options as keywords of the loss function."""
        return {name: value for name, value in self if name != "weight"}


class LabelLossOptions(LossOptions):
    """A loss on labels."""

    target: ClassVar[TargetKind] = "labels"


class PointwiseMSE(LossOptions):
    """Squared error of each raw logit."""

    least: ClassVar[int] = 1


class CenteredMSE(LossOptions):
    """Squared error of scores less their list's mean."""


class MarginMSE(LossOptions):
    """Squared error of score margins. ``pairs``: all of a list, or its first item (a positive) against the rest."""

    pairs: Literal["all", "first"] = "all"


class ListwiseKL(LossOptions):
    """Divergence of softmax distributions. ``temperature``: higher ones look further down the list."""

    temperature: PositiveFloat = 1.0


class RankNet(LossOptions):
    """Logistic loss of each pair in the teacher's order. ``sigma``: the slope."""

    sigma: PositiveFloat = 1.0


class LambdaLoss(LossOptions):
    """Pairs weighted by what their swap would cost in nDCG; relevance is made of the teacher's ranks.

    ``scheme``: the weights. ``relevance``: 1/rank, or falling linearly from ``top_grade`` to 0.
    ``k``: count only pairs that reach into the student's top k. ``mu``: the share of ndcg_loss2 in ndcg_loss2pp.
    """

    scheme: LambdaScheme = "ndcg_loss2pp"
    relevance: Literal["reciprocal_rank", "linear"] = "reciprocal_rank"
    top_grade: PositiveFloat = 1.0
    k: PositiveInt | None = None
    sigma: PositiveFloat = 1.0
    mu: NonNegativeFloat = 10.0


class ADRMSE(LossOptions):
    """Squared error of smooth ranks, top ranks weighing most. ``sigma``: higher ones count ranks more sharply."""

    sigma: PositiveFloat = 1.0


class RankDistil(LossOptions):
    """Scores of the teacher's top ``k`` matched, others pushed ``margin`` below them with factor ``gamma``."""

    k: PositiveInt = 10
    gamma: NonNegativeFloat = 1.0
    margin: NonNegativeFloat = 0.0


class KeepTop(LossOptions):
    """The teacher's best stay in what a cascade keeps of a list. ``top``, ``keep``: as shares of the list, the best and
    what is kept; ``margin``: by how much the best beat what is cut."""

    top: float = Field(default=0.1, gt=0, le=1)
    keep: float = Field(default=0.3, gt=0, le=1)
    margin: NonNegativeFloat = 1.0


class ListMLE(LossOptions):
    """Likelihood of the teacher's order, one choice after another."""


class PListMLE(LossOptions):
    """ListMLE with early choices weighing most."""


class SoftmaxLabels(LabelLossOptions):
    """RankT5's softmax over the list.

    ``positives``: ``share`` one distribution, or stand ``separate`` against the negatives.
    ``poly1``: the weight of PolyLoss's first term, 0 for plain cross entropy.
    """

    positives: Literal["share", "separate"] = "share"
    poly1: NonNegativeFloat = 0.0


class BCELabels(LabelLossOptions):
    """Pointwise binary cross entropy. ``relevant_from``: the label that counts as 1; lower ones count in proportion."""

    least: ClassVar[int] = 1

    relevant_from: PositiveFloat = 1.0


class GBCELabels(LabelLossOptions):
    """Binary cross entropy without the overconfidence that sampled negatives breed.

    ``calibration``: 0 is plain, 1 fully corrected. ``pool``: of how many candidates the negatives were sampled.
    """

    calibration: float = Field(default=0.75, ge=0, le=1)
    pool: PositiveInt = 1000
    relevant_from: PositiveFloat = 1.0


class RankNetLabels(LabelLossOptions):
    """Logistic loss of each pair of unequal labels. ``sigma``: the slope."""

    sigma: PositiveFloat = 1.0


class HingeLabels(LabelLossOptions):
    """Each pair of unequal labels at least ``margin`` apart."""

    margin: PositiveFloat = 1.0


class LambdaLabels(LabelLossOptions):
    """LambdaLoss with labels as relevance grades. Options as in ``lambda_loss``."""

    scheme: LambdaScheme = "ndcg_loss2pp"
    k: PositiveInt | None = None
    sigma: PositiveFloat = 1.0
    mu: NonNegativeFloat = 10.0


class ListMLELabels(LabelLossOptions):
    """Likelihood of the labels' order."""


class PListMLELabels(LabelLossOptions):
    """ListMLE on labels with early choices weighing most."""


LOSS_OPTIONS: Mapping[str, type[LossOptions]] = MappingProxyType(
    {
        "mse": PointwiseMSE,
        "centered_mse": CenteredMSE,
        "margin_mse": MarginMSE,
        "listwise_kl": ListwiseKL,
        "ranknet": RankNet,
        "lambda_loss": LambdaLoss,
        "adr_mse": ADRMSE,
        "rank_distil": RankDistil,
        "keep_top": KeepTop,
        "list_mle": ListMLE,
        "plist_mle": PListMLE,
        "softmax_labels": SoftmaxLabels,
        "bce_labels": BCELabels,
        "gbce_labels": GBCELabels,
        "ranknet_labels": RankNetLabels,
        "hinge_labels": HingeLabels,
        "lambda_labels": LambdaLabels,
        "list_mle_labels": ListMLELabels,
        "plist_mle_labels": PListMLELabels,
    }
)
