"""How large activations are: of residual dimensions, heads, feed-forward neurons and a head's inner values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.algorithms.calibration import CalibrationBatch
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import LayerSpec


@dataclass(frozen=True, kw_only=True)
class ActivationStatistics:
    """Means over all real tokens; padding is not among them.

    Attributes:
        residual: ``[width]``, mean |state| over layers, each layer's states scaled to a mean of 1 first, so that a
            stream that grows from layer to layer (pre-norm) is not judged by its last layers alone.
        heads: per layer ``[heads]``, mean norm of each head's context vector.
        neurons: per layer ``[ffn width]``, mean |activation| as the down projection reads it.
        pooled: by head (``head``, ``layers.2.exit``), mean |value| that its output layer reads, times |weight|.
    """

    residual: Tensor
    heads: list[Tensor]
    neurons: list[Tensor]
    pooled: dict[str, Tensor]


def measure_activations(module: Encoder, batches: Sequence[CalibrationBatch]) -> ActivationStatistics:
    """Measure a ranker's activations on calibration texts."""
    sums = _Sums()
    n_tokens = sum(len(batch.embedded) for batch in batches)
    states = [torch.zeros(module.spec.width) for _ in range(len(module.layers) + 1)]
    with torch.inference_mode(), _watched(module, sums), progress("Measuring activations", len(batches)) as advance:
        for batch in batches:
            values = batch.embedded
            states[0] += values.abs().sum(dim=0)
            layers: Iterable[Any] = module.layers
            for index, layer in enumerate(layers):
                values = layer(values, batch.layout)
                states[index + 1] += values.abs().sum(dim=0)
                if layer.spec.exit:
                    module.exit_logits(index, values, batch.layout)
            module.head(module.pool(values, batch.layout, first_only=False))
            advance()
    tiny = torch.finfo(torch.float32).tiny
    return ActivationStatistics(
        residual=torch.stack([total / total.mean().clamp(min=tiny) for total in states]).mean(dim=0),
        heads=[sums.mean(f"layers.{i}.attention.output", n_tokens) for i in range(len(module.layers))],
        neurons=[sums.mean(f"layers.{i}.ffn.down", n_tokens) for i in range(len(module.layers))],
        pooled={name.removesuffix(".output"): sums[name] * _output_weight(part) for name, part in _scorers(module)},
    )


class _Sums(dict[str, Tensor]):
    def add(self, name: str, values: Tensor) -> None:
        self[name] = self[name] + values if name in self else values

    def mean(self, name: str, n_tokens: int) -> Tensor:
        """Return the mean over tokens; of a block that a layer has not, nothing."""
        return self[name] / n_tokens if name in self else torch.zeros(0)


def _output_weight(part: Any) -> Tensor:
    return part(torch.eye(part.spec.inputs)).sub(part(torch.zeros(1, part.spec.inputs)))[:, 0].abs()


def _scorers(module: Encoder) -> Iterator[tuple[str, nn.Module]]:
    """Yield the output layers of the head and of the exits."""
    for name, part in module.named_modules():
        if name == "head.output" or name.endswith(".exit.output"):
            yield name, part


@contextmanager
def _watched(module: Encoder, sums: _Sums) -> Iterator[None]:
    """Sum up, while the block runs, what the writers of heads and neurons and the output layers read."""

    def watch(part: nn.Module, name: str, measure: Callable[[Tensor], Tensor]) -> Any:
        return part.register_forward_pre_hook(lambda _, inputs: sums.add(name, measure(inputs[0])))

    layers: Iterable[Any] = module.layers
    hooks = []
    for index, layer in enumerate(layers):
        if layer.attention:
            hooks.append(watch(layer.attention.output, f"layers.{index}.attention.output", _norms(layer.spec)))
        if layer.ffn:
            hooks.append(watch(layer.ffn.down, f"layers.{index}.ffn.down", _sizes))
    hooks += [watch(part, name, _sizes) for name, part in _scorers(module)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _norms(layer: LayerSpec) -> Callable[[Tensor], Tensor]:
    return lambda mixed: mixed.unflatten(-1, (layer.heads, -1)).norm(dim=-1).sum(dim=0)


def _sizes(values: Tensor) -> Tensor:
    return values.abs().sum(dim=0)
