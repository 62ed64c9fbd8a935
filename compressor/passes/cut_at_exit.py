"""`cut_at_exit`: of a ranker with exits, the one that ends behind a chosen layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt

from compressor.passes.contract import Pass, PlanError, Promise, Supply
from compressor.passes.refusals import refuse_cascade
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


@register("cut_at_exit")
class CutAtExit(Pass):
    """End the ranker behind a layer that has an exit: the exit becomes the head, all layers above and all exits go.

    ``layer``: the index from 0 of the last layer that stays; the last one there is cuts nothing, and the exits stay,
    which no export computes.

    The result scores as the exit did. Nothing is measured or trained, so several depths can be cut out of one training:
    its stored stage serves them all. Quantized rankers can be cut too; exits are fp32 in them. Literature: BGE's
    layerwise rerankers (``cutoff_layers``), and for exits that are chosen pair by pair, which this is not, DeeBERT
    (arXiv 2004.12993).
    """

    layer: NonNegativeInt

    def plan(self, spec: RankerSpec) -> RankerSpec:
        last, exits = len(spec.layers) - 1, spec.exit_layers
        if not exits:
            raise PlanError(
                "a ranker without exits",
                allowed="one with exits",
                fix=f"put add_exits before {self.verb}, and distill or finetune between them",
            )
        if self.layer == last:
            return spec
        if self.layer not in exits:
            has_none = "which has no exit" if self.layer < last else f"of a ranker of {last + 1} layers"
            raise PlanError(
                f"layer {self.layer}, {has_none}",
                allowed=f"{', '.join(map(str, exits))}: the layers with an exit; or {last}, the last one",
                setting="layer",
            )
        refuse_cascade(spec, self.verb)
        *kept, end = spec.without_exits().layers[: self.layer + 1]
        # An exit reads all tokens that reach it, and a token rule behind the last layer would have no reader.
        return spec.changed(layers=(*kept, end.changed(token_rule=None)), head=spec.layers[self.layer].exit)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        from compressor.ranker.encoder import expected_shapes

        spec = self.plan(ranker.spec)
        supply.note("kept_layers", list(range(len(spec.layers))))
        if spec == ranker.spec:
            return ranker.changed()
        prefix = f"layers.{self.layer}.exit."
        head = {
            name.replace(prefix, "head.", 1): tensor
            for name, tensor in ranker.weights.items()
            if name.startswith(prefix)
        }
        found = {**ranker.weights, **head}
        return ranker.changed(spec=spec, weights={name: found[name] for name in expected_shapes(spec)})

    def promises(self, result: Ranker) -> Sequence[Promise]:
        most = len(result.spec.layers)

        def check(ranker: Ranker) -> str | None:
            found = len(ranker.spec.layers)
            return f"{found} layers" if found > most else None

        return [Promise(text=f"at most {most} layers", check=check)]
