"""Making up without training for heads, neurons and layers that were cut: scales, or whole new output matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compressor.algorithms.absent_blocks import OUTPUTS, place_of_constant
from compressor.algorithms.calibration import CalibrationBatch, run_layers
from compressor.algorithms.folding import Inputs
from compressor.algorithms.linear_fits import Moments, prediction
from compressor.algorithms.low_rank import decomposed
from compressor.algorithms.subcloning import Kept
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import LayerSpec, LinearMapSpec, LowRankForm

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
            ("attention.output", layer.head_width, kept.heads[index]),
            ("ffn.down", 1, kept.neurons[index]),
        ):
            name = f"layers.{index}.{part}"
            if not len(units):
                continue
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


def refitted(
    whole: Encoder, small: Encoder, batches: Sequence[CalibrationBatch], stands_for: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Return output matrices and biases that bring each block's result near the whole ranker's, layer by layer.

    Both run side by side. A block's new matrix is the ridge regression of what the residual stream lacks, behind the
    whole ranker's block, on what is left of its heads or neurons; so it makes up for what earlier ones missed, too, and
    for whole layers that are missing before it.

    Args:
        whole: the ranker as it was.
        small: the ranker cut; its output matrices are replaced on the way.
        batches: calibration texts.
        stands_for: for each layer of ``small``, the layer of ``whole`` behind which both are to be equal, ascending;
            by default the same one.

    Returns:
        By name, weights and biases of ``small``.
    """
    found: dict[str, Tensor] = {}
    theirs = own = [batch.embedded for batch in batches]
    ends = range(len(small.layers)) if stands_for is None else stands_for
    begin = 0
    with torch.no_grad(), progress("Fitting what stays", len(small.layers)) as advance:
        for index, end in enumerate(ends):
            layer, narrow = whole.layers[end], small.layers[index]
            if own is theirs and begin == end and layer.spec == narrow.spec:  # nothing was cut so far
                theirs = own = [run_layers(whole, *pair, [end]) for pair in zip(batches, theirs, strict=True)]
            else:
                theirs = [run_layers(whole, *pair, range(begin, end)) for pair in zip(batches, theirs, strict=True)]
                theirs, own = _refit_layer(layer, small, index, theirs, own, batches, found)
            begin = end + 1
            advance()
    return found


def fitted_apart(whole: Encoder, small: Encoder, batches: Sequence[CalibrationBatch]) -> dict[str, Tensor]:
    """Return output matrices and biases of the layers that are other than the whole ranker's, each fitted alone.

    As in `refitted`, but every layer reads the whole ranker's own states: no fit knows of another.

    Args:
        whole: the ranker as it was.
        small: one of as many layers; output matrices of those with another shape are replaced on the way.
        batches: calibration texts.
    """
    found: dict[str, Tensor] = {}
    states = [batch.embedded for batch in batches]
    pairs: Any = zip(whole.layers, small.layers, strict=True)
    with torch.no_grad(), progress("Fitting layers", len(small.layers)) as advance:
        for index, (layer, narrow) in enumerate(pairs):
            if layer.spec == narrow.spec:
                states = [run_layers(whole, *pair, [index]) for pair in zip(batches, states, strict=True)]
            else:
                states, _ = _refit_layer(layer, small, index, states, states, batches, found)
            advance()
    return found


