"""`drop_layers`: fewer layers, those that stay fitted to do the work of the others too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from compressor.passes.contract import Need, Pass, Promise, Supply
from compressor.passes.kept_layers import (
    LayerChoice,
    chosen,
    cut_spec,
    cut_weights,
    most_important,
    refuse_exits,
    refuse_more,
)
from compressor.passes.refusals import refuse_factorized_outputs, refuse_quantized, refuse_sparse, refuse_token_rules
from compressor.ranker.spec import RankerSpec
from compressor.records import Record
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


class MostImportant(Record):
    """Keep the layers that matter most: greedy leave-one-out on calibration pairs.

    ``layers``: how many to keep. ``n_pairs``: calibration pairs to measure on.
    """

    layers: PositiveInt
    n_pairs: PositiveInt = 256


@register("drop_layers")
class DropLayers(Pass):
    """Remove whole layers; the others keep their weights and order.

    ``keep``: a list of layer indices from 0; ``every_other`` (the last layer stays, then every second one before it);
    or ``{layers: N, n_pairs: M}``, the N layers whose absence changes the scores of M calibration pairs most.

    ``compensate``: ``refit``, new output matrices in every layer behind the first gap, by regression on calibration
    pairs, so that each layer that stays brings the states to where it brought them in the whole ranker, and the last
    one to where the last one did; or ``none``.
    ``n_pairs``: calibration pairs for that. On texts of another kind the fit may bring nothing: name several
    collections (benchmarks/README.md).

    Exits go with their layers, and one behind the layer that becomes the last gives way to the head: to have it as the
    head, use `cut_at_exit`.

    Costs ranking quality unless distillation follows; speeds up in proportion to the layers removed, as `bench` shows.
    Literature: "On the effect of dropping layers of pre-trained transformer models" (arXiv 2004.03844).
    """

    keep: LayerChoice | MostImportant
    compensate: Literal["refit", "none"] = "refit"
    n_pairs: PositiveInt = 256

    def needs(self) -> frozenset[Need]:
        return frozenset({"calibration"} if isinstance(self.keep, MostImportant) or self.compensate == "refit" else ())

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        refuse_sparse(spec, self.verb)
        refuse_token_rules(spec, self.verb)
        if self.compensate == "refit":
            refuse_factorized_outputs(spec, self.verb, "compensate")
        if isinstance(self.keep, MostImportant):
            refuse_more(self.keep.layers, spec, "keep.layers")
            refuse_exits(spec, self.verb, "keep")
            return cut_spec(spec, range(self.keep.layers))
        return cut_spec(spec, chosen(self.keep, spec, "keep"))

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if isinstance(self.keep, MostImportant):
            kept = most_important(ranker, supply, self.keep.layers, self.keep.n_pairs)
        else:
            kept = chosen(self.keep, ranker.spec, "keep")
        supply.note("kept_layers", kept)
        cut = ranker.changed(spec=cut_spec(ranker.spec, kept), weights=cut_weights(ranker.weights, kept))
        if self.compensate == "none" or len(kept) == len(ranker.spec.layers):
            return cut
        return self._refitted(ranker, cut, kept, supply)

    def _refitted(self, ranker: Ranker, cut: Ranker, kept: Sequence[int], supply: Supply) -> Ranker:
        from compressor.algorithms.calibration import calibration_batches
        from compressor.algorithms.compensation import refitted

        stands_for = [*kept[:-1], len(ranker.spec.layers) - 1]
        weights = dict(cut.weights)
        last = f"layers.{len(kept) - 1}."
        if ranker.spec.layers[-1].norm_placement == "post":  # its norms are what it is brought to
            weights |= {
                f"{last}{norm}.{kind}": ranker.weights[f"layers.{stands_for[-1]}.{norm}.{kind}"]
                for norm in ("attention_norm", "ffn_norm")
                for kind in ("weight", "bias")
                if f"{last}{norm}.{kind}" in weights and f"layers.{stands_for[-1]}.{norm}.{kind}" in ranker.weights
            }
        batches = calibration_batches(ranker, supply.pairs("calibration", self.n_pairs))
        cut = cut.changed(weights=weights)
        fitted = refitted(ranker.module, cut.trainable().eval(), batches, stands_for)
        return cut.changed(weights={**cut.weights, **fitted})

    def promises(self, result: Ranker) -> Sequence[Promise]:
        most = len(result.spec.layers)

        def check(ranker: Ranker) -> str | None:
            found = len(ranker.spec.layers)
            return f"{found} layers" if found > most else None

        return [Promise(text=f"at most {most} layers", check=check)]
