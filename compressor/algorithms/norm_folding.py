"""Weights of a pre-norm ranker whose norms gave their means, gains and biases to the linears around them.

All in double precision, rounded once: Pre-LN and Pre-RMSNorm transformers are equivalent (arXiv 2305.14858).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.ranker.norm_folding import norms_a_table, stream_norms, stream_writers
from compressor.ranker.spec import NormSpec, RankerSpec

MOST_AMPLIFIED = 100.0


def folded_norm_weights(
    spec: RankerSpec, weights: Mapping[str, Tensor], folded: RankerSpec, *, to_rms: bool, fold_gains: bool
) -> dict[str, Tensor]:
    """Return the weights of ``folded``, which score as before up to rounding.

    Args:
        spec: the shape before.
        weights: its weights.
        folded: what `compressor.ranker.norm_folding.with_folded_norms` made of it.
        to_rms, fold_gains: as there.
    """
    result = dict(weights)
    norms = {reader.name: reader.norm for reader in stream_norms(folded)}
    for reader in stream_norms(spec):
        after = norms[reader.name]
        if reader.norm is None or after is None:
            continue
        if reader.norm.bias and not after.bias:
            bias = result.pop(f"{reader.name}.bias").double()
            for linear in reader.linears:
                _add_constant(result, linear, bias)
        if fold_gains and reader.linears:
            gain = result[f"{reader.name}.weight"]
            for linear in reader.linears:
                name = reading_matrix(result, linear)
                _set(result, name, result[name].double() * gain.double())
            result[f"{reader.name}.weight"] = torch.ones_like(gain)
    if to_rms:
        _center(spec, weights, result)
    return result


def mean_of_centered(gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return c ``[d]`` and k with ``mean(x) = k - c · (x - mean(x))`` for every x that a layer norm gives.

    What a layer norm gives before its gain and bias sums up to zero. That makes the mean of what it gives behind them a
    function of the rest, which no other norm's result has.

    Args:
        gain: ``[d]`` of the norm.
        bias: ``[d]`` of the norm.
    """
    gain, bias = gain.double(), bias.double()
    is_zero = gain == 0
    shares = is_zero.double() if is_zero.any() else 1 / gain
    shares = shares / shares.sum()
    return shares - shares.mean(), shares @ bias


def amplification(gain: Tensor) -> float:
    """Return by how much `mean_of_centered` makes rounding larger, beside that of the typical entry."""
    factors, _ = mean_of_centered(gain, torch.zeros_like(gain))
    return float(factors.norm() * len(factors) ** 0.5)


def _center(spec: RankerSpec, weights: Mapping[str, Tensor], result: dict[str, Tensor]) -> None:
    """Take the mean out of all that writes the stream, and out of what reads it without a norm, in place."""
    embeddings = spec.embeddings
    if embeddings.norm and norms_a_table(embeddings):
        gain = weights["embeddings.norm.weight"].double()
        bias = weights["embeddings.norm.bias"].double() if embeddings.norm.bias else torch.zeros_like(gain)
        factors, constant = mean_of_centered(gain, bias)
        for reader in stream_norms(spec):
            for linear in reader.linears if reader.norm is None else ():
                if embeddings.norm.bias:
                    _add_constant(result, linear, constant.expand(len(gain)))
                name = reading_matrix(result, linear)
                read = result[name].double()
                _set(result, name, read - torch.outer(read.sum(dim=1), factors))
        rows = _normed(weights["embeddings.tokens.weight"].double(), embeddings.norm, gain, bias)
        result["embeddings.tokens.weight"] = rows.float()
        for kind in ("weight", "bias"):
            result.pop(f"embeddings.norm.{kind}", None)
    if not embeddings.project:
        for table in ("tokens", "positions", "segments"):
            if (name := f"embeddings.{table}.weight") in result:
                rows = result[name].double()
                _set(result, name, rows - rows.mean(dim=1, keepdim=True))
    for linear in stream_writers(spec):
        name = f"{linear}.weight" if f"{linear}.weight" in result else f"{linear}.up"
        for part in (name, f"{linear}.bias"):
            if part in result:
                written = result[part].double()
                _set(result, part, written - written.mean(dim=0))


def _normed(rows: Tensor, norm: NormSpec, gain: Tensor, bias: Tensor) -> Tensor:
    if norm.kind == "rms":
        return F.rms_norm(rows, (rows.shape[1],), gain, eps=norm.epsilon)
    return F.layer_norm(rows, (rows.shape[1],), gain, bias, eps=norm.epsilon)


def reading_matrix(weights: Mapping[str, Tensor], linear: str) -> str:
    """Return the name of the matrix with which a linear reads; of a low-rank one it is `down`."""
    return f"{linear}.weight" if f"{linear}.weight" in weights else f"{linear}.down"


def _add_constant(weights: dict[str, Tensor], linear: str, values: Tensor) -> None:
    """Have a linear read so much more, by its bias; it gets one if it had none."""
    more = weights[reading_matrix(weights, linear)].double() @ values
    if f"{linear}.up" in weights:
        more = weights[f"{linear}.up"].double() @ more
    name = f"{linear}.bias"
    _set(weights, name, weights[name].double() + more if name in weights else more)


def _set(weights: dict[str, Tensor], name: str, values: Tensor) -> None:
    weights[name] = values.float().contiguous()
