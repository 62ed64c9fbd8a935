"""Weight subcloning: a smaller ranker made of the most active parts of a larger one (arXiv 2312.09299)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.algorithms.activation_statistics import ActivationStatistics
from compressor.ranker.names import renumbered
from compressor.ranker.spec import ClassifierHead, Head, LinearMapSpec, RankerSpec

Axes = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What stays of a ranker, as indices into its parts.

    Attributes:
        residual: int64 ``[width']``: dimensions of the residual stream, the same in every layer.
        heads: per layer, int64 ``[heads']``.
        neurons: per layer, int64 ``[ffn width']``.
        pooled: by head (``head``, ``layers.2.exit``), what stays between its dense and its output layer; heads
            without a dense layer are not in it.
    """

    residual: Tensor
    heads: list[Tensor]
    neurons: list[Tensor]
    pooled: dict[str, Tensor]


def within_layers(spec: RankerSpec, heads: Sequence[Tensor], neurons: Sequence[Tensor]) -> Kept:
    """Keep some heads and neurons of each layer, and all that is shared by layers or belongs to heads."""
    pooled = {name: torch.arange(head.dense.outputs) for name, head in heads_of(spec) if head.dense}
    return Kept(residual=torch.arange(spec.width), heads=list(heads), neurons=list(neurons), pooled=pooled)


def most_active(statistics: ActivationStatistics, spec: RankerSpec, small: RankerSpec) -> Kept:
    """Choose what stays of a ranker so that it gets the shape ``small``: the most active parts, in their old order."""
    layers = list(zip(small.layers, statistics.heads, statistics.neurons, strict=True))
    return Kept(
        residual=_largest(statistics.residual, small.width),
        heads=[_largest(heads, layer.heads) for layer, heads, _ in layers],
        neurons=[_largest(neurons, layer.ffn_width) for layer, _, neurons in layers],
        pooled={
            name: _largest(statistics.pooled[name], head.dense.outputs) for name, head in heads_of(small) if head.dense
        },
    )


def _largest(values: Tensor, count: int) -> Tensor:
    """Return the ascending places of the ``count`` largest values; of equal ones the first."""
    return values.sort(descending=True, stable=True).indices[:count].sort().values


def heads_of(spec: RankerSpec) -> Iterator[tuple[str, ClassifierHead]]:
    """Yield name and spec of every head that gives a logit: the exits', then the last."""
    heads: list[tuple[str, Head | None]] = [(f"layers.{i}.exit", layer.exit) for i, layer in enumerate(spec.layers)]
    for name, head in [*heads, ("head", spec.head)]:
        if isinstance(head, ClassifierHead):
            yield name, head


def sliced(spec: RankerSpec, weights: Mapping[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """Return the weights between the parts that stay; where all stay in another order, scores are the same.

    Args:
        spec: the shape of ``weights``.
        weights: canonical weights.
        kept: indices; their order is the new order.
    """
    axes, gone = dict(axes_of(spec, kept)), tuple(_gone(spec, kept))
    return {
        # Scorers of token rules read the whole residual stream: what narrows it comes before token rules.
        name: tensor if ".token_rule." in name else _sliced(name, tensor, *axes[name.rpartition(".")[0]])
        for name, tensor in weights.items()
        if not name.startswith(gone)
    }


def _gone(spec: RankerSpec, kept: Kept) -> Iterator[str]:
    """Yield what the names of weights begin with that belong to a block of which nothing stays."""
    for index, layer in enumerate(spec.layers):
        for block, units in (("attention", kept.heads[index]), ("ffn", kept.neurons[index])):
            if not len(units) and not isinstance(getattr(layer, block), LinearMapSpec):
                yield f"layers.{index}.{block}."
                if layer.norm_placement == "pre":
                    yield f"layers.{index}.{block}_norm."


def _sliced(name: str, tensor: Tensor, outputs: Tensor | None, inputs: Tensor | None) -> Tensor:
    kind = name.rpartition(".")[2]
    if outputs is not None and kind != "down":  # of a low-rank linear, `down` reads and `up` writes
        tensor = tensor[outputs]
    if inputs is not None and tensor.dim() == 2 and kind != "up":
        tensor = tensor[:, inputs]
    return tensor


def axes_of(spec: RankerSpec, kept: Kept) -> Iterator[tuple[str, Axes]]:
    """Yield what stays of each module's outputs and inputs (of a table: none of its rows go, columns are inputs)."""
    stream = kept.residual
    embedded = None if spec.embeddings.project else stream
    for name in ("tokens", "positions", "segments"):
        yield f"embeddings.{name}", (None, embedded)
    yield "embeddings.norm", (embedded, None)
    yield "embeddings.project", (stream, None)
    for index, layer in enumerate(spec.layers):
        head_width, neurons = layer.head_width, kept.neurons[index]
        mixed = (kept.heads[index][:, None] * head_width + torch.arange(head_width)).flatten()
        for name in ("query", "key", "value"):
            yield f"layers.{index}.attention.{name}", (mixed, stream)
        yield f"layers.{index}.attention.output", (stream, mixed)
        yield f"layers.{index}.attention_norm", (stream, None)
        for name in ("up", "gate"):
            yield f"layers.{index}.ffn.{name}", (neurons, stream)
        yield f"layers.{index}.ffn.down", (stream, stream if isinstance(layer.ffn, LinearMapSpec) else neurons)
        yield f"layers.{index}.ffn_norm", (stream, None)
    yield "final_norm", (stream, None)
    for name, _ in heads_of(spec):
        pooled = kept.pooled.get(name)
        yield f"{name}.dense", (pooled, stream)
        read = stream if pooled is None else pooled
        yield f"{name}.norm", (read, None)
        yield f"{name}.output", (None, read)


def kept_of_layers(statistics: ActivationStatistics, layers: Sequence[int]) -> ActivationStatistics:
    """Return the statistics of some layers alone, under their new numbers; the residual order stays that of all."""
    places = {old: new for new, old in enumerate(layers)}
    return ActivationStatistics(
        residual=statistics.residual,
        heads=[statistics.heads[index] for index in layers],
        neurons=[statistics.neurons[index] for index in layers],
        pooled={new: values for name, values in statistics.pooled.items() if (new := renumbered(name, places))},
    )
