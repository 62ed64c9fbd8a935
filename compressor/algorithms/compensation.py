"""Making up for cut heads and neurons without training: scales of those that stay, or whole new output matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compressor.algorithms.calibration import CalibrationBatch
from compressor.algorithms.folding import Inputs
from compressor.algorithms.linear_fits import Moments, prediction
from compressor.algorithms.subcloning import Kept
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import LayerSpec

MOST_SCALE = 10.0  # a larger one fits noise


def rescaled(
    weights: Mapping[str, Tensor], kept: Kept, layers: Sequence[LayerSpec], inputs: Inputs
) -> dict[str, Tensor]:
    """Return output matrices whose heads and neurons are scaled so that the block's output changes least.

    One factor for each unit that stays, by damped least squares (Kwon et al., arXiv 2204.09656, stage 3). As there, all
    is left as it is where a factor is larger than 10.

    Args:
        weights: of the whole ranker.
        kept: which units stay.
        layers: its layers.
        inputs: what its linears read.

    Returns:
        By name, the whole matrices with the columns of kept units scaled.
    """
    scaled: dict[str, Tensor] = {}
    for index, layer in enumerate(layers):
        for part, group, units in (
            ("attention.output", layer.attention.head_width, kept.heads[index]),
            ("ffn.down", 1, kept.neurons[index]),
        ):
            name = f"layers.{index}.{part}"
            weight = weights[f"{name}.weight"]
            # Not the covariance: the bias stays as it is, so what is cut takes its constant part with it.
            products = (weight.double().T @ weight.double()) * inputs[name].second(centered=False)
            n_units = len(products) // group
            by_unit = products.view(n_units, group, n_units, group).sum(dim=(1, 3))
            among = by_unit[units][:, units]
            open_part = by_unit[units].sum(dim=1) - among.sum(dim=1)
            damping = among.diagonal().mean() * torch.eye(len(units), dtype=among.dtype)
            factors = 1 + torch.linalg.solve(among + damping, open_part)
            if factors.abs().max() > MOST_SCALE:
                return {}
            spread = torch.ones(n_units, dtype=factors.dtype)
            spread[units] = factors
            scaled[f"{name}.weight"] = weight * spread.repeat_interleave(group).float()
    return scaled


def refitted(whole: Encoder, small: Encoder, batches: Sequence[CalibrationBatch]) -> dict[str, Tensor]:
    """Return output matrices and biases that bring each block's result near the whole ranker's, layer by layer.

    Both run side by side. A block's new matrix is the ridge regression of what the residual stream lacks, behind the
    whole ranker's block, on what is left of its heads or neurons; so it makes up for what earlier ones missed, too.

    Args:
        whole: the ranker as it was.
        small: the ranker cut, with as many layers; its output matrices are replaced on the way.
        batches: calibration texts.

    Returns:
        By name, weights and biases of ``small``.
    """
    found: dict[str, Tensor] = {}
    states = [(batch.embedded, batch.embedded) for batch in batches]
    with torch.no_grad(), progress("Fitting what stays", len(whole.layers)) as advance:
        for index in range(len(whole.layers)):
            for kind in ("attention", "ffn"):
                states = _refit(whole.layers[index], small.layers[index], kind, states, batches, found, index)
            advance()
    return found


def _refit(
    whole: Any, small: Any, kind: str, states: Sequence[tuple[Tensor, Tensor]], batches: Sequence[CalibrationBatch],
    found: dict[str, Tensor], index: int,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    output = small.attention.output if kind == "attention" else small.ffn.down
    moments, wanted = Moments(), []
    for (theirs, own), batch in zip(states, batches, strict=True):
        sums = theirs + _block(whole, kind, theirs, batch)[1]
        read, _ = _block(small, kind, own, batch)
        moments.add(torch.cat([read, sums - own], dim=1))
        wanted.append(sums)
    width = output.weight.shape[1]
    factors, constants = prediction(moments, torch.arange(width), centered=output.bias is not None)
    name = f"layers.{index}.attention.output" if kind == "attention" else f"layers.{index}.ffn.down"
    output.weight.data = found[f"{name}.weight"] = factors[width:].contiguous()
    if output.bias is not None:
        output.bias.data = found[f"{name}.bias"] = constants[width:].contiguous()
    return [
        (_behind(whole, kind, sums), _behind(small, kind, own + _block(small, kind, own, batch)[1]))
        for sums, (_, own), batch in zip(wanted, states, batches, strict=True)
    ]


def _block(layer: Any, kind: str, values: Tensor, batch: CalibrationBatch) -> tuple[Tensor, Tensor]:
    """Return what a block's output matrix reads, and what it writes."""
    seen: list[Tensor] = []
    output = layer.attention.output if kind == "attention" else layer.ffn.down
    hook = output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    is_pre = layer.spec.norm_placement == "pre"
    try:
        if kind == "attention":
            written = layer.attention(layer.attention_norm(values) if is_pre else values, batch.layout)
        else:
            written = layer.ffn(layer.ffn_norm(values) if is_pre else values)
    finally:
        hook.remove()
    return seen[0], written


def _behind(layer: Any, kind: str, sums: Tensor) -> Tensor:
    if layer.spec.norm_placement == "pre":
        return sums
    return layer.attention_norm(sums) if kind == "attention" else layer.ffn_norm(sums)
