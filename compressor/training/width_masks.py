"""Masks that learn, along with a ranker's weights, which heads, neurons and residual dimensions may go."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from compressor.algorithms.gates import Gates, install_gates
from compressor.algorithms.hard_concrete import expected_gates, open_chances, sampled_gates
from compressor.algorithms.width_choice import UnitScores, WidthCosts, paid_for
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import RankerSpec
from compressor.training.lagrangian import Lagrangian
from compressor.training.mask_settings import MaskSettings, Regrowth

BLOCKS = {"heads": "attentions", "neurons": "ffns"}  # units, and what a mask on whole blocks of them is called

_START_LOGIT = 2.4  # where a gate without noise is just 1
_MEMORY = 0.9  # of the average over steps of what gates' gradients are


class WidthMasks(nn.Module, ABC):
    """Scores of units and the gates that they make, one step after another.

    All that the next step depends on is a parameter or a buffer, so that a killed training goes on exactly.

    Args:
        spec: the ranker whose units are learned about.
        costs: of its units.
        budget: the share of the cost that is to stay.
        settings: when and how fast units go.
        seed: for what is drawn.
    """

    step: Tensor

    def __init__(self, spec: RankerSpec, costs: WidthCosts, budget: float, settings: MaskSettings, seed: int) -> None:
        super().__init__()
        self.costs, self.budget, self.settings, self.seed = costs, budget, settings, seed
        self.n_steps = 1
        layers = spec.layers
        self._counts = {"heads": [layer.heads for layer in layers], "neurons": [layer.ffn_width for layer in layers]}
        self.scores = nn.ParameterDict(
            {kind: nn.Parameter(torch.zeros(sum(counts))) for kind, counts in self._counts.items()}
        )
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        for kind, counts in self._counts.items():
            self.register_buffer(f"gradient_{kind}", torch.zeros(sum(counts)))
            self.register_buffer(f"answers_{kind}", torch.zeros(sum(counts)))
        self.gates = Gates(heads=[], neurons=[])

    @property
    def rates(self) -> Mapping[str, float]:
        """Constant learning rates of parameters, by the beginning of their names."""
        return {"scores.": self.settings.learning_rate}

    def install(self, module: Encoder, n_steps: int) -> None:
        """Put the gates into a module that is trained for ``n_steps``."""
        self.n_steps = n_steps
        install_gates(module, lambda: self.gates, on_residual=self.settings.hidden)

    @abstractmethod
    def own_gates(self, *, drawn: bool) -> dict[str, Tensor]:
        """Return the gates of heads and neurons, flat, and of blocks and residual dimensions where the method has them.

        Args:
            drawn: with the noise of this step, if the method has any; else as the gates are expected to be.
        """

    @abstractmethod
    def unit_scores(self) -> UnitScores:
        """Return by what units are to be chosen in the end."""

    def penalty(self) -> Tensor | None:
        """Return what is added to the loss, without weight; None where the method adds nothing."""
        return None

    def set_gates(self, *, drawn: bool) -> None:
        """Set the gates of the forward passes to come; equal steps draw equal gates."""
        gates = self.own_gates(drawn=drawn)
        if drawn and self.settings.regrow:
            for kind in BLOCKS:
                gates[kind].register_hook(partial(_add, getattr(self, f"gradient_{kind}")))
        self.gates = self._combined(gates)

    @torch.no_grad()
    def expected(self) -> Gates:
        """Return the gates without noise or gradient."""
        return self._combined(self.own_gates(drawn=False))

    @torch.no_grad()
    def after_step(self) -> None:
        """Count a step of the optimizer; regrow units where it is time."""
        self.step += 1
        if regrow := self.settings.regrow:
            for kind in self._counts:
                gradient, answers = getattr(self, f"gradient_{kind}"), getattr(self, f"answers_{kind}")
                answers.lerp_(reduce(gradient.clone(), "sum").abs(), 1 - _MEMORY)
                gradient.zero_()
            if int(self.step) % regrow.every == 0 and 0 < self.progress < 1:
                self._regrow(regrow)

    @property
    def progress(self) -> float:
        """How much of the way from the whole ranker to the budget is over, from 0 to 1."""
        return self.settings.progress(int(self.step), self.n_steps)

    def split(self, kind: str, values: Tensor) -> list[Tensor]:
        """Return flat values of heads or neurons layer by layer."""
        return list(values.split(self._counts[kind]))

    def by_layer(self, kind: str, values: Tensor) -> Tensor:
        """Return the sum of flat values in each layer, ``[layers]``."""
        return torch.stack([each.sum() for each in self.split(kind, values)])

    def spread(self, kind: str, values: Tensor) -> Tensor:
        """Return the values of layers, ``[layers]``, for each of their units, flat."""
        return values.repeat_interleave(torch.tensor(self._counts[kind], device=values.device))

    def _combined(self, gates: Mapping[str, Tensor]) -> Gates:
        heads, neurons = (
            self.split(kind, gates[kind] * self.spread(kind, gates[block]) if block in gates else gates[kind])
            for kind, block in BLOCKS.items()
        )
        return Gates(heads=heads, neurons=neurons, residual=gates.get("residual"))

    def _regrow(self, regrow: Regrowth) -> None:
        """Have dropped units with the largest gradients come back, and as many of the weakest of those that stay go.

        Who comes back begins in the middle of those that stay, and has time to show what it is worth.
        Gradual magnitude pruning with zero-cost neuroregeneration (GraNet, arXiv 2106.10404), as used for heads of
        graph transformers (GTSP, arXiv 2312.05479): the share falls off like a cosine.
        """
        share = regrow.share * 0.5 * (1 + math.cos(math.pi * self.progress))
        gates = self.own_gates(drawn=False)
        for kind in BLOCKS:
            scores, stays, answers = self.scores[kind], gates[kind] > 0, getattr(self, f"answers_{kind}")
            count = int(share * min(int(stays.sum()), int((~stays).sum())))
            regrown = answers.masked_fill(stays, -1.0).topk(count).indices
            weakest = scores.masked_fill(~stays, math.inf).topk(count, largest=False).indices
            if count:
                scores[regrown], scores[weakest] = scores[stays].median(), scores[regrown].clone()


class HardConcreteMasks(WidthMasks):
    """CoFi (arXiv 2204.00408): hard-concrete gates on blocks, heads, neurons and, if wanted, residual dimensions.

    A unit's gate is multiplied by that of its block. The expected cost is brought to the target by a Lagrangian, whose
    multipliers climb where the scores descend; the target falls from the whole cost to the budget in a straight line.
    """

    def __init__(self, spec: RankerSpec, costs: WidthCosts, budget: float, settings: MaskSettings, seed: int) -> None:
        super().__init__(spec, costs, budget, settings, seed)
        n_layers = len(spec.layers)
        more = {"attentions": n_layers, "ffns": n_layers} | ({"residual": spec.width} if settings.hidden else {})
        self.scores.update({kind: nn.Parameter(torch.zeros(count)) for kind, count in more.items()})
        for scores in self.scores.values():
            nn.init.constant_(scores, _START_LOGIT)
        self.lagrangian = Lagrangian()

    @property
    def rates(self) -> Mapping[str, float]:
        return {**super().rates, **self.lagrangian.rates("lagrangian", self.n_steps)}

    def own_gates(self, *, drawn: bool) -> dict[str, Tensor]:
        if not drawn:
            return {kind: expected_gates(scores) for kind, scores in self.scores.items()}
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.step))
        return {
            kind: sampled_gates(scores, torch.rand(scores.shape, generator=generator).to(scores.device))
            for kind, scores in self.scores.items()
        }

    def unit_scores(self) -> UnitScores:
        """Return logits: a unit is open where it and its block are, so the lower of both counts."""
        heads, neurons = (
            self.split(kind, torch.minimum(self.scores[kind], self.spread(kind, self.scores[block])))
            for kind, block in BLOCKS.items()
        )
        return UnitScores(heads=heads, neurons=neurons, residual=self.scores.get("residual", None))

    def expected_cost(self) -> Tensor:
        """Return the cost of the units that are expected to be open, as a share of the whole."""
        heads, neurons = (
            self.by_layer(kind, open_chances(self.scores[kind])) * open_chances(self.scores[block])
            for kind, block in BLOCKS.items()
        )
        width = open_chances(self.scores["residual"]).mean() if "residual" in self.scores else 1.0
        return self.costs.of(heads, neurons, width)

    def penalty(self) -> Tensor | None:
        if not self.progress:
            return None  # noisy gates are never all open: multipliers would learn to push against the start
        return self.lagrangian(self.expected_cost() - (1 - (1 - self.budget) * self.progress))


class MovementMasks(WidthMasks):
    """Movement pruning of whole heads and neurons (arXiv 2005.07683, 2109.04838): gates that are 0 or 1.

    The units with the best scores stay, as many as the budget of the step pays for; it falls like a cubic. A score gets
    its gate's gradient straight through, which is the product of the gradient and the weights of the columns behind the
    gate: units grow whose weights move away from zero.
    """

    def own_gates(self, *, drawn: bool) -> dict[str, Tensor]:
        base, *prices = self.costs.of_units()
        budget = self.budget + (1 - self.budget) * (1 - self.progress) ** 3
        flat = torch.cat([self.scores[kind] for kind in BLOCKS])
        each = [self.spread(kind, flat.new_tensor(found)) for kind, found in zip(BLOCKS, prices, strict=True)]
        stays = paid_for(flat, torch.cat(each), budget - base)
        gates = (stays + flat - flat.detach()) if drawn else stays
        return dict(zip(BLOCKS, gates.split([len(one) for one in each]), strict=True))

    def unit_scores(self) -> UnitScores:
        heads, neurons = (self.split(kind, self.scores[kind]) for kind in BLOCKS)
        return UnitScores(heads=heads, neurons=neurons)


def _add(total: Tensor, gradient: Tensor | None) -> None:
    if gradient is not None:  # None where nothing behind the gates reached a loss
        total += gradient.detach()
