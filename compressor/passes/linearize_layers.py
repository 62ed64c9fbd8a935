"""`linearize_layers`: one linear map for a whole layer, where that is nearly what the layer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt, PositiveInt

from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply, at_most_its_parameters
from compressor.passes.kept_layers import CANDIDATES_OF_A_LIST
from compressor.passes.refusals import refuse_factorized_outputs, refuse_quantized, refuse_sparse, refuse_token_rules
from compressor.ranker.spec import RankerSpec
from compressor.records import Record
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.algorithms.calibration import CalibrationBatch
    from compressor.algorithms.linear_layers import Trials
    from compressor.ranker.ranker import Ranker

_MEASURED_SHARE = 4  # every fourth query is kept for measuring


class MostLinear(Record):
    """Choose layers by measurement.

    ``layers``: how many. ``by``: ``scores``, greedily the ones whose maps change scores least; or ``linearity``, the
    ones whose maps miss the smallest share of what the layer adds.
    """

    layers: PositiveInt
    by: Literal["scores", "linearity"] = "scores"


@register("linearize_layers")
class LinearizeLayers(Pass):
    """Replace whole layers by one linear map each, fitted by ridge regression on calibration pairs.

    The map has a matrix as wide as the residual stream, a bias and the residual, and reads each token alone. With norms
    behind blocks (BERT) the layer's last norm stays behind it; with norms before blocks (ModernBERT) the layer's first
    norm stays before it.

    ``replace``: a list of layer indices from 0; or ``{layers: N}``, N layers chosen by measurement.
    ``compensate``: ``refit``, new output matrices by regression in every layer behind the first map, which bring the
    states to where the whole ranker had them, so that errors do not pile up; or ``none``.
    ``n_pairs``: calibration pairs, whole lists of 8. Maps are fitted on all of them once layers are chosen.

    The notes say of every layer how linear it is, and what its map misses beside simply leaving the layer out, measured
    on every fourth query with maps fitted on the others. Where a map is no better, `drop_layers` costs less. A map
    moves nothing from token to token: what attention brought goes. The paper is about decoders, and the norms of
    post-norm encoders bend their layers further, so read the notes before replacing several.

    Costs ranking quality unless distillation follows. Literature: "Your Transformer is Secretly Linear" (arXiv
    2405.12250).
    """

    replace: tuple[NonNegativeInt, ...] | MostLinear
    compensate: Literal["refit", "none"] = "refit"
    n_pairs: PositiveInt = 256

    def needs(self) -> frozenset[Need]:
        return frozenset({"calibration"} if self.replace else ())

    def plan(self, spec: RankerSpec) -> RankerSpec:
        from compressor.ranker.narrowing import linearized

        refuse_quantized(spec, self.verb)
        refuse_sparse(spec, self.verb)
        refuse_token_rules(spec, self.verb)
        if not self.replace:
            return spec
        candidates = _candidates(spec)
        layers = self._chosen_first(spec, candidates)
        if self.compensate == "refit":
            refuse_factorized_outputs(spec, self.verb, "compensate")
        return linearized(spec, layers)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if not self.replace:
            return ranker.changed()
        from compressor.algorithms.calibration import calibration_batches
        from compressor.algorithms.compensation import fitted_apart, refitted
        from compressor.algorithms.linear_layers import linear_start
        from compressor.ranker.narrowing import linearized

        pairs = supply.pairs("calibration", self.n_pairs, per_query=CANDIDATES_OF_A_LIST)
        layers = self._chosen(ranker, pairs, supply)
        spec = linearized(ranker.spec, layers)
        start = ranker.changed(spec=spec, weights=linear_start(ranker.spec, ranker.weights, spec))
        batches: list[CalibrationBatch] = calibration_batches(ranker, pairs)
        fit = refitted if self.compensate == "refit" else fitted_apart
        return start.changed(weights={**start.weights, **fit(ranker.module, start.trainable().eval(), batches)})

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return at_most_its_parameters(result) if self.replace else ()

    def _chosen(self, ranker: Ranker, pairs: Sequence[tuple[str, str]], supply: Supply) -> list[int]:
        """Return the layers to replace; what was measured is noted."""
        from compressor.algorithms.linear_layers import least_harmful, measure_linearity

        trials = _trials(ranker, pairs)
        measured = measure_linearity(trials)
        supply.note("layers", measured)
        if not isinstance(self.replace, MostLinear):
            layers = list(self.replace)
        elif self.replace.by == "linearity":
            missed = sorted(measured, key=lambda found: (found["missed_by_map"], -found["layer"]))
            layers = sorted(found["layer"] for found in missed[: self.replace.layers])
        else:
            layers, steps = least_harmful(trials, self.replace.layers)
            supply.note("choices", steps)
        supply.note("linearized", layers)
        supply.note("score_change", _together(trials, layers))
        return layers

    def _chosen_first(self, spec: RankerSpec, candidates: Sequence[int]) -> Sequence[int]:
        """Return the layers of a list; before anything is measured, the first ones stand for those to be chosen.

        Raises:
            PlanError: the list, or the number, does not fit the ranker.
        """
        allowed = f"layers that cost more than a map does: {', '.join(map(str, candidates)) or 'there is none'}"
        if isinstance(self.replace, MostLinear):
            if self.replace.layers > len(candidates):
                found = f"{self.replace.layers} layers to replace, of a ranker with {len(candidates)} that could be"
                raise PlanError(found, allowed=allowed, setting="replace.layers")
            return candidates[: self.replace.layers]
        n_layers, layers = len(spec.layers), list(self.replace)
        if layers != sorted(set(layers)) or layers[-1] >= n_layers:
            raise PlanError(
                f"{layers} for a ranker of {n_layers} layers",
                allowed=f"ascending layer indices from 0 to {n_layers - 1}, each once",
                setting="replace",
            )
        cheap = [layer for layer in layers if layer not in candidates]
        if cheap:
            found = f"layer {cheap[0]}, which has no more parameters than a map in its place"
            raise PlanError(found, allowed=allowed, setting="replace")
        return layers


def _candidates(spec: RankerSpec) -> list[int]:
    """Return the layers that have more parameters than their map."""
    from compressor.ranker.cost import parameters
    from compressor.ranker.narrowing import linearized

    whole = parameters(spec)
    return [index for index in range(len(spec.layers)) if parameters(linearized(spec, [index])) < whole]


def _trials(ranker: Ranker, pairs: Sequence[tuple[str, str]]) -> Trials:
    """Fit a map for every layer that could have one, and set pairs aside on which to measure them."""
    from compressor.algorithms.calibration import calibration_batches
    from compressor.algorithms.compensation import fitted_apart
    from compressor.algorithms.linear_layers import Trials, linear_start
    from compressor.ranker.narrowing import linearized

    queries = list(dict.fromkeys(query for query, _ in pairs))
    aside = set(queries[::_MEASURED_SHARE])
    fitted_on = [pair for pair in pairs if pair[0] not in aside] or pairs  # of one query alone
    measured_on = [pair for pair in pairs if pair[0] in aside]
    spec = linearized(ranker.spec, _candidates(ranker.spec))
    start = ranker.changed(spec=spec, weights=linear_start(ranker.spec, ranker.weights, spec))
    maps = start.trainable().eval().requires_grad_(False)
    fitted_apart(ranker.module, maps, calibration_batches(ranker, fitted_on))
    return Trials(
        module=ranker.module, maps=maps, batches=calibration_batches(ranker, measured_on),
        queries=[query for query, _ in measured_on],
    )  # fmt: skip


def _together(trials: Trials, layers: Sequence[int]) -> dict[str, float]:
    """Return what all the chosen maps do to scores before any refitting, and what it does to leave the layers out."""
    import torch

    with torch.inference_mode():
        reference = trials.scores([], [None])[None]
        mapped = trials.scores(layers, [None])[None]
        removed = trials.scores_without(layers)
    return {"of_maps": trials.change(mapped, reference), "of_removal": trials.change(removed, reference)}
