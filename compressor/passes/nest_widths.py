"""`nest_widths`: a ranker whose first neurons are rankers, too, so that one training gives several widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from compressor.passes.contract import Need, PlanError, Supply
from compressor.passes.distill import Distill
from compressor.passes.kept_layers import CANDIDATES_OF_A_LIST
from compressor.passes.nested_widths import DEFAULT_SHARES, TRAINED, Shares, full_widths, share_of
from compressor.passes.refusals import refuse_factorized_outputs, refuse_sparse, refuse_token_rules
from compressor.ranker.spec import RankerSpec
from compressor.registry import register
from compressor.training.drawn_parts import DrawnParts, EachStep

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder
    from compressor.ranker.ranker import Ranker

Order = Literal["fisher", "clustered", "taylor", "predicted", "hessian", "wanda", "magnitude", "as_it_is"]


def _from_the_whole(shares: tuple[float, ...]) -> tuple[float, ...]:
    if len(shares) < 2 or shares[0] != 1:
        raise ValueError("name 1, the whole, and at least one smaller share")
    return shares


@register("nest_widths")
class NestWidths(Distill):
    """Distill a ranker so that the first neurons of its feed-forwards are good rankers without the others.

    ``shares``: of each layer's neurons, the largest first. ``each_step``: what a step trains, ``one`` of them, drawn;
    or ``sandwich``, the whole, the narrowest and one drawn between them, at up to three times the cost.
    ``order``: how neurons are sorted before training, those that matter first, which changes no score: an importance
    of `prune_widths`, or ``as_it_is``, for a ranker whose neurons are nested already.
    ``n_pairs``: calibration pairs for that, whole lists of 8.

    All other settings are those of `distill`. The result ranks at its full width; `cut_nested` makes rankers of the
    other widths. With ``evaluate_every`` the best weights are those whose widths rank best on average. Literature:
    MatFormer (arXiv 2310.07707), and for the sandwich "Universally slimmable networks" (arXiv 1903.05134).
    """

    shares: Annotated[Shares, AfterValidator(_from_the_whole)] = Field(default=DEFAULT_SHARES)
    each_step: EachStep = "one"
    order: Order = "fisher"
    n_pairs: PositiveInt = 256

    def needs(self) -> frozenset[Need]:
        return super().needs() | ({"calibration"} if self.order != "as_it_is" else set[Need]())

    def plan(self, spec: RankerSpec) -> RankerSpec:
        super().plan(spec)
        refuse_sparse(spec, self.verb)
        if self.order != "as_it_is":
            refuse_token_rules(spec, self.verb, "order")
            refuse_factorized_outputs(spec, self.verb, "order")
        if not any(full_widths(spec)):
            raise PlanError("a ranker without feed-forwards", allowed="a feed-forward in at least one layer")
        return spec

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self.epochs == 0:
            return ranker.changed()
        result = super().apply(self._in_order(ranker, supply), supply)
        supply.note(TRAINED, self.widths(ranker.spec))
        return result

    def widths(self, spec: RankerSpec) -> list[list[int]]:
        """Return the neurons of every layer at each share."""
        return [[share_of(width, share) for width in full_widths(spec)] for share in self.shares]

    def parts(self, spec: RankerSpec, seed: int) -> DrawnParts:
        return replace(super().parts(spec, seed), widths=self.widths(spec), each_step=self.each_step)

    def _in_order(self, ranker: Ranker, supply: Supply) -> Ranker:
        """Return the same ranker with the neurons of each layer sorted."""
        if self.order == "as_it_is":
            return ranker
        import torch

        from compressor.algorithms.calibration import calibration_batches
        from compressor.algorithms.subcloning import sliced, within_layers
        from compressor.algorithms.width_importance import measured_evidence, ranked_widths

        pairs = supply.pairs("calibration", self.n_pairs, per_query=CANDIDATES_OF_A_LIST)
        batches = calibration_batches(ranker, pairs)
        evidence = measured_evidence(ranker, batches, [query for query, _ in pairs], self.order)
        _, neurons = ranked_widths(self.order, evidence)
        heads = [torch.arange(layer.heads) for layer in ranker.spec.layers]
        kept = within_layers(ranker.spec, heads, [ranking.order for ranking in neurons])
        return ranker.changed(weights=sliced(ranker.spec, ranker.weights, kept))

    def _evaluation(self, ranker: Ranker, supply: Supply) -> Callable[[Encoder], float] | None:
        from compressor.ranker.sub_network import SubNetwork, running

        evaluate = super()._evaluation(ranker, supply)
        if evaluate is None:
            return None

        def mean(module: Encoder) -> float:
            found = []
            for widths in self.widths(ranker.spec):
                with running(module, SubNetwork(ffn_widths=widths)):
                    found.append(evaluate(module))
            return sum(found) / len(found)

        return mean
