"""What scores lose when document tokens go behind one layer: measured for several shares, foretold for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.algorithms.calibration import CalibrationBatch, calibration_batches, run_layers, scores_of
from compressor.algorithms.score_shifts import ScoreShift, list_places, score_shift
from compressor.algorithms.stored_shifts import StoredShifts
from compressor.algorithms.token_schedules import share_left
from compressor.errors import RunError
from compressor.progress import progress
from compressor.ranker.encoder import Encoder, expected_shapes
from compressor.ranker.forms import with_token_rules
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import RankerSpec, TokenRule
from compressor.ranker.token_scores import Reached
from compressor.ranker.tokens import RowParts

Rules = Mapping[int, TokenRule]


@dataclass(frozen=True, kw_only=True)
class TokenDamage:
    """How far scores move, squared and within lists, when a share of the documents' tokens is left behind a layer.

    Of several cuts damages are taken to add up, as squares of small unrelated errors do (the measure is that of
    `compressor.algorithms.sensitivity`), and a cut to cost what cutting further at its place costs: from share a to b
    ``D(b) - D(a)``, both measured there alone on whole documents. So two cuts where the second adds nothing lose what
    the first loses. Whoever chooses by it measures what it chose.

    Attributes:
        measured: for each layer, by the share that was left, the shift of scores.
    """

    measured: Mapping[int, Mapping[float, ScoreShift]]

    def of(self, layer: int, left: float) -> float:
        """Return the damage when a share of the document is left; less left never does less: what says so is noise."""
        shares = np.array([*sorted(self.measured[layer]), 1.0])
        squared = np.array([*(self.measured[layer][share].squared for share in shares[:-1]), 0.0])
        rising = np.maximum.accumulate(squared[::-1])[::-1]
        return float(np.interp(left, shares, rising))

    def loss(self, layer: int, before: float, after: float) -> float:
        """Return what is lost by cutting from one share of the document to another."""
        return self.of(layer, after) - self.of(layer, before)

    def foretold(self, rules: Rules) -> float:
        """Return what is lost by several rules."""
        left, total = 1.0, 0.0
        for layer in sorted(rules):
            after = left * share_left(rules[layer])
            total, left = total + self.loss(layer, left, after), after
        return total


def measure_token_damage(
    ranker: Ranker, pairs: Sequence[tuple[str, str]], trials: Mapping[int, Sequence[TokenRule]],
    *, store: Path | None = None,
) -> TokenDamage:  # fmt: skip
    """Return how far the scores of some lists move with each rule alone.

    What stands below a rule has not changed, so each layer is run once, and a trial from its own layer on.

    Args:
        ranker: has rules of these kinds behind these layers, whose scorers judge; they do not act.
        pairs: (query, document) texts; pairs of a query form its list, and one has two or more.
        trials: rules to try behind a layer, by layer.
        store: a file that takes each measurement at once, so that a killed run goes on from it.
    """
    separator = ranker.spec.separator_id
    if separator is None:
        raise RunError("a ranker without a separator has no documents to cut")
    plain, module = without_rules(ranker), ranker.module
    batches = calibration_batches(plain, pairs)
    lists = list_places([query for query, _ in pairs])
    written = {str(layer): [rule.model_dump(mode="json") for rule in rules] for layer, rules in trials.items()}
    found = StoredShifts.of(store, [ranker.fingerprint, list(map(list, pairs)), written])
    names = {(layer, rule): f"{layer}: {share_left(rule):.6g}" for layer, rules in trials.items() for rule in rules}
    parts = [RowParts.of(batch.layout, batch.inputs["input_ids"], separator) for batch in batches]
    states = [batch.embedded for batch in batches]
    exact = plain.score(pairs)
    with torch.inference_mode(), progress("Cutting tokens behind one layer at a time", len(names)) as advance:
        for layer in range(max(trials, default=-1) + 1):
            below, states = states, [run_layers(module, *each, [layer]) for each in zip(batches, states, strict=True)]
            for rule in trials.get(layer, ()):
                if (name := names[layer, rule]) not in found.shifts:
                    results = [
                        _result(module, layer, rule, *each)
                        for each in zip(batches, parts, below, states, strict=True)
                    ]  # fmt: skip
                    found.add(name, score_shift(scores_of(batches, results, len(pairs)), exact, lists))
                advance()
    return TokenDamage(
        measured={
            layer: {share_left(rule): found.shifts[names[layer, rule]] for rule in rules}
            for layer, rules in trials.items()
        }
    )


def measure_together(
    ranker: Ranker, pairs: Sequence[tuple[str, str]], choices: Sequence[Rules], *, store: Path | None = None
) -> list[ScoreShift]:
    """Return how far the scores of some lists move with all rules of a choice at work.

    Args:
        ranker: as of `measure_token_damage`.
        pairs: likewise.
        choices: rules by layer.
        store: likewise, another file.
    """
    lists, exact = list_places([query for query, _ in pairs]), without_rules(ranker).score(pairs)
    names = [", ".join(f"{layer}: {rules[layer].model_dump_json()}" for layer in sorted(rules)) for rules in choices]
    found = StoredShifts.of(store, [ranker.fingerprint, list(map(list, pairs))])
    for name, rules in zip(names, choices, strict=True):
        if name not in found.shifts:
            found.add(name, score_shift(with_rules_alone(ranker, rules).score(pairs), exact, lists))
    return [found.shifts[name] for name in names]


def without_rules(ranker: Ranker) -> Ranker:
    """Return the ranker that lets no token go."""
    return with_rules_alone(ranker, {})


def with_rules_alone(ranker: Ranker, rules: Rules) -> Ranker:
    """Return the ranker with these rules and no other, each of the kind that stands behind its layer."""
    spec = _bare(ranker.spec)
    spec = with_token_rules(spec, rules).changed(separator_id=ranker.spec.separator_id if rules else None)
    return ranker.changed(spec=spec, weights={name: ranker.weights[name] for name in expected_shapes(spec)})


def _bare(spec: RankerSpec) -> RankerSpec:
    return spec.changed(layers=tuple(layer.changed(token_rule=None) for layer in spec.layers))


def _result(
    module: Encoder, layer: int, rule: TokenRule, batch: CalibrationBatch, parts: RowParts, read: Tensor, given: Tensor
) -> np.ndarray:
    """Return the head's result ``[B, 1]`` when one rule acts behind a layer, from the states that it read and gave."""
    layers: Any = module.layers
    reached = Reached(layer=layers[layer], read=read, given=given, layout=batch.layout, parts=parts)
    reduction = layers[layer].token_rule(reached, rule)
    values, layout = reduction.states(given), reduction.layout
    for index in range(layer + 1, len(layers)):
        first_only = index == len(layers) - 1 and module.spec.reads_first_token_only
        values = layers[index](values, layout, first_only)
    return module.head(module.pool(values, layout, module.spec.reads_first_token_only)).numpy()
