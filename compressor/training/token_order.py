"""The order of document tokens by the last layer's attention, which early layers learn to foresee."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from compressor.algorithms.lambda_losses import lambda_arp2
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import RankerSpec, TokenScorer
from compressor.ranker.token_scores import Reached, attention_of_last, build_scorer
from compressor.ranker.tokens import RowParts, TokenLayout
from compressor.training.batches import Batch
from compressor.training.mask_settings import TokenOrderSettings

_LEAST_SHARE = 1e-4  # of the mean: shares below are not told apart


class TokenOrder:
    """ToP's ranking distillation (arXiv 2306.14393): early attention judges tokens badly, the last layer's well.

    The loss is `lambda_arp2` of the scores that early layers give to document tokens, by the order in which the first
    token of the ranker as it was attends to them in its last layer. Scores are logarithms of shares of attention: of
    the shares themselves, which are near 0, the loss is flat.

    Args:
        start: the ranker as it was before it learned, in evaluation mode and without token rules; moved to wherever the
            batches are.
        scorer: how layers judge tokens.
        settings: the weight, and how many tokens count.
    """

    def __init__(self, start: Encoder, scorer: TokenScorer, settings: TokenOrderSettings) -> None:
        self.start, self.settings = start, settings
        self.layers = early_layers(start.spec)
        self._scorer = build_scorer(scorer, start.spec.width)

    @contextmanager
    def watched(self, student: Encoder) -> Iterator[dict[int, Tensor]]:
        """Yield a dict that holds what early layers read, packed ``[T, width]``, once a pass has run in the block."""
        read: dict[int, Tensor] = {}

        def keep(index: int) -> Any:
            return student.layers[index].register_forward_pre_hook(lambda _, inputs: read.update({index: inputs[0]}))

        hooks = [keep(index) for index in self.layers]
        try:
            yield read
        finally:
            for hook in hooks:
                hook.remove()

    def loss(
        self, student: Encoder, read: dict[int, Tensor], batch: Batch, rows: tuple[TokenLayout, RowParts]
    ) -> Tensor:
        """Return the loss, its weight left out: a mean over rows and layers.

        Args:
            student: the ranker that learns.
            read: what its early layers read.
            batch: of which rows.
            rows: where all of their tokens stand, and what these are.
        """
        layout, parts = rows
        document = parts.document_slots(layout)
        with torch.no_grad():
            self.start.to(layout.mask.device)
            order = attention_of_last(self.start, self.start.trace(**batch.inputs), parts)
        whole = replace(layout, log_gates=None)  # what gates let through is another matter
        found = []
        for index, values in read.items():
            layer: Any = student.layers[index]
            scores = self._scorer(Reached(layer=layer, read=values, given=values, layout=whole, parts=parts))
            relative = (scores * layout.n_tokens[:, None]).clamp(min=_LEAST_SHARE).log()
            found.append(lambda_arp2(relative, order, document, top=self.settings.top).mean())
        return torch.stack(found).mean()


def early_layers(spec: RankerSpec) -> list[int]:
    """Return the layers of the first third, without the very first, that have an attention to judge tokens by.

    ToP has 1, 2 and 3 of 12. The first one is taken where there would be none.
    """
    third = range(1, max(2, len(spec.layers) // 3))
    found = [layer for layer in third if layer < len(spec.layers) - 1 and spec.layers[layer].attention]
    return found or [0] * bool(spec.layers[0].attention)
