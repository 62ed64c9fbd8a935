"""Factors on channels, given smaller and read larger by as much: the ranker computes what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compressor.algorithms.calibration import CalibrationBatch
from compressor.algorithms.norm_folding import reading_matrix
from compressor.algorithms.quantization import Product, show_inputs
from compressor.ranker.channel_links import ChannelLink
from compressor.ranker.encoder import Encoder

_LEAST_SIZE = 1e-3  # of the largest: texts that were not seen may be louder on channels that were nearly still


def scaled_channels(weights: Mapping[str, Tensor], link: ChannelLink, factors: Tensor) -> dict[str, Tensor]:
    """Return the weights that change when a link's channels are read by ``factors`` larger.

    Args:
        weights: of the ranker, or of the link's layer.
        link: who gives and who reads the channels.
        factors: ``[channels]``, above zero.
    """
    factors = factors.double()
    changed = {}
    giver = f"{link.giver}.up" if f"{link.giver}.up" in weights else f"{link.giver}.weight"
    for name in (giver, f"{link.giver}.bias"):
        if name in weights:
            given = weights[name].double()
            changed[name] = (given / (factors[:, None] if given.dim() > 1 else factors)).float()
    for reader in link.readers:
        name = reading_matrix(weights, reader)
        changed[name] = (weights[name].double() * factors).float()
    return changed


def largest_inputs(module: Encoder, batches: Sequence[CalibrationBatch], linears: Sequence[str]) -> dict[str, Tensor]:
    """Return the largest magnitude of each input of some linears on calibration texts, ``[inputs]`` by name."""
    found: dict[str, Tensor] = {}

    def see(product: Product, values: Tensor) -> None:
        name, index = product
        if index == 0:
            largest = values.abs().amax(dim=0)
            found[name] = torch.maximum(found[name], largest) if name in found else largest

    show_inputs(module, [batch.inputs for batch in batches], linears, see, "Measuring inputs")
    return found


def smoothing_factors(weights: Mapping[str, Tensor], readers: Sequence[str], largest: Tensor, alpha: float) -> Tensor:
    """Return by how much larger channels are to be read, so that their magnitudes are more alike (SmoothQuant).

    ``max|x|^alpha / max|w|^(1 - alpha)`` (arXiv 2211.10438), divided by its geometric mean, which changes no rounding
    of whole numbers. Channels that were never given, or that nobody reads, stay as they are.

    Args:
        weights: of the ranker.
        readers: the linears that read the channels.
        largest: ``[channels]``, the largest magnitude of each.
        alpha: how much of the difficulty moves into the weights, 0 to 1.
    """
    sizes = torch.stack([weights[reading_matrix(weights, reader)].abs().amax(dim=0) for reader in readers]).amax(dim=0)
    factors = bounded(largest).pow(alpha) / bounded(sizes).pow(1 - alpha)
    return centered_factors(factors, is_used=(largest > 0) & (sizes > 0))


def bounded(sizes: Tensor) -> Tensor:
    """Return magnitudes of channels, float64, none of them vanishing beside the largest."""
    sizes = sizes.double()
    return sizes.clamp(min=_LEAST_SIZE * float(sizes.max())).clamp(min=torch.finfo(torch.float32).tiny)


def centered_factors(factors: Tensor, is_used: Tensor) -> Tensor:
    """Return factors of geometric mean 1 on channels that are used, and 1 on the others, float64 ``[channels]``."""
    logarithms = torch.where(is_used, factors.double(), 1.0).log()
    mean = logarithms.sum() / is_used.sum().clamp(min=1)
    return torch.where(is_used, (logarithms - mean).exp(), 1.0)
