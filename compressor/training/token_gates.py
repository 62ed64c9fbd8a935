"""Gates on tokens: how far each stays, while thresholds learn along with a ranker's weights which of them go."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.algorithms.token_thresholds import token_layers
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import KeepThresholdRule, RankerSpec
from compressor.training.mask_settings import TokenGateSettings


class TokenGates(nn.Module):
    """Soft thresholds (Learned Token Pruning, arXiv 2107.00910), one for each threshold rule of a ranker.

    A document token stays as far as ``sigmoid((score - threshold) / temperature)``. The paper multiplies states by it,
    which norms undo and attention goes on to see; here its logarithm is added to the token's score as a key, in all
    layers behind, so that a closed gate is a token that is gone, in training as in use.

    Args:
        spec: the ranker, its rules with the thresholds at which learning starts, and with the shares whose
            `token_layers` is the budget.
        settings: how thresholds learn.
    """

    def __init__(self, spec: RankerSpec, settings: TokenGateSettings) -> None:
        super().__init__()
        rules = {layer: spec.layers[layer].token_rule for layer in spec.rule_layers}
        self.rules = {layer: rule for layer, rule in rules.items() if isinstance(rule, KeepThresholdRule)}
        self.settings, self.n_layers = settings, len(spec.layers)
        self.budget = token_layers({layer: rule.share for layer, rule in self.rules.items()}, self.n_layers)
        self.thresholds = nn.Parameter(torch.tensor([rule.threshold for rule in self.rules.values()]))
        self._left: dict[int, Tensor] = {}

    @property
    def rates(self) -> Mapping[str, float]:
        """Constant learning rates of parameters, by the beginning of their names."""
        return {"thresholds": self.settings.learning_rate}

    def install(self, module: Encoder, n_steps: int) -> None:
        """Put the gates behind the layers of a module that is trained."""
        for number, layer in enumerate(self.rules):
            rule: Any = module.layers[layer].token_rule
            rule.gate = partial(self._gate, number, layer)

    def after_step(self) -> None:
        """Take note of a step of the optimizer: nothing depends on it."""

    def penalty(self) -> Tensor:
        """Return what is added to the loss: the squared distance of what the last pass kept from the budget."""
        total = torch.stack([self._left[layer] * n for layer, n in self._layers_behind().items()]).sum()
        kept = total / sum(self._layers_behind().values())
        return self.settings.budget_weight * (kept - self.budget).square()

    @torch.no_grad()
    def learned(self) -> dict[int, KeepThresholdRule]:
        """Return the rules with what their thresholds have become, by layer."""
        values = self.thresholds.clamp(min=0).tolist()
        return {
            layer: rule.changed(threshold=value)
            for (layer, rule), value in zip(self.rules.items(), values, strict=True)
        }

    def _layers_behind(self) -> dict[int, int]:
        """Return how many layers read what each rule leaves."""
        ends = [*list(self.rules)[1:], self.n_layers - 1]
        return {layer: end - layer for layer, end in zip(self.rules, ends, strict=True)}

    def _gate(self, number: int, layer: int, relative: Tensor, document: Tensor, before: Tensor) -> Tensor:
        opened = F.logsigmoid((relative - self.thresholds[number]) / self.settings.temperature)
        best = relative.masked_fill(~document, -torch.inf).amax(dim=1, keepdim=True)
        gates = before + opened.masked_fill(~document | (relative >= best), 0.0)  # a row's best token stays in any case
        self._left[layer] = (gates.exp() * document).sum() / document.sum().clamp(min=1)
        return gates
