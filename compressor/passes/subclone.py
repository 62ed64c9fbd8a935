"""`subclone`: a smaller student whose weights are cut out of its teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply, at_most_its_parameters
from compressor.passes.kept_layers import (
    LayerChoice,
    chosen,
    cut_spec,
    cut_weights,
    most_important,
    refuse_exits,
    refuse_more,
)
from compressor.passes.refusals import refuse_quantized, refuse_sparse, refuse_token_rules
from compressor.ranker.narrowing import narrowed
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.ranker.ranker import Ranker

Counts = PositiveInt | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


@register("subclone")
class Subclone(Pass):
    """Make a ranker of fewer residual dimensions, heads, neurons and layers out of the most active parts of this one.

    ``width``: residual dimensions, one choice for all layers. ``heads``, ``ffn_width``: one number, or one for each
    layer that stays, where 0 takes its attention or its feed-forward away. ``layers``: a list of indices,
    ``every_other``, or how many: those whose absence changes scores most. What is not given stays as it is; heads keep
    their width.
    ``n_pairs``: calibration pairs on which activity, and layers, are measured.
    ``weights``: ``subcloned``, cut out as they are; ``folded``, with predictions of what is left out folded into them
    and norms fitted, and the parts that stay chosen by how well they predict the others; ``random``: the same shape
    with nothing inherited.

    The result is a start for `distill`, not a ranker. Literature: "Weight subcloning" (arXiv 2312.09299).
    """

    width: PositiveInt | None = None
    heads: Counts | None = None
    ffn_width: Counts | None = None
    layers: PositiveInt | LayerChoice | None = None
    n_pairs: PositiveInt = 256
    weights: Literal["subcloned", "folded", "random"] = "folded"

    def needs(self) -> frozenset[Need]:
        is_narrower = any((self.width, self.heads, self.ffn_width)) and self.weights != "random"
        return frozenset({"calibration"} if is_narrower or isinstance(self.layers, int) else ())

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        refuse_sparse(spec, self.verb)
        refuse_token_rules(spec, self.verb)
        if isinstance(self.layers, int):
            refuse_more(self.layers, spec, "layers")
            refuse_exits(spec, self.verb, "layers")
            return self._narrowed(cut_spec(spec, range(self.layers)))
        return self._narrowed(cut_spec(spec, self._listed_layers(spec)))

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if isinstance(self.layers, int):
            layers = most_important(ranker, supply, self.layers, self.n_pairs)
        else:
            layers = self._listed_layers(ranker.spec)
        supply.note("kept_layers", layers)
        cut = ranker.changed(spec=cut_spec(ranker.spec, layers), weights=cut_weights(ranker.weights, layers))
        small = self._narrowed(cut.spec)
        if self.weights == "random":
            return ranker.changed(spec=small, weights=_random_weights(small, ranker, supply.seed))
        if small == cut.spec:
            return cut
        return cut.changed(spec=small, weights=self._subcloned(ranker, cut, small, layers, supply))

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return at_most_its_parameters(result)

    def _listed_layers(self, spec: RankerSpec) -> list[int]:
        if self.layers is None or isinstance(self.layers, int):
            return list(range(len(spec.layers)))
        return chosen(self.layers, spec, "layers")

    def _narrowed(self, spec: RankerSpec) -> RankerSpec:
        """Return the shape of a ranker whose layers are chosen already."""
        if self.width and self.width > spec.width:
            raise _too_large("width", f"{self.width}", f"{spec.width} dimensions", spec.width)
        return narrowed(
            spec,
            width=self.width or spec.width,
            heads=_counts("heads", self.heads, [layer.heads for layer in spec.layers]),
            ffn_widths=_counts("ffn_width", self.ffn_width, [layer.ffn_width for layer in spec.layers]),
        )

    def _subcloned(
        self, ranker: Ranker, cut: Ranker, small: RankerSpec, layers: Sequence[int], supply: Supply
    ) -> dict[str, Tensor]:
        from compressor.algorithms.activation_statistics import measure_activations
        from compressor.algorithms.calibration import calibration_batches
        from compressor.algorithms.folding import fitted_norms, folded, measure_inputs, most_predictive, of_layers
        from compressor.algorithms.subcloning import kept_of_layers, most_active, sliced

        batches = calibration_batches(ranker, supply.pairs("calibration", self.n_pairs))
        if self.weights == "folded":
            inputs = of_layers(measure_inputs(ranker.module, batches), layers)
            kept = most_predictive(inputs, cut.weights, cut.spec, small)
            norms = fitted_norms(ranker.module, batches, cut.spec, kept, layers)
            weights = folded(cut.spec, cut.weights, kept, inputs)
            return weights | {name: tensor for name, tensor in norms.items() if name in weights}
        statistics = measure_activations(ranker.module, batches)
        kept = most_active(kept_of_layers(statistics, layers), cut.spec, small)
        return sliced(cut.spec, cut.weights, kept)


def _counts(setting: str, wanted: int | tuple[int, ...] | None, found: list[int]) -> list[int]:
    """Return a number for each layer that stays.

    Raises:
        PlanError: there are more or fewer numbers than layers, or a layer has less than is wanted.
    """
    if wanted is None:
        return found
    counts = [wanted if most else 0 for most in found] if isinstance(wanted, int) else list(wanted)
    if len(counts) != len(found):
        allowed = f"one number, or {len(found)}: one for each layer that stays"
        raise PlanError(f"{len(counts)} numbers for {len(found)} layers", allowed=allowed, setting=setting)
    for index, (count, most) in enumerate(zip(counts, found, strict=True)):
        if count > most:
            raise _too_large(setting, str(count), f"{most} in layer {index}", most)
    return counts


def _too_large(setting: str, wanted: str, source: str, most: int) -> PlanError:
    return PlanError(
        f"{wanted}, of a ranker that has {source}",
        allowed=f"1 to {most}",
        fix="a subclone has no more than its source; for a wider student, start_from another checkpoint",
        setting=setting,
    )


def _random_weights(spec: RankerSpec, source: Ranker, seed: int) -> dict[str, Tensor]:
    from compressor.ranker.encoder import random_weights

    scale = source.source_config.get("initializer_range")
    return random_weights(spec, seed, float(scale) if isinstance(scale, int | float) else 0.02)
