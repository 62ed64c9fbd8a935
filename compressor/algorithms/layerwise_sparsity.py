"""Zeros chosen layer by layer, by what each matrix reads: Wanda and SparseGPT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from compressor.algorithms.calibration import CalibrationBatch
from compressor.algorithms.linear_fits import Moments
from compressor.algorithms.sparse_masks import Scope, kept_weights, of_units, without_least
from compressor.algorithms.sparsity_patterns import SparsityPattern
from compressor.progress import progress
from compressor.ranker.encoder import Encoder

Prune = Callable[[Tensor, Moments], Tensor]
"""Takes a weight ``[outputs, inputs]`` and the moments of what it reads; returns the weight with its zeros."""

_COLUMNS = 128  # whose errors are brought to the later ones at once
_LEAST_DAMPING = 0.01  # of the mean square of an input
_DAMPING_OF_NOISE = 0.1  # times the number of inputs for each sample


def pruned_layer_by_layer(
    module: Encoder, batches: Sequence[CalibrationBatch], names: Sequence[str], prune: Prune
) -> dict[str, Tensor]:
    """Return weights by name, each layer's chosen by what it reads behind pruned layers.

    Matrices read real tokens only, and those of the last layer that are computed for the first token alone read no
    others. Time: two forward passes of the calibration set; memory: its states, and the products of one layer's inputs.

    Args:
        module: a copy of the ranker in evaluation mode; its matrices are replaced on the way.
        batches: the calibration set.
        names: the linears to prune.
        prune: prunes one matrix.
    """
    found: dict[str, Tensor] = {}
    states = [batch.embedded for batch in batches]
    layers: list[Any] = list(module.layers)
    with torch.no_grad(), progress("Pruning layers", len(layers)) as advance:
        for index, layer in enumerate(layers):
            first_only = index == len(layers) - 1 and module.spec.reads_first_token_only
            own = [name for name in names if name.startswith(f"layers.{index}.")]
            with _watched(module, own) as moments:
                for batch, values in zip(batches, states, strict=True):
                    layer(values, batch.layout, first_only)
            for name in own:
                linear: Any = module.get_submodule(name)
                linear.weight.data = found[f"{name}.weight"] = prune(linear.weight.data, moments[name])
            if index < len(layers) - 1:
                states = [layer(values, batch.layout) for batch, values in zip(batches, states, strict=True)]
            advance()
    return found


@contextmanager
def _watched(module: Encoder, names: Sequence[str]) -> Iterator[dict[str, Moments]]:
    """Sum up, while the block runs, what some linears read."""
    moments = {name: Moments() for name in names}
    hooks = []
    for name in names:

        def add(_: object, inputs: tuple[Tensor], *, read: Moments = moments[name]) -> None:
            read.add(inputs[0])

        hooks.append(module.get_submodule(name).register_forward_pre_hook(add))
    try:
        yield moments
    finally:
        for hook in hooks:
            hook.remove()


def wanda(weight: Tensor, read: Moments, sparsity: float, pattern: SparsityPattern, scope: Scope) -> Tensor:
    """Zero the weights whose products with the norms of their inputs are least (Wanda, arXiv 2306.11695)."""
    mean_squares = read.second(centered=False).diagonal().float()
    units = of_units(weight.square() * mean_squares, weight, pattern)
    return weight * kept_weights({"": units}, sparsity, pattern, scope)[""]


def sparsegpt(weight: Tensor, read: Moments, sparsity: float, pattern: SparsityPattern) -> Tensor:
    """Zero weights column by column, and have those to the right make up for each (SparseGPT, arXiv 2301.00774).

    The mask is chosen 128 columns at a time, those before done, so that the share of zeros is met in every stretch.
    Damping grows with the number of inputs for each sample: where the last layer reads first tokens alone, samples are
    fewer than inputs, and what they do not span must not be made use of.

    Args:
        weight: ``[outputs, inputs]``; what is zero stays zero.
        read: the moments of its inputs.
        sparsity: the share of zeros.
        pattern: of zeros.
    """
    # Scores that choose, and what is made up for, are those of float64: the Hessian is near singular.
    values, is_zero = weight.double(), weight == 0
    roots = _inverse_roots(read)
    # Damping gives even inputs that are always zero some worth: they have none.
    worths = (read.second(centered=False).diagonal() > 0) / roots.diagonal()
    width = _COLUMNS // pattern.size * pattern.size
    kept = torch.ones_like(is_zero)
    for begin in range(0, weight.shape[1], width):
        end = min(begin + width, weight.shape[1])
        part, own = values[:, begin:end], roots[begin:end, begin:end]
        if pattern.kept is None:
            worth = of_units((part * worths[begin:end]).square(), part * ~is_zero[:, begin:end], pattern)
            n_units = len(worth.flatten())
            before = round(sparsity * len(weight) * begin / pattern.size)
            count = min(n_units, round(sparsity * len(weight) * end / pattern.size) - before)
            stays = without_least(worth.flatten(), sparsity, count).view_as(worth)
            kept[:, begin:end] = stays.repeat_interleave(pattern.size, dim=1)
            kept[:, begin:end] &= ~is_zero[:, begin:end]
        errors = torch.zeros_like(part)
        for column in range(end - begin):
            if pattern.kept is not None and column % pattern.size == 0:
                group = slice(begin + column, begin + column + pattern.size)
                worth = (values[:, group] * worths[group]).square()
                units = of_units(worth, values[:, group] * ~is_zero[:, group], pattern)
                kept[:, group] = kept_weights({"": units}, sparsity, pattern, "per_matrix")[""] & ~is_zero[:, group]
            lost = part[:, column] * ~kept[:, begin + column]
            errors[:, column] = lost / own[column, column]
            part[:, column:] -= errors[:, column, None] * own[column, column:]
        values[:, end:] -= errors @ roots[begin:end, end:]
    return (values * kept).float()


def _inverse_roots(read: Moments) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped second moments, float64 ``[inputs, inputs]``."""
    second = read.second(centered=False)
    n_inputs = len(second)
    damping = max(_LEAST_DAMPING, _DAMPING_OF_NOISE * n_inputs / max(1, read.n))
    level = second.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damped = second + damping * level * torch.eye(n_inputs, dtype=second.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
