"""Heads that are there in training alone, through which learned scorers of tokens learn what matters to the score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import RankerSpec
from compressor.ranker.token_scores import Reached, standardized
from compressor.training.mask_settings import TokenScorerSettings


class ScorerHeads(nn.Module):
    """One head for each learned scorer of a ranker (Token Cropr, arXiv 2412.00965).

    A head sees a row's document tokens as their mean, weighted by the softmax of their scores, and tells the score of
    the pair from it: so scores grow where that is told. It sees nothing of the query's own tokens, which would tell it
    without any document. States are taken as they are: nothing that is learned here changes the ranker but for its
    scorers' vectors. The last matrix begins at 0, so that these stay as they are until the head has learned something.

    Args:
        spec: the ranker.
        settings: how wide heads are and how fast they learn.
        seed: for the first matrices.
    """

    def __init__(self, spec: RankerSpec, settings: TokenScorerSettings, seed: int) -> None:
        super().__init__()
        self.settings = settings
        generator = torch.Generator().manual_seed(seed)
        self.heads = nn.ModuleDict()
        for layer in (index for index, one in enumerate(spec.layers) if one.has_learned_scorer):
            hidden = settings.hidden or spec.width
            # No weights drawn by torch, which would disturb the global random state.
            first, last = skip_init(nn.Linear, spec.width, hidden), skip_init(nn.Linear, hidden, 1)
            with torch.no_grad():
                first.weight.copy_(torch.randn(first.weight.shape, generator=generator) * spec.width**-0.5)
            for zero in (first.bias, last.weight, last.bias):
                nn.init.zeros_(zero)
            self.heads[str(layer)] = nn.Sequential(first, nn.GELU(), last)

    @property
    def rates(self) -> Mapping[str, float]:
        """Constant learning rates of parameters, by the beginning of their names."""
        return {"heads.": self.settings.learning_rate}

    @contextmanager
    def watched(self, module: Encoder) -> Iterator[dict[int, Reached]]:
        """Yield a dict that holds what reached each learned scorer, by layer, once a pass has run in the block.

        Where a step puts no rule there, or leaves the layer out, nothing has.
        """
        reached: dict[int, Reached] = {}

        def keep(index: int) -> Any:
            rule: Any = module.layers[index].token_rule
            return rule.register_forward_pre_hook(lambda _, inputs: reached.update({index: inputs[0]}))

        hooks = [keep(int(layer)) for layer in self.heads]
        try:
            yield reached
        finally:
            for hook in hooks:
                hook.remove()

    def forward(self, layer: int, reached: Reached) -> Tensor:
        """Return the scores that a layer's head tells, ``[B, 1]``, with a gradient for itself and the scorer alone."""
        rule: Any = reached.layer.token_rule
        still = replace(reached, read=reached.read.detach(), given=reached.given.detach())
        document = still.parts.document_slots(still.layout)
        scores: Tensor = rule.scorer(still).masked_fill(~document, torch.finfo(torch.float32).min)
        states, _ = standardized(still)
        shares = scores.softmax(dim=1) * document  # of a row without a document, none
        return self.heads[str(layer)](torch.matmul(shares[:, None].to(states.dtype), states)[:, 0])