def _refit_layer(
    whole: Any, small: Encoder, index: int, theirs: list[Tensor], own: list[Tensor],
    batches: Sequence[CalibrationBatch], found: dict[str, Tensor],
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Fit one layer's output matrices; returns the states behind it, the whole ranker's and the cut one's."""
    narrow: Any = small.layers[index]
    for kind, output in OUTPUTS.items():
        if getattr(narrow, kind):
            theirs, own = _refit(whole, narrow, kind, theirs, own, batches, found, f"layers.{index}.{output}")
            continue
        # A linear map that stands for the layer takes the constant in by itself.
        is_mapped = kind == "attention" and isinstance(narrow.spec.ffn, LinearMapSpec)
        before = None if is_mapped else place_of_constant(small.spec, index, kind)
        bias = small.get_parameter(before) if before else None
        theirs, own = _refit_constant(whole, narrow, kind, theirs, own, batches, bias)
        found |= {before: bias.data} if before and bias is not None else {}
    return theirs, own


def _refit(
    whole: Any, small: Any, kind: str, theirs: Sequence[Tensor], own: Sequence[Tensor],
    batches: Sequence[CalibrationBatch], found: dict[str, Tensor], name: str,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Fit one block's output matrix; returns the states behind it, the whole ranker's and the cut one's.

    Of a low-rank matrix the factors, by reduced-rank regression: the least-squares matrix, its results projected on
    their principal components.
    """
    wanted = _sums(whole, kind, theirs, batches)
    output = _output(small, kind)
    moments = Moments()
    for sums, values, batch in zip(wanted, own, batches, strict=True):
        read, _ = _block(small, kind, values, batch)
        moments.add(torch.cat([read, sums - values], dim=1))
    width, has_bias = output.spec.inputs, output.bias is not None
    factors, constants = prediction(moments, torch.arange(width), centered=has_bias)
    matrix, bias = factors[width:].contiguous(), constants[width:].contiguous()
    if isinstance(output.spec.form, LowRankForm):
        read = moments.second(centered=has_bias)[:width, :width]
        up, down = decomposed(matrix, read).factors(output.spec.form.rank)
        bias = bias + (matrix - up @ down) @ moments.mean[:width].float()
        output.up.data, output.down.data = found[f"{name}.up"], found[f"{name}.down"] = up, down
    else:
        output.weight.data = found[f"{name}.weight"] = matrix
    if has_bias:
        output.bias.data = found[f"{name}.bias"] = bias
    fitted = _sums(small, kind, own, batches)
    return [_behind(whole, kind, sums) for sums in wanted], [_behind(small, kind, sums) for sums in fitted]


def _refit_constant(
    whole: Any, small: Any, kind: str, theirs: Sequence[Tensor], own: Sequence[Tensor],
    batches: Sequence[CalibrationBatch], bias: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Add the mean of what the stream lacks, where a block is absent, to a bias before it, if there is one."""
    wanted = _sums(whole, kind, theirs, batches)
    if bias is not None:
        n_tokens = sum(map(len, own))
        missing = [(sums - values).double().sum(dim=0) for sums, values in zip(wanted, own, strict=True)]
        lacks = (torch.stack(missing).sum(dim=0) / n_tokens).float()
        bias.data = bias.data + lacks
        own = [values + lacks for values in own]
    return [_behind(whole, kind, sums) for sums in wanted], [_behind(small, kind, values) for values in own]


def _sums(layer: Any, kind: str, states: Sequence[Tensor], batches: Sequence[CalibrationBatch]) -> list[Tensor]:
    return [values + _block(layer, kind, values, batch)[1] for values, batch in zip(states, batches, strict=True)]


def _block(layer: Any, kind: str, values: Tensor, batch: CalibrationBatch) -> tuple[Tensor, Tensor]:
    """Return what a block's output matrix reads, and what it writes; nothing and zeros where the layer has no block."""
    if getattr(layer, kind) is None:
        return values[:, :0], torch.zeros_like(values)
    seen: list[Tensor] = []
    hook = _output(layer, kind).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    is_pre = layer.spec.norm_placement == "pre"
    try:
        if kind == "attention":
            written = layer.attention(layer.attention_norm(values) if is_pre else values, batch.layout)
        else:
            written = layer.ffn(layer.ffn_norm(values) if is_pre else values)
    finally:
        hook.remove()
    return seen[0], written


def _output(layer: Any, kind: str) -> Any:
    return layer.attention.output if kind == "attention" else layer.ffn.down


def _behind(layer: Any, kind: str, sums: Tensor) -> Tensor:
    if layer.spec.norm_placement == "pre":
        return sums
    return layer.attention_norm(sums) if kind == "attention" else layer.ffn_norm(sums)
