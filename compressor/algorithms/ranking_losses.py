"""The score losses by the names that recipes use.

Each is ``loss(scores, targets, mask, **options) -> [L]``, one value per list of scores ``[L, K]``: `teacher_losses`
says how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from compressor.algorithms.label_losses import bce_labels, gbce_labels, hinge_labels, softmax_labels
from compressor.algorithms.lambda_losses import lambda_labels, lambda_loss
from compressor.algorithms.loss_options import LOSS_OPTIONS, LossOptions, TargetKind
from compressor.algorithms.teacher_losses import (
    adr_mse,
    centered_mse,
    keep_top,
    list_mle,
    listwise_kl,
    margin_mse,
    mse,
    plist_mle,
    rank_distil,
    ranknet,
)


@dataclass(frozen=True, kw_only=True)
class RankingLoss:
    """One score loss.

    Attributes:
        name: its name in recipes.
        function: ``(scores, targets, mask, **options) -> [L]``.
        options: the record of its options.
    """

    name: str
    function: Callable[..., Tensor]
    options: type[LossOptions]

    @property
    def target(self) -> TargetKind:
        """What it learns from."""
        return self.options.target

    @property
    def least(self) -> int:
        """How many items a list needs to teach anything."""
        return self.options.least

    def __call__(self, scores: Tensor, targets: Tensor, mask: Tensor, options: LossOptions | None = None) -> Tensor:
        """Return the loss of each list, ``[L]``, without the options' weight."""
        return self.function(scores, targets, mask, **(options or self.options()).keywords())


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "mse": mse,
    "centered_mse": centered_mse,
    "margin_mse": margin_mse,
    "listwise_kl": listwise_kl,
    "ranknet": ranknet,
    "lambda_loss": lambda_loss,
    "adr_mse": adr_mse,
    "rank_distil": rank_distil,
    "keep_top": keep_top,
    "list_mle": list_mle,
    "plist_mle": plist_mle,
    "softmax_labels": softmax_labels,
    "bce_labels": bce_labels,
    "gbce_labels": gbce_labels,
    "ranknet_labels": ranknet,
    "hinge_labels": hinge_labels,
    "lambda_labels": lambda_labels,
    "list_mle_labels": list_mle,
    "plist_mle_labels": plist_mle,
}

RANKING_LOSSES: Mapping[str, RankingLoss] = MappingProxyType(
    {name: RankingLoss(name=name, function=_FUNCTIONS[name], options=LOSS_OPTIONS[name]) for name in LOSS_OPTIONS}
)
