"""`drop_layers`: fewer layers, by a list, by taking every other one, or by measured importance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply, refuse_quantized
from compressor.ranker.spec import RankerSpec
from compressor.records import Record
from compressor.registry import register

if TYPE_CHECKING:
    from torch import Tensor

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

    Costs ranking quality unless distillation follows; speeds up in proportion to the layers removed, as `bench` shows.
    Literature: "On the effect of dropping layers of pre-trained transformer models" (arXiv 2004.03844).
    """

    keep: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | Literal["every_other"] | MostImportant

    def needs(self) -> frozenset[Need]:
        return frozenset({"calibration"} if isinstance(self.keep, MostImportant) else ())

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        n_layers = len(spec.layers)
        if isinstance(self.keep, MostImportant):
            if self.keep.layers > n_layers:
                raise PlanError(
                    f"{self.keep.layers} layers to keep of a ranker that has {n_layers}",
                    allowed=f"1 to {n_layers}",
                    setting="keep.layers",
                )
            return _cut(spec, range(self.keep.layers))
        if isinstance(self.keep, tuple):
            if list(self.keep) != sorted(set(self.keep)) or self.keep[-1] >= n_layers:
                raise PlanError(
                    f"{list(self.keep)} for a ranker of {n_layers} layers",
                    allowed=f"ascending layer indices from 0 to {n_layers - 1}, each once",
                    setting="keep",
                )
            return _cut(spec, self.keep)
        return _cut(spec, _every_other(n_layers))

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        n_layers = len(ranker.spec.layers)
        if isinstance(self.keep, MostImportant):
            kept: Sequence[int] = self._measure(self.keep, ranker, supply)
        else:
            kept = self.keep if isinstance(self.keep, tuple) else _every_other(n_layers)
        supply.note("kept_layers", list(kept))
        return ranker.changed(spec=_cut(ranker.spec, kept), weights=_rename(ranker, kept))

    def promises(self, result: Ranker) -> Sequence[Promise]:
        most = len(result.spec.layers)

        def check(ranker: Ranker) -> str | None:
            found = len(ranker.spec.layers)
            return f"{found} layers" if found > most else None

        return [Promise(text=f"at most {most} layers", check=check)]

    def _measure(self, keep: MostImportant, ranker: Ranker, supply: Supply) -> list[int]:
        from compressor.algorithms.importance import drop_least_important_layers

        kept, removals = drop_least_important_layers(ranker, supply.pairs("calibration", keep.n_pairs), keep.layers)
        supply.note("removals", removals)
        return kept


def _every_other(n_layers: int) -> list[int]:
    # The head was trained on the last layer's output, so the last one is among those that stay.
    return sorted(range(n_layers - 1, -1, -2))


def _cut(spec: RankerSpec, kept: Sequence[int]) -> RankerSpec:
    return spec.changed(layers=tuple(spec.layers[index] for index in kept))


def _rename(ranker: Ranker, kept: Sequence[int]) -> dict[str, Tensor]:
    places = {old: new for new, old in enumerate(kept)}
    weights = {}
    for name, tensor in ranker.weights.items():
        match = re.match(r"layers\.(\d+)\.", name)
        if match is None:
            weights[name] = tensor
        elif int(match[1]) in places:
            weights[f"layers.{places[int(match[1])]}.{name[match.end() :]}"] = tensor
    return weights
