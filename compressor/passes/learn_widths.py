"""`learn_widths`: learn, while distilling, which heads, neurons, blocks and residual dimensions stay; then cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from compressor.passes.contract import Need, PlanError, Promise, Supply, at_most_its_parameters
from compressor.passes.distill import Distill
from compressor.passes.refusals import refuse_factorized_outputs, refuse_sparse, refuse_token_rules
from compressor.passes.width_budget import (
    PLANNED_TOKENS,
    Budget,
    Widths,
    least_widths,
    planned_widths,
    too_small,
    width_costs,
)
from compressor.ranker.spec import RankerSpec
from compressor.registry import register
from compressor.training.mask_settings import MaskSettings

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker
    from compressor.training.width_masks import WidthMasks

_COUNTED_PAIRS = 256


@register("learn_widths")
class LearnWidths(Distill):
    """Distill, learn masks on heads, neurons and whole blocks along, and cut what they close.

    All settings of `distill`, and:

    ``budget``: the share that stays at most; as near to it as whole heads and groups of neurons come.
    ``method``: ``l0``, gates that are drawn and learn by which chance they are open, with a Lagrangian on the expected
    cost (CoFi, arXiv 2204.00408); ``movement``, gates that are open or not, by scores that grow where weights move away
    from zero (hybrid block movement pruning, arXiv 2109.04838).
    ``masks``: ``ramp``, the shares of training between which the target falls from the whole to the budget;
    ``learning_rate``, theirs; ``hidden``, with ``l0``, mask the dimensions of the residual stream, too; ``regrow``,
    have dropped units with large gradients change places with the weakest of those that stay, every so many steps
    (GTSP, arXiv 2312.05479).
    ``round_to``: neurons, and residual dimensions, are kept in multiples of this, which matrix kernels like.

    A gate of a unit that stays is folded into the matrix behind it. Masks were noisy while weights learned, and some
    units are cut that were half open: put `distill` behind, which learns on the shape as it is.
    """

    budget: Budget
    method: Literal["l0", "movement"] = "l0"
    masks: MaskSettings = MaskSettings()
    round_to: PositiveInt = 16

    def needs(self) -> frozenset[Need]:
        return frozenset() if self._keeps_all else super().needs()

    @property
    def reads_along(self) -> str:
        return "" if self._keeps_all else super().reads_along

    @property
    def loses_dimensions(self) -> bool:
        return self.masks.hidden

    def plan(self, spec: RankerSpec) -> RankerSpec:
        super().plan(spec)
        refuse_sparse(spec, self.verb)
        refuse_token_rules(spec, self.verb)
        refuse_factorized_outputs(spec, self.verb)
        if self.evaluate_every:
            raise PlanError(
                "dev data that would choose among weights of different widths, the widest first",
                fix="take evaluate_every away; put distill behind, which may have it",
                setting="evaluate_every",
            )
        if self.masks.hidden and self.method != "l0":
            raise PlanError(
                f"masks on the residual stream with method {self.method}, which has scores of heads and neurons alone",
                allowed="method: l0, or masks.hidden: false",
                setting="masks.hidden",
            )
        if self.budget.latency is not None:
            raise PlanError(
                "a budget in latency, which does not grow evenly with heads and neurons as masks have it",
                allowed="macs or parameters",
                fix="see what latency a share of macs gives, or take prune_widths",
                setting="budget",
            )
        if self._keeps_all:
            return spec
        if self.epochs == 0:
            raise PlanError(
                "no epochs, in which no mask learns what to cut",
                fix="name epochs, or take prune_widths, which measures instead of learning",
                setting="epochs",
            )
        planned = planned_widths(spec, self.budget, self.round_to).of(spec)
        if self._least(spec, PLANNED_TOKENS) > self.budget.share:
            raise too_small(spec, self.budget.costing(PLANNED_TOKENS), self.budget, PLANNED_TOKENS)
        return planned

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self._keeps_all:
            return ranker.changed()
        from compressor.algorithms.gates import cut_at_gates
        from compressor.algorithms.width_choice import best_units
        from compressor.training.masked_objective import MaskedObjective

        n_tokens = self._mean_tokens(ranker, supply)
        if self._least(ranker.spec, n_tokens) > self.budget.share:  # planned for pairs of another length
            found = too_small(ranker.spec, self.budget.costing(n_tokens), self.budget, n_tokens)
            raise self.fault("budget", found.found, allowed=found.allowed, fix=found.fix)
        masks = self._masks(ranker.spec, n_tokens, supply.seed)
        trained = self.learned(ranker, supply, partial(MaskedObjective, masks))
        masks = masks.cpu()
        needed = self._needed(ranker.spec)
        units = best_units(masks.unit_scores(), masks.costs, self.budget.share, self.round_to, needed)
        cut = cut_at_gates(trained, masks.expected(), units)
        share = self.budget.cost(cut.spec, n_tokens) / self.budget.cost(ranker.spec, n_tokens)
        supply.note("heads", [layer.heads for layer in cut.spec.layers])
        supply.note("ffn_widths", [layer.ffn_width for layer in cut.spec.layers])
        supply.note("width", cut.spec.width)
        supply.note("mean_tokens", n_tokens)
        supply.note("kept_share", round(share, 4))
        return cut

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return () if self._keeps_all else at_most_its_parameters(result)

    @property
    def _keeps_all(self) -> bool:
        return self.budget.share == 1

    def _needed(self, spec: RankerSpec) -> set[tuple[int, str]]:
        """Return the blocks that never go as a whole, since what they always add could be added nowhere else."""
        from compressor.algorithms.absent_blocks import never_absent

        return never_absent(spec, least_widths(spec).of(spec))

    def _least(self, spec: RankerSpec, n_tokens: int) -> float:
        """Return the share of the cost that has to stay."""
        needed = self._needed(spec)
        widths = Widths(
            [int((index, "attention") in needed) for index in range(len(spec.layers))],
            [min(self.round_to, layer.ffn_width) * ((i, "ffn") in needed) for i, layer in enumerate(spec.layers)],
        )
        return self.budget.cost(widths.of(spec), n_tokens) / self.budget.cost(spec, n_tokens)

    def _mean_tokens(self, ranker: Ranker, supply: Supply) -> int:
        lengths = ranker.tokenizer.encode_pairs(supply.pairs(self.data, _COUNTED_PAIRS)).lengths
        return max(1, round(float(lengths.mean())))

    def _masks(self, spec: RankerSpec, n_tokens: int, seed: int) -> WidthMasks:
        from compressor.training.width_masks import HardConcreteMasks, MovementMasks

        costs = width_costs(spec, self.budget, n_tokens, on_residual=self.masks.hidden)
        kind = HardConcreteMasks if self.method == "l0" else MovementMasks
        return kind(spec, costs, self.budget.share, self.masks, seed)
