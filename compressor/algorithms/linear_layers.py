"""How linear each layer is, and which layers linear maps can stand for ("Your Transformer is Secretly Linear").

The paper (arXiv 2405.12250) scores a layer by the share of the variance of its output that a linear map of its input
explains. That is near one wherever the residual dominates, so what the layer adds is scored, too, and what scores lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from compressor.algorithms.calibration import CalibrationBatch, head_result, scores_of
from compressor.algorithms.importance import score_change
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import LinearMapSpec, RankerSpec


class LayerLinearity(TypedDict):
    """What a map in the place of one layer does, and what it does to leave the layer out, on pairs of their own.

    ``linearity``: the share of the variance of the layer's output that the map explains.
    ``missed_by_map``, ``missed_by_removal``: mean squares of what each lacks of the layer's output, as shares of the
    variance of the layer's update (its output less its input).
    ``score_change_of_map``, ``score_change_of_removal``: root mean squares within lists, in logits.
    """

    layer: int
    linearity: float
    missed_by_map: float
    missed_by_removal: float
    score_change_of_map: float
    score_change_of_removal: float


class Replacement(TypedDict):
    """One layer's replacement by its map: which it was, and the score change of every layer that could have been it."""

    replaced: int
    score_change: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What maps are tried on.

    Attributes:
        module: the ranker.
        maps: one of as many layers, with maps in the places of some of them.
        batches: calibration texts, not those that the maps were fitted on.
        queries: the query of each pair.
    """

    module: Encoder
    maps: Encoder
    batches: Sequence[CalibrationBatch]
    queries: Sequence[str]

    @property
    def candidates(self) -> list[int]:
        """The layers that have a map."""
        pairs = zip(self.module.spec.layers, self.maps.spec.layers, strict=True)
        return [index for index, (layer, other) in enumerate(pairs) if layer != other]

    def layers(self, replaced: Sequence[int]) -> list[Any]:
        """Return the ranker's layers, with maps in some places."""
        pairs: Any = zip(self.module.layers, self.maps.layers, strict=True)
        return [other if index in replaced else layer for index, (layer, other) in enumerate(pairs)]

    def scores(
        self, replaced: Sequence[int], trials: Sequence[int | None], *, removes: bool = False
    ) -> dict[int | None, np.ndarray]:
        """Return the scores with some layers replaced and, in turn, each trial layer too (None: no other).

        With ``removes``, the trial layer is left out instead.
        """
        maps: Any = self.maps.layers
        layers = self.layers(replaced)
        results: dict[int | None, list[np.ndarray]] = {trial: [] for trial in trials}
        for batch in self.batches:
            for index, values in enumerate(_states(layers, batch)):
                trial = index if index < len(layers) else None
                if trial is None and None in results:
                    results[None].append(head_result(self.module, batch, values))
                elif trial is not None and trial in results:
                    rest = [*([] if removes else [maps[trial]]), *layers[trial + 1 :]]
                    results[trial].append(head_result(self.module, batch, _run(rest, batch, values)))
        return {trial: scores_of(self.batches, found, len(self.queries)) for trial, found in results.items()}

    def scores_without(self, removed: Sequence[int]) -> np.ndarray:
        """Return the scores with some layers left out."""
        layers = [layer for index, layer in enumerate(self.layers([])) if index not in removed]
        results = [head_result(self.module, batch, _run(layers, batch, batch.embedded)) for batch in self.batches]
        return scores_of(self.batches, results, len(self.queries))

    def change(self, scores: np.ndarray, reference: np.ndarray) -> float:
        return round(score_change(scores, reference, self.queries), 6)


def linear_start(spec: RankerSpec, weights: Mapping[str, Tensor], linear: RankerSpec) -> dict[str, Tensor]:
    """Return weights of a shape in which maps stand for some layers: their matrices zero, all else as it was.

    Args:
        spec: the shape before.
        weights: its weights.
        linear: what `compressor.ranker.narrowing.linearized` made of it.
    """
    result = dict(weights)
    for index, (before, after) in enumerate(zip(spec.layers, linear.layers, strict=True)):
        if before == after or not isinstance(after.ffn, LinearMapSpec):
            continue
        own = f"layers.{index}."
        for name in [name for name in result if name.startswith(own) and not name.startswith(f"{own}exit.")]:
            del result[name]
        down = after.ffn.down
        result[f"{own}ffn.down.weight"] = torch.zeros(down.outputs, down.inputs)
        result[f"{own}ffn.down.bias"] = torch.zeros(down.outputs)
        norm = "ffn_norm" if before.norm_placement == "post" or not before.attention else "attention_norm"
        for kind in ("weight", "bias"):
            if (tensor := weights.get(f"{own}{norm}.{kind}")) is not None:
                result[f"{own}ffn_norm.{kind}"] = tensor
    return result


