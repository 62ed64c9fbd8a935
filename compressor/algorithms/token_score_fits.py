"""Learned scores of tokens: fitted to what the ranker's last attention goes by, which only the whole ranker knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.algorithms.linear_fits import Moments, prediction
from compressor.algorithms.token_thresholds import traces
from compressor.errors import RunError
from compressor.ranker.ranker import Ranker
from compressor.ranker.token_scores import Reached, attention_of_last, standardized
from compressor.ranker.tokens import RowParts, TokenLayout
from compressor.ranker.trace import Trace

_LEAST_SHARE = 1e-4  # of the mean: shares below are not told apart


@dataclass(frozen=True, kw_only=True)
class FittedScorer:
    """A fitted learned scorer of one layer.

    Attributes:
        weights: its vectors ``[W]`` by the names that they have in the ranker.
        explained: which share it explains of what it is fitted to, within rows, on the pairs of the fit.
    """

    weights: Mapping[str, Tensor]
    explained: float


def fitted_scorer(ranker: Ranker, pairs: Sequence[tuple[str, str]], layer: int) -> FittedScorer:
    """Return a learned scorer whose order of a document's tokens is that of the last attention, as far as it can.

    Early attention is a bad judge of tokens: the order that counts is that of the last layer, which the first ones are
    to foresee (ToP's ranking distillation, arXiv 2306.14393). Scores are linear in what is learned, so no steps are
    needed: ridge regression of the logarithm of what the first token pays to each document token in the last layer with
    attention, less its mean over the document, since scores compare tokens of one row alone. Token rules before the
    layer act; those from it on do not, as what goes has no attention to be told.

    Args:
        ranker: has a rule with a learned scorer behind the layer; its vectors are not read.
        pairs: query and document texts.
        layer: one below a layer with attention.

    Raises:
        RunError: no document of the pairs has two tokens.
    """
    moments = Moments()
    open_behind = {index: None for index in ranker.spec.rule_layers if index >= layer}
    for input_ids, trace in traces(ranker, pairs, open_behind, f"Fitting a scorer behind layer {layer}"):
        with torch.inference_mode():
            samples = _samples(ranker, trace, input_ids, layer)
        if len(samples):
            moments.add(samples)
    if not moments.n:
        raise RunError("no scorer can be fitted: no document of the calibration pairs has two tokens")
    width = ranker.spec.width
    factors, _ = prediction(moments, torch.arange(2 * width), centered=True)
    solution, second = factors[-1].double(), moments.second(centered=True)
    found = 2 * solution @ second[:-1, -1] - solution @ second[:-1, :-1] @ solution
    key = f"layers.{layer}.token_rule.scorer"
    return FittedScorer(
        weights={f"{key}.direction": factors[-1, :width].clone(), f"{key}.match": factors[-1, width:].clone()},
        explained=(found / second[-1, -1].clamp(min=torch.finfo(torch.float32).tiny)).item(),
    )


def _samples(ranker: Ranker, trace: Trace, input_ids: Tensor, layer: int) -> Tensor:
    """Return what predicts and what is told, ``[n, 2 W + 1]``, of document tokens, each less its row's mean."""
    layers: Any = ranker.module.layers
    layout, parts = trace.layouts[layer + 1], _parts(ranker, trace, input_ids, layer)
    judged = Reached(
        layer=layers[layer], read=trace.states[layer], given=trace.states[layer + 1], layout=layout, parts=parts
    )
    states, asking = standardized(judged)
    shares = attention_of_last(ranker.module, trace, parts)
    told = shares.clamp(min=_LEAST_SHARE).log()[:, :, None]
    predicting = torch.cat([states, states * asking[:, None], told], dim=2)
    return _less_row_means(layout.pack(predicting)[parts.document], layout, parts)


def _parts(ranker: Ranker, trace: Trace, input_ids: Tensor, layer: int) -> RowParts:
    """Return what the tokens are that stand behind a layer, before its own rule."""
    separator = ranker.spec.separator_id
    if separator is None:
        raise TypeError("a ranker without a separator has no documents")
    parts = RowParts.of(trace.layouts[0], input_ids, separator)
    for index, reduction in sorted(trace.reductions.items()):
        parts = parts.of_kept(reduction.kept) if index < layer else parts
    return parts


def _less_row_means(values: Tensor, layout: TokenLayout, parts: RowParts) -> Tensor:
    """Return values of document tokens ``[n, d]`` less their row's mean, without rows of one token."""
    n_rows, n_columns = layout.mask.shape
    rows = torch.div(layout.to_packed, n_columns, rounding_mode="floor")[parts.document]
    counts = torch.bincount(rows, minlength=n_rows)
    sums = values.new_zeros(n_rows, values.shape[1]).index_add(0, rows, values)
    centered = values - (sums / counts.clamp(min=1)[:, None])[rows]
    return centered[counts[rows] > 1]
