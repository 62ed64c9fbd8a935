"""Blocks of weights rounded with regard to what is read: channels that read much get finer steps (AWQ).

"AWQ: Activation-aware Weight Quantization" (arXiv 2306.00978). Its search looks at the outputs of blocks; this one at
those of the linears that read the channels, which their second moments give exactly, without running a block again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.algorithms.channel_scaling import bounded, centered_factors, scaled_channels
from compressor.algorithms.layer_by_layer import Read
from compressor.algorithms.norm_folding import reading_matrix
from compressor.algorithms.weight_rounding import output_error, relative_error
from compressor.ranker.channel_links import ChannelLink
from compressor.ranker.quantizers import rounded_weight, weight_blocks
from compressor.ranker.spec import Int4Blocks, Int8Blocks

Blocks = Int8Blocks | Int4Blocks

_EXPONENTS = [step / 20 for step in range(20)]
_CLIPS = [1 - step / 20 for step in range(11)]  # of a block's largest magnitude
_UNCLIPPED = (".query.", ".key.")  # their products are large where a few channels are, which clipping would take away


def activation_aware(
    weights: Mapping[str, Tensor], reads: Mapping[str, Read], links: Sequence[ChannelLink], precision: Blocks
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Scale a layer's channels by how much they give, clip blocks, and round them.

    Args:
        weights: all weights of the layer, by name.
        reads: what the matrices that are rounded read, by the same names.
        links: of the layer, along which channels may be scaled.
        precision: of these matrices.

    Returns:
        The weights that change, and which share of the mean square of its outputs a matrix's rounding moves, by name.
    """
    changed, factors, errors = dict(weights), dict[str, Tensor](), dict[str, float]()
    for link in links:
        readers = [name for reader in link.readers if (name := reading_matrix(weights, reader)) in reads]
        if readers:
            found = best_factors({name: (changed[name], reads[name]) for name in readers}, precision)
            factors |= dict.fromkeys(readers, found)
            changed |= scaled_channels(changed, link, found)
    for name, read in reads.items():
        second = read.second(centered=False)
        if name in factors:
            second = second / torch.outer(factors[name], factors[name])
        rounded = rounded_weight(changed[name], precision)
        if not any(part in name for part in _UNCLIPPED):
            cut = rounded_weight(clipped(changed[name], second, precision), precision)
            losses = [output_error(changed[name] - one, second) for one in (rounded, cut)]
            rounded = torch.where((losses[1] < losses[0])[:, None], cut, rounded)
        errors[name] = relative_error(changed[name], rounded, second)
        changed[name] = rounded
    return {name: tensor for name, tensor in changed.items() if tensor is not weights[name]}, errors


def best_factors(readers: Mapping[str, tuple[Tensor, Read]], precision: Blocks) -> Tensor:
    """Return by how much larger channels are to be read, so that rounding moves least of what comes out.

    Of powers of their mean magnitudes, from 0 (nothing changes) to 0.95.

    Args:
        readers: matrices and what they read, by name; they read the same channels.
        precision: on whose grid they are rounded.

    Returns:
        float64 ``[channels]``.
    """
    sizes = max((read for _, read in readers.values()), key=lambda read: read.n).mean_size
    seconds = {name: read.second(centered=False) for name, (_, read) in readers.items()}
    least, best = float("inf"), torch.ones_like(sizes)
    for exponent in _EXPONENTS:
        factors = centered_factors(bounded(sizes).pow(exponent), is_used=sizes > 0)
        error = 0.0
        for name, (weight, _) in readers.items():
            rounded = rounded_weight((weight * factors).float(), precision) / factors
            error += float(output_error(weight - rounded, seconds[name]).sum())
        if error < least:
            least, best = error, factors
    return best


def clipped(weight: Tensor, second: Tensor, precision: Blocks) -> Tensor:
    """Return a matrix whose blocks are cut off at the share of their largest magnitude that serves their outputs best.

    A block is looked at by itself, as if the others were not rounded: rows may still be better off as they were.

    Args:
        weight: float32 ``[outputs, inputs]``.
        second: the second moments of its inputs, float64 ``[inputs, inputs]``.
        precision: on whose grid it will be rounded.
    """
    size, columns = precision.block_size, weight.shape[1]
    missing = -columns % size
    blocks = F.pad(weight, (0, missing)).unflatten(1, (-1, size))  # [outputs, blocks, size]
    n_blocks = blocks.shape[1]
    tiles = F.pad(second, (0, missing, 0, missing)).view(n_blocks, size, n_blocks, size)
    own = tiles.diagonal(dim1=0, dim2=2).permute(2, 0, 1).float()  # [blocks, size, size]
    largest = blocks.abs().amax(dim=2, keepdim=True)
    best = blocks
    least = torch.full(blocks.shape[:2], float("inf"))
    for clip in _CLIPS:
        cut = torch.minimum(torch.maximum(blocks, -clip * largest), clip * largest)
        codes, scales = weight_blocks(cut.flatten(1), precision.bits, size)
        moved = blocks - codes * scales[..., None]
        error = (torch.einsum("obi,bij->obj", moved, own) * moved).sum(dim=2)
        is_better = error < least
        least = torch.where(is_better, error, least)
        best = torch.where(is_better[..., None], cut, best)
    return best.flatten(1)[:, :columns]
