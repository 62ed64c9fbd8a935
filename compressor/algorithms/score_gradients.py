"""How scores answer to small changes inside a ranker, one gradient for each candidate, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.algorithms.calibration import CalibrationBatch
from compressor.progress import progress
from compressor.ranker.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class ScoreGradients:
    """Gradients of the scores of n pairs.

    Attributes:
        scores: float32 ``[n]``.
        heads: per layer ``[n, heads]``, of a factor on each head's context.
        neurons: per layer ``[n, ffn width]``, of a factor on each neuron's activation.
        attention_outputs, ffn_outputs: per layer ``[width, width]``: the sum over tokens, the mean over pairs, of the
            products of the gradient of what the block adds to the residual stream. An error there of covariance E,
            independent from token to token, moves scores by a variance of ``sum(products * E)``.
    """

    scores: Tensor
    heads: list[Tensor]
    neurons: list[Tensor]
    attention_outputs: list[Tensor]
    ffn_outputs: list[Tensor]


def measure_score_gradients(module: Encoder, batches: Sequence[CalibrationBatch]) -> ScoreGradients:
    """Measure by one backward pass per batch: rows do not meet, so the gradient of a sum of scores is that of each.

    Args:
        module: a cross-encoder; its parameters are not touched.
        batches: the calibration set.
    """
    n_pairs = sum(len(batch.rows) for batch in batches)
    layers: list[Any] = list(module.layers)
    scores = torch.empty(n_pairs)
    heads = [torch.empty(n_pairs, layer.spec.heads) for layer in layers]
    neurons = [torch.empty(n_pairs, layer.spec.ffn_width) for layer in layers]
    products = {kind: [torch.zeros(module.spec.width, module.spec.width) for _ in layers] for kind in _BLOCKS}
    with progress("Measuring gradients", len(batches)) as advance:
        for batch in batches:
            logits, read, written = _forward(module, batch)
            flat = [*read.values(), *written.values()]
            gradients = dict(zip([*read, *written], torch.autograd.grad(logits.sum(), flat), strict=True))
            scores[batch.rows] = logits.detach()[:, 0]
            row_of = torch.div(batch.layout.to_packed, batch.layout.mask.shape[1], rounding_mode="floor")
            for index, layer in enumerate(layers):
                for kind, found in (("attention", heads), ("ffn", neurons)):
                    part = (index, kind, "read")
                    if part not in gradients:
                        continue
                    if found[index].shape[1]:  # a linear map reads no neurons
                        by_token = read[part].detach() * gradients[part]
                        if kind == "attention":
                            by_token = by_token.unflatten(1, (layer.spec.heads, -1)).sum(dim=2)
                        sums = torch.zeros(len(batch.rows), by_token.shape[1]).index_add_(0, row_of, by_token)
                        found[index][batch.rows] = sums
                    gradient = gradients[index, kind, "written"]
                    products[kind][index] += gradient.T @ gradient / n_pairs
            advance()
    return ScoreGradients(
        scores=scores, heads=heads, neurons=neurons, attention_outputs=products["attention"],
        ffn_outputs=products["ffn"],
    )  # fmt: skip


_BLOCKS = ("attention", "ffn")
_Values = dict[tuple[int, str, str], Tensor]


def _forward(module: Encoder, batch: CalibrationBatch) -> tuple[Tensor, _Values, _Values]:
    """Return logits, and what the output matrix of each block reads and writes, all with gradients."""
    read: _Values = {}
    written: _Values = {}
    layers: Iterable[Any] = module.layers
    with torch.enable_grad(), ExitStack() as hooks:
        for index, layer in enumerate(layers):
            if layer.attention:
                hooks.enter_context(_kept(layer.attention.output, read, written, (index, "attention")))
            if layer.ffn:
                hooks.enter_context(_kept(layer.ffn.down, read, written, (index, "ffn")))
        # The batch's own layout was made where nothing is recorded.
        layout = module.lay_out(batch.inputs["input_ids"], batch.inputs["attention_mask"])
        values = batch.embedded.clone().requires_grad_()
        for layer in layers:
            values = layer(values, layout)
        logits = module.head(module.pool(values, layout, first_only=False))
    return logits, read, written


@contextmanager
def _kept(part: Any, read: _Values, written: _Values, name: tuple[int, str]) -> Iterator[None]:
    def keep(_: object, inputs: tuple[Tensor], result: Tensor) -> None:
        read[*name, "read"], written[*name, "written"] = inputs[0], result

    hook = part.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def numbered(queries: Sequence[str]) -> tuple[Tensor, int]:
    """Return the number of each pair's query, int64 ``[n]``, by first occurrence, and how many queries there are."""
    numbers = {query: number for number, query in enumerate(dict.fromkeys(queries))}
    return torch.tensor([numbers[query] for query in queries]), len(numbers)


def rank_centered(
    values: Tensor, scores: Tensor, queries: Sequence[str], temperature: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return gradients less their mean within each query, and each candidate's weight.

    What moves all candidates of a query alike cannot change their order. With a temperature, means are weighted by the
    softmax of the query's scores, and so is what remains: the Fisher information of a listwise softmax, which looks at
    the top of the list alone. Without one, all candidates count alike.

    Args:
        values: ``[n, d]``.
        scores: ``[n]``.
        queries: the query of each.
        temperature: of the softmax.

    Returns:
        ``[n, d]`` and weights ``[n]`` that add up to 1.
    """
    group, n_queries = numbered(queries)
    shares = shares_in_lists(scores, group, n_queries, temperature)
    means = torch.zeros(n_queries, values.shape[1]).index_add_(0, group, shares[:, None] * values)
    return values - means[group], shares / n_queries


def shares_in_lists(scores: Tensor, group: Tensor, n_queries: int, temperature: float | None = None) -> Tensor:
    """Return how much each candidate counts in its list, ``[n]``, 1 for each list: alike, or by a softmax of scores.

    Args:
        scores: ``[n]``.
        group: the number of each candidate's list, int64 ``[n]``.
        n_queries: how many lists there are.
        temperature: of the softmax.
    """
    shares = torch.ones(len(scores))
    if temperature is not None:
        highest = torch.full((n_queries,), -torch.inf).scatter_reduce(0, group, scores, "amax")
        shares = ((scores - highest[group]) / temperature).exp()
    return shares / torch.zeros(n_queries).index_add_(0, group, shares)[group]
