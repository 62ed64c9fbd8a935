"""How scores answer to what every linear of the layers gives, and to each of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compressor.algorithms.calibration import CalibrationBatch
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.linears import Linear

_Show = Callable[[str, Tensor, Tensor, Tensor], None]  # name, read [T, in], gradient [T, out], row of each token


def measure_output_sensitivity(
    module: Encoder, batches: Sequence[CalibrationBatch], names: Sequence[str]
) -> dict[str, Tensor]:
    """Return, for some linears, how much errors of what they give move scores.

    Args:
        module: a cross-encoder; its parameters are not touched.
        batches: the calibration set.
        names: of linears of its layers.

    Returns:
        By name, float32 ``[outputs, outputs]``: the sum over tokens, the mean over pairs, of the products of the
        gradient. An error of covariance E, independent from token to token, moves scores by a variance of
        ``sum(products * E)``.
    """
    n_pairs = sum(len(batch.rows) for batch in batches)
    found: dict[str, Tensor] = {}

    def add(name: str, _: Tensor, gradient: Tensor, __: Tensor) -> None:
        products = gradient.T @ gradient / n_pairs
        found[name] = found[name] + products if name in found else products

    _show_gradients(module, batches, names, add)
    return found


class Fisher(NamedTuple):
    """The mean Fisher information of a matrix's weights, by rows and by columns.

    Attributes:
        outputs: float32 ``[outputs]``, the mean over a row.
        inputs: float32 ``[inputs]``, the mean over a column.
    """

    outputs: Tensor
    inputs: Tensor


def measure_fisher(module: Encoder, batches: Sequence[CalibrationBatch], names: Sequence[str]) -> dict[str, Fisher]:
    """Return the Fisher information of the weights of some linears: mean squares of each pair's own score gradient.

    The gradient of a mean over pairs would be smaller where pairs disagree, which is where weights matter.

    Args:
        module: a cross-encoder; its parameters are not touched.
        batches: the calibration set.
        names: of linears of its layers.
    """
    n_pairs = sum(len(batch.rows) for batch in batches)
    found: dict[str, Fisher] = {}

    def add(name: str, read: Tensor, gradient: Tensor, rows: Tensor) -> None:
        squares = torch.zeros(gradient.shape[1], read.shape[1])
        for row in range(int(rows.max()) + 1):
            own = rows == row
            squares += (gradient[own].T @ read[own]).square()
        squares /= n_pairs
        outputs, inputs = squares.mean(dim=1), squares.mean(dim=0)
        if name in found:
            outputs, inputs = found[name].outputs + outputs, found[name].inputs + inputs
        found[name] = Fisher(outputs=outputs, inputs=inputs)

    _show_gradients(module, batches, names, add)
    return found


def _show_gradients(module: Encoder, batches: Sequence[CalibrationBatch], names: Sequence[str], show: _Show) -> None:
    """Run forward and back, one backward pass a batch: rows do not meet, so a sum's gradient is that of each score."""
    parts = {name: module.get_submodule(name) for name in names}
    with progress("Measuring gradients", len(batches)) as advance:
        for batch in batches:
            with torch.enable_grad(), _kept(parts) as (read, given):
                # The batch's own layout was made where nothing is recorded.
                layout = module.lay_out(batch.inputs["input_ids"], batch.inputs["attention_mask"])
                values = batch.embedded.clone().requires_grad_()
                layers: Sequence[nn.Module] = list(module.layers)
                for layer in layers:
                    values = layer(values, layout)
                logits = module.head(module.pool(values, layout, first_only=False))
            gradients = torch.autograd.grad(logits.sum(), list(given.values()))
            rows = torch.div(layout.to_packed, layout.mask.shape[1], rounding_mode="floor")
            for name, gradient in zip(given, gradients, strict=True):
                show(name, read[name], gradient, rows)
            advance()


@contextmanager
def _kept(parts: dict[str, nn.Module]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Keep what linears read and give while the block runs."""
    read: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, part in parts.items():
            assert isinstance(part, Linear)  # noqa: S101  # names of linears were asked for

            def keep(_: object, inputs: tuple[Tensor], result: Tensor, name: str = name) -> None:
                read[name], given[name] = inputs[0].detach(), result

            hooks.callback(part.register_forward_hook(keep).remove)
        yield read, given