def measure_linearity(trials: Trials) -> list[LayerLinearity]:
    """Measure every layer that has a map, each as if it were the only one to go."""
    candidates = trials.candidates
    with torch.inference_mode(), progress("Measuring linearity", 2 * len(candidates) + 1) as advance:
        variances = _variances(trials)
        advance()
        mapped = trials.scores([], [None, *candidates])
        reference = mapped[None]
        advance(len(candidates))
        removed = trials.scores([], candidates, removes=True)
        advance(len(candidates))
        found: list[LayerLinearity] = []
        for layer in candidates:
            sums = variances[layer]
            update = max(sums.variance("update"), float(np.finfo(np.float64).tiny))
            output = max(sums.variance("output"), float(np.finfo(np.float64).tiny))
            found.append(
                {
                    "layer": layer,
                    "linearity": round(1 - sums.square("error") / output, 4),
                    "missed_by_map": round(sums.square("error") / update, 4),
                    "missed_by_removal": round(sums.square("update") / update, 4),
                    "score_change_of_map": trials.change(mapped[layer], reference),
                    "score_change_of_removal": trials.change(removed[layer], reference),
                }
            )
    return found


def least_harmful(trials: Trials, count: int) -> tuple[list[int], list[Replacement]]:
    """Choose layers for maps one at a time: the one whose map changes scores least goes first, the rest anew.

    Returns:
        The layers chosen, ascending, and one record for each choice.
    """
    chosen: list[int] = []
    steps: list[Replacement] = []
    left = trials.candidates
    with torch.inference_mode(), progress("Choosing layers for maps", count) as advance:
        reference = trials.scores([], [None])[None]
        while len(chosen) < count:
            scores = trials.scores(chosen, left)
            changes = {layer: trials.change(scores[layer], reference) for layer in left}
            least = min(left, key=lambda layer: (changes[layer], -layer))
            chosen, left = [*chosen, least], [layer for layer in left if layer != least]
            steps.append({"replaced": least, "score_change": {str(k): v for k, v in changes.items()}})
            advance()
    return sorted(chosen), steps


@dataclass
class _Sums:
    """Sums of vectors and of their squared lengths, by name."""

    n: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)

    def add(self, **values: Tensor) -> None:
        self.n += len(next(iter(values.values())))
        for name, found in values.items():
            exact = found.double()
            self.totals[name] = self.totals.get(name, 0) + exact.sum(dim=0)
            self.squares[name] = self.squares.get(name, 0.0) + float(exact.square().sum())

    def square(self, name: str) -> float:
        """Return the mean squared length."""
        return self.squares[name] / self.n

    def variance(self, name: str) -> float:
        """Return the mean squared distance from the mean."""
        return self.square(name) - float((self.totals[name] / self.n).square().sum())


def _variances(trials: Trials) -> dict[int, _Sums]:
    found = {layer: _Sums() for layer in trials.candidates}
    maps: Any = trials.maps.layers
    for batch in trials.batches:
        states = list(_states(trials.layers([]), batch))
        for layer, sums in found.items():
            before, output = states[layer], states[layer + 1]
            sums.add(output=output, update=output - before, error=maps[layer](before, batch.layout) - output)
    return found


def _states(layers: Sequence[Any], batch: CalibrationBatch) -> Iterator[Tensor]:
    """Yield what goes into each layer, then what comes out of the last."""
    values = batch.embedded
    yield values
    for layer in layers:
        values = layer(values, batch.layout)
        yield values


def _run(layers: Sequence[Any], batch: CalibrationBatch, values: Tensor) -> Tensor:
    for layer in layers:
        values = layer(values, batch.layout)
    return values
