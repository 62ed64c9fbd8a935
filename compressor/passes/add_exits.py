"""`add_exits`: scoring heads behind inner layers, so that one training gives rankers of several depths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt

from compressor.passes.contract import Pass, PlanError, Promise, Supply
from compressor.passes.refusals import refuse_quantized
from compressor.ranker.spec import ClassifierHead, RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


@register("add_exits")
class AddExits(Pass):
    """Put a scoring head behind chosen layers: `distill` or `finetune` train them along, `cut_at_exit` picks a depth.

    ``layers``: a list of layer indices from 0; ``upper_two_thirds``, every layer at a third of the depth or deeper; or
    ``every_other``, every second one before the last. The last layer has the head already. Exits that are there stay as
    they are.

    Each exit starts as a copy of the ranker's head: before training it scores as the ranker does whose upper layers are
    dropped. Scores do not change, and an export leaves exits out. Literature: exits that learn from the last layer,
    "Be Your Own Teacher" (arXiv 1905.08094) and BGE's layerwise rerankers; heads that start as copies, DeeBERT (arXiv
    2004.12993).
    """

    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | Literal["upper_two_thirds", "every_other"] = (
        "upper_two_thirds"
    )

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        if not isinstance(spec.head, ClassifierHead):
            raise PlanError(
                "a bi-encoder, which gives a vector for each text", allowed="a cross-encoder, whose head gives a score"
            )
        new = self._new(spec)
        layers = [layer.changed(exit=spec.head) if index in new else layer for index, layer in enumerate(spec.layers)]
        return spec.changed(layers=tuple(layers))

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        new = self._new(ranker.spec)
        copies = {
            name.replace("head.", f"layers.{layer}.exit.", 1): tensor
            for name, tensor in ranker.weights.items()
            if name.startswith("head.")
            for layer in new
        }
        supply.note("new_exits", new)
        return ranker.changed(spec=self.plan(ranker.spec), weights={**ranker.weights, **copies})

    def promises(self, result: Ranker) -> Sequence[Promise]:
        n_layers, exits = len(result.spec.layers), result.spec.exit_layers

        def check(ranker: Ranker) -> str | None:
            lost = [layer for layer in exits if layer not in ranker.spec.exit_layers]
            # A pass that takes layers away takes their exits along, and says what becomes of the others.
            return f"no exit behind {_listed(lost)}" if lost and len(ranker.spec.layers) == n_layers else None

        return [Promise(text=f"as long as no layer goes, the exits behind {_listed(exits)} stay", check=check)]

    def _new(self, spec: RankerSpec) -> list[int]:
        """Return the layers that get an exit and have none.

        Raises:
            PlanError: the list does not fit the ranker.
        """
        return [layer for layer in self._chosen(len(spec.layers)) if layer not in spec.exit_layers]

    def _chosen(self, n_layers: int) -> Sequence[int]:
        last = n_layers - 1
        least = 3 if self.layers == "every_other" else 2
        if n_layers < least:
            raise PlanError(
                f"a ranker of {n_layers} {'layers' if last else 'layer'}, the last of which ends in the head",
                allowed=f"{least} layers or more",
                fix=f"put {self.verb} before the pass that takes layers away",
            )
        if self.layers == "every_other":
            return range(last % 2, last, 2)
        if self.layers == "upper_two_thirds":
            return range(math.ceil(n_layers / 3) - 1, last)
        layers = list(self.layers)
        if layers != sorted(set(layers)) or layers[-1] >= last:
            raise PlanError(
                f"{layers} for a ranker of {n_layers} layers",
                allowed=f"ascending layer indices from 0 to {last - 1}, each once: layer {last} ends in the head",
                setting="layers",
            )
        return layers


def _listed(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
