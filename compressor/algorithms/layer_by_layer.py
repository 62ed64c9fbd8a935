"""Weights changed layer by layer, each layer's by what its matrices read behind the changed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.algorithms.calibration import CalibrationBatch
from compressor.algorithms.linear_fits import Moments
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import LowRankForm

_PROJECTION = "embeddings.project"


class Read(Moments):
    """What a matrix reads: its moments, and how large each of its inputs is."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes = torch.zeros(())

    def add(self, values: Tensor) -> None:
        super().add(values)
        self._sizes = self._sizes + values.detach().float().flatten(0, -2).abs().sum(dim=0).double()

    @property
    def mean_size(self) -> Tensor:
        """The mean magnitude of each input, float64 ``[d]``."""
        return self._sizes / max(1, self.n)


Change = Callable[[Mapping[str, Tensor], Mapping[str, Read]], Mapping[str, Tensor]]
"""Takes all weights of a layer by name, and what its matrices read by the same names; returns those that change."""


def changed_layer_by_layer(
    module: Encoder, batches: Sequence[CalibrationBatch], linears: Sequence[str], change: Change, text: str
) -> dict[str, Tensor]:
    """Return the weights that changed, by name, each layer's chosen by what it reads behind changed layers.

    Matrices read real tokens only, and those of the last layer that are computed for the first token alone read no
    others. Of a low-rank linear, both matrices are watched. The projection of the embeddings counts as a layer.
    Time: two forward passes of the calibration set; memory: its states, and the products of one layer's inputs.

    Args:
        module: a copy of the ranker in evaluation mode; its weights are replaced on the way.
        batches: the calibration set.
        linears: those whose inputs are watched, ``layers.3.ffn.down``.
        change: makes the new weights of a layer.
        text: what the progress bar says.
    """
    found: dict[str, Tensor] = {}
    states = [batch.embedded for batch in batches]
    layers: list[Any] = list(module.layers)
    with torch.no_grad(), progress(text, len(layers)) as advance:
        if _PROJECTION in linears:
            with _watched(module, [_PROJECTION]) as reads:
                _embed(module, batches)
            found |= _put(module, "embeddings.", change, reads)
            states = _embed(module, batches)
        for index, layer in enumerate(layers):
            first_only = index == len(layers) - 1 and module.spec.reads_first_token_only
            with _watched(module, [name for name in linears if name.startswith(f"layers.{index}.")]) as reads:
                for batch, values in zip(batches, states, strict=True):
                    layer(values, batch.layout, first_only)
            found |= _put(module, f"layers.{index}.", change, reads)
            if index < len(layers) - 1:
                states = [layer(values, batch.layout) for batch, values in zip(batches, states, strict=True)]
            advance()
    return found


def _embed(module: Encoder, batches: Sequence[CalibrationBatch]) -> list[Tensor]:
    return [
        module.embed(batch.layout, batch.inputs["input_ids"], batch.inputs.get("token_type_ids")) for batch in batches
    ]


def _put(module: Encoder, part: str, change: Change, reads: Mapping[str, Read]) -> Mapping[str, Tensor]:
    weights = {name: tensor for name, tensor in module.state_dict().items() if name.startswith(part)}
    changed = change(weights, reads)
    for name, tensor in changed.items():
        module.get_parameter(name).data = tensor
    return changed


@contextmanager
def _watched(module: Encoder, linears: Sequence[str]) -> Iterator[dict[str, Read]]:
    """Sum up, while the block runs, what the matrices of some linears read."""
    reads: dict[str, Read] = {}
    hooks = []
    for name in linears:
        part: Any = module.get_submodule(name)
        if isinstance(part.spec.form, LowRankForm):
            thin, wide = reads[f"{name}.down"], reads[f"{name}.up"] = Read(), Read()

            def see(linear: Any, inputs: tuple[Tensor], *, thin: Read = thin, wide: Read = wide) -> None:
                thin.add(inputs[0])
                wide.add(F.linear(inputs[0], linear.down))

            hooks.append(part.register_forward_pre_hook(see))
        else:
            only = reads[f"{name}.weight"] = Read()
            hooks.append(part.register_forward_pre_hook(lambda _, inputs, only=only: only.add(inputs[0])))
    try:
        yield reads
    finally:
        for hook in hooks:
            hook.remove()
