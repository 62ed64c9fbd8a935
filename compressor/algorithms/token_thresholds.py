"""Thresholds of token rules, set so that given shares of document tokens stay on calibration pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from compressor.errors import RunError
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.ranker import BATCH_TOKENS, Ranker
from compressor.ranker.spec import KeepThresholdRule, TokenRule
from compressor.ranker.sub_network import SubNetwork, running
from compressor.ranker.trace import Trace
from compressor.runtime.batching import padded, token_budget_batches

_LEAST, _MOST = 0.001, 0.9999  # shares at whose powers a budget is looked for
_STEPS = 50  # of a bisection


def thresholds_for_shares(
    ranker: Ranker, pairs: Sequence[tuple[str, str]], shares: Mapping[int, float]
) -> dict[int, KeepThresholdRule]:
    """Return rules whose thresholds let shares of the document tokens of some pairs stay, by layer.

    The layers' thresholds are set one after another, each on the tokens that those before it leave. Shares are of the
    tokens of all pairs together, as costs are: of a document that says little to its query fewer stay.

    Args:
        ranker: has threshold rules behind the layers, whose scorers judge; their thresholds are not read.
        pairs: query and document texts.
        shares: of the document tokens that reach each rule, from 0 to 1, by layer. What stayed is written in the rules,
            which differs a little where scores are equal, or a row's best token stays below the threshold.

    Raises:
        RunError: the pairs have no document tokens.
    """
    rules: dict[int, KeepThresholdRule] = {}
    for layer in sorted(shares):
        own = ranker.spec.layers[layer].token_rule
        if not isinstance(own, KeepThresholdRule):
            raise TypeError(f"layer {layer} has no threshold")
        acting = {**dict.fromkeys(shares), **rules, layer: own.changed(threshold=0.0)}
        judged = torch.cat(
            [
                _judged(trace, layer)
                for _, trace in traces(ranker, pairs, acting, f"Judging tokens behind layer {layer}")
            ]
        )
        if not len(judged):
            raise RunError("no threshold can be set: the calibration pairs have no document tokens")
        threshold = _between(judged, math.ceil(shares[layer] * len(judged)))
        rules[layer] = own.changed(threshold=threshold, share=max(_LEAST, shares[layer]))
    return {layer: rules[layer].changed(share=share) for layer, share in kept_shares(ranker, pairs, rules).items()}


def kept_shares(
    ranker: Ranker, pairs: Sequence[tuple[str, str]], rules: Mapping[int, KeepThresholdRule]
) -> dict[int, float]:
    """Return which share of the document tokens that reach each rule stays, over some pairs, by layer."""
    reached, gone = dict.fromkeys(sorted(rules), 0), dict.fromkeys(sorted(rules), 0)
    for _, trace in traces(ranker, pairs, rules, "Counting tokens that stay"):
        for layer in reached:
            reached[layer] += len(_judged(trace, layer))
            gone[layer] += len(trace.layouts[layer + 1].to_packed) - len(trace.reductions[layer].kept)
    return {layer: max(_LEAST, round(1 - gone[layer] / max(1, n), 4)) for layer, n in reached.items()}


def token_layers(shares: Mapping[int, float], n_layers: int) -> float:
    """Return the share of document tokens that the layers behind the first rule read, in their mean."""
    total, left, first = 0.0, 1.0, min(shares)
    for layer in range(first, n_layers - 1):
        left *= shares.get(layer, 1.0)
        total += left
    return total / (n_layers - 1 - first)


def shares_at_budget(shares: Mapping[int, float], budget: float, n_layers: int) -> dict[int, float]:
    """Return one power of all shares that gives a `token_layers` of ``budget``: which are smaller stay smaller.

    Args:
        shares: by layer.
        budget: above 0 and below 1.
        n_layers: the ranker's.
    """
    bounded = {layer: min(_MOST, max(_LEAST, share)) for layer, share in shares.items()}
    low, high = 0.0, math.log(_LEAST) / math.log(_MOST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = token_layers({layer: share**middle for layer, share in bounded.items()}, n_layers)
        low, high = (middle, high) if found > budget else (low, middle)
    return {layer: max(_LEAST, share**high) for layer, share in bounded.items()}


def traces(
    ranker: Ranker, pairs: Sequence[tuple[str, str]], rules: Mapping[int, TokenRule | None], text: str
) -> Iterator[tuple[Tensor, Trace]]:
    """Yield the ids of batches of pairs, int64 ``[B, S]``, and what becomes of them with other token rules.

    Args:
        ranker: in evaluation mode.
        pairs: query and document texts.
        rules: by layer, those in the place of its own; None for none.
        text: what a progress bar says.
    """
    module: Encoder = ranker.module
    encoded = ranker.tokenizer.encode_pairs(pairs)
    with progress(text, len(pairs)) as advance:
        for rows in token_budget_batches(encoded.lengths, BATCH_TOKENS):
            inputs = {name: torch.from_numpy(one) for name, one in padded(encoded, rows, ranker.spec.pad_id).items()}
            with torch.inference_mode(), running(module, SubNetwork(token_rules=rules)):
                trace = module.trace(**inputs)
            yield inputs["input_ids"], trace
            advance(len(rows))


def _judged(trace: Trace, layer: int) -> Tensor:
    judged = trace.reductions[layer].judged
    if judged is None:
        raise TypeError(f"behind layer {layer} nothing is held against a threshold")
    return judged


def _between(scores: Tensor, n_kept: int) -> float:
    """Return a threshold that ``n_kept`` scores reach, in the middle between the least of them and the next."""
    ranked = scores.sort(descending=True).values
    last = ranked[max(1, n_kept) - 1].item()
    return (last + ranked[n_kept].item()) / 2 if 0 < n_kept < len(ranked) else last
