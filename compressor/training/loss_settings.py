"""What a recipe says about the objective of a training pass: which losses, with which weights and options. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from compressor.algorithms.loss_options import (
    ADRMSE,
    BCELabels,
    CenteredMSE,
    GBCELabels,
    HingeLabels,
    KeepTop,
    LambdaLabels,
    LambdaLoss,
    ListMLE,
    ListMLELabels,
    ListwiseKL,
    LossOptions,
    MarginMSE,
    PListMLE,
    PListMLELabels,
    PointwiseMSE,
    RankDistil,
    RankNet,
    RankNetLabels,
    SoftmaxLabels,
)
from compressor.records import Record


def _weighted(value: Any) -> Any:
    """Read a bare number as a weight, and nothing behind a name as weight 1."""
    if value is None:
        return {}
    return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


_SHORT = BeforeValidator(_weighted)


class Mixture(Record):
    """Losses by name; those that are not named are left out. ``mse: 0.5`` is short for ``mse: {weight: 0.5}``."""

    @model_serializer(mode="wrap")
    def _named_only(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}

    def __bool__(self) -> bool:
        return any(options is not None for _, options in self)


class ScoreMixture(Mixture):
    """Losses on scores."""

    def terms(self) -> Iterator[tuple[str, LossOptions]]:
        """Yield the name and the options of each loss."""
        for name, options in self:
            if isinstance(options, LossOptions):
                yield name, options


class TeacherLosses(ScoreMixture):
    """Losses of the student's scores on its teacher's."""

    mse: Annotated[PointwiseMSE | None, _SHORT] = None
    centered_mse: Annotated[CenteredMSE | None, _SHORT] = None
    margin_mse: Annotated[MarginMSE | None, _SHORT] = None
    listwise_kl: Annotated[ListwiseKL | None, _SHORT] = None
    ranknet: Annotated[RankNet | None, _SHORT] = None
    lambda_loss: Annotated[LambdaLoss | None, _SHORT] = None
    adr_mse: Annotated[ADRMSE | None, _SHORT] = None
    rank_distil: Annotated[RankDistil | None, _SHORT] = None
    keep_top: Annotated[KeepTop | None, _SHORT] = None
    list_mle: Annotated[ListMLE | None, _SHORT] = None
    plist_mle: Annotated[PListMLE | None, _SHORT] = None


class ExitLosses(ScoreMixture):
    """Losses of exits alone."""

    keep_top: Annotated[KeepTop | None, _SHORT] = None


class LabelLosses(ScoreMixture):
    """Losses of scores on labels."""

    softmax_labels: Annotated[SoftmaxLabels | None, _SHORT] = None
    bce_labels: Annotated[BCELabels | None, _SHORT] = None
    gbce_labels: Annotated[GBCELabels | None, _SHORT] = None
    ranknet_labels: Annotated[RankNetLabels | None, _SHORT] = None
    hinge_labels: Annotated[HingeLabels | None, _SHORT] = None
    lambda_labels: Annotated[LambdaLabels | None, _SHORT] = None
    list_mle_labels: Annotated[ListMLELabels | None, _SHORT] = None
    plist_mle_labels: Annotated[PListMLELabels | None, _SHORT] = None


LayerChoice = Literal["kept", "uniform", "last"] | Mapping[NonNegativeInt, NonNegativeInt]


class HiddenStates(Record):
    """The states of every token after a layer.

    ``layers``: ``kept``, each layer learns from the teacher layer that it once was, by the ranker's history, and
    uniformly where it has none; ``uniform``, ``last``, or a mapping of student layers to teacher layers, from 0.
    ``measure``: ``mse``, the share of the teacher's variance that is missed; ``cosine``, the direction alone.
    """

    weight: PositiveFloat = 1.0
    layers: LayerChoice = "kept"
    measure: Literal["mse", "cosine"] = "mse"


class Relations(Record):
    """How tokens relate within a layer.

    ``kind``: ``qkv``, queries to queries, keys to keys, values to values (MiniLM v2); ``attention``, queries to keys.
    ``layers``: as in ``hidden``; one layer is enough. ``heads``: into how many relation heads the values are cut, by
    default as many as the student has attention heads.
    """

    weight: PositiveFloat = 1.0
    kind: Literal["qkv", "attention"] = "qkv"
    layers: LayerChoice = "last"
    heads: PositiveInt | None = None


class EmbeddingStates(Record):
    """The states of every token before the first layer."""

    weight: PositiveFloat = 1.0
    measure: Literal["mse", "cosine"] = "mse"


class Representations(Mixture):
    """Losses that make a student's inner states like its teacher's; each is the mean over its layers."""

    hidden: Annotated[HiddenStates | None, _SHORT] = None
    relations: Annotated[Relations | None, _SHORT] = None
    embeddings: Annotated[EmbeddingStates | None, _SHORT] = None
