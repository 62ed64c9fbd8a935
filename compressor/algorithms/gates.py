"""Gates on the units of a ranker in training, by hooks alone, and what is left of them when units are cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.algorithms.absent_blocks import OUTPUTS, with_biases_of_absent
from compressor.algorithms.subcloning import Kept, heads_of, sliced
from compressor.algorithms.width_choice import ChosenUnits
from compressor.ranker.encoder import Encoder
from compressor.ranker.narrowing import narrowed
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import RankerSpec


@dataclass(frozen=True, kw_only=True)
class Gates:
    """A factor for each unit.

    Attributes:
        heads, neurons: per layer, float ``[units]``: on what the block's output matrix reads. Its bias stays, whatever
            the gates.
        residual: float ``[width]``, on the residual stream; norms take their statistics over dimensions whose gate is
            not 0. None: no gates there.
    """

    heads: list[Tensor]
    neurons: list[Tensor]
    residual: Tensor | None = None


def install_gates(module: Encoder, gates: Callable[[], Gates], *, on_residual: bool = False) -> None:
    """Have every later forward pass of a module go through gates, those that ``gates`` returns then.

    Args:
        module: not changed but for its hooks.
        gates: asked whenever a gate is passed, in recomputed layers too.
        on_residual: whether there are gates on the residual stream.
    """
    for index, layer in enumerate(_layers(module)):
        if layer.attention:
            layer.attention.output.register_forward_pre_hook(partial(_gate_heads, gates, index))
        if layer.spec.ffn_width:
            layer.ffn.down.register_forward_pre_hook(partial(_gate_neurons, gates, index))
    if not on_residual:
        return
    module.embeddings.register_forward_hook(partial(_gate_stream, gates))
    for name, norm in _stream_norms(module):
        norm.register_forward_hook(partial(_norm_of_open, gates, _writes_stream(module.spec, name)))
    for name in _stream_linears(module.spec):
        module.get_submodule(name).register_forward_hook(partial(_gate_stream, gates))


def cut_at_gates(ranker: Ranker, gates: Gates, units: ChosenUnits) -> Ranker:
    """Return the ranker that computes what this one does behind gates that are 0 for all but the chosen units.

    Gates of what stays are folded into the matrices and norms behind which they stand.

    Args:
        ranker: the whole one.
        gates: what each unit is multiplied by; those of units that go count as 0.
        units: what stays.
    """
    spec = ranker.spec
    residual = torch.arange(spec.width) if units.residual is None else units.residual
    pooled = {name: torch.arange(head.dense.outputs) for name, head in heads_of(spec) if head.dense}
    kept = Kept(residual=residual, heads=units.heads, neurons=units.neurons, pooled=pooled)
    small = narrowed_stream(spec, len(residual), list(map(len, units.heads)), list(map(len, units.neurons)))
    weights = folded(ranker, gates)
    names = [f"layers.{index}.{output}.bias" for index in range(len(spec.layers)) for output in OUTPUTS.values()]
    biases = {name: weights[name][residual] for name in names if name in weights}
    return ranker.changed(spec=small, weights=with_biases_of_absent(spec, biases, small, sliced(spec, weights, kept)))


def narrowed_stream(spec: RankerSpec, width: int, heads: list[int], neurons: list[int]) -> RankerSpec:
    """Return a narrower shape whose heads keep what stands between their dense and their output layer."""
    small = narrowed(spec, width=width, heads=heads, ffn_widths=neurons)
    if width == spec.width:
        return small
    wide = dict(heads_of(spec))

    def head(name: str, narrow: Any) -> Any:
        if narrow is None or name not in wide or not (dense := wide[name].dense):
            return narrow
        return wide[name].changed(dense=dense.changed(inputs=width))

    layers = [layer.changed(exit=head(f"layers.{i}.exit", layer.exit)) for i, layer in enumerate(small.layers)]
    return small.changed(layers=tuple(layers), head=head("head", small.head))


def folded(ranker: Ranker, gates: Gates) -> dict[str, Tensor]:
    """Return weights that have the gates of heads, neurons and stream in them; norms still count all dimensions."""
    weights = dict(ranker.weights)
    for index, layer in enumerate(ranker.spec.layers):
        for name, found in (("attention.output", gates.heads), ("ffn.down", gates.neurons)):
            name = f"layers.{index}.{name}.weight"
            if name in weights and len(found[index]):  # a linear map has a matrix and no neurons
                width = layer.head_width if "attention" in name else 1
                weights[name] = weights[name] * found[index].detach().cpu().repeat_interleave(width)
    if gates.residual is None:
        return weights
    gate = gates.residual.detach().cpu()
    writers = [name for name, _ in _stream_norms(ranker.module) if _writes_stream(ranker.spec, name)]
    for name in [*writers, *_stream_linears(ranker.spec), *_embedding_writers(ranker.spec)]:
        if name.startswith(("embeddings.tokens", "embeddings.positions", "embeddings.segments")):
            weights[f"{name}.weight"] = weights[f"{name}.weight"] * gate
            continue
        for kind in ("weight", "bias"):
            if (one := weights.get(f"{name}.{kind}")) is not None:
                weights[f"{name}.{kind}"] = one * (gate[:, None] if one.dim() > 1 else gate)
    return weights


def _gate_heads(gates: Callable[[], Gates], index: int, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    gate = gates().heads[index].to(inputs[0].dtype)
    return ((inputs[0].unflatten(-1, (len(gate), -1)) * gate[:, None]).flatten(-2),)


def _gate_neurons(gates: Callable[[], Gates], index: int, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] * gates().neurons[index].to(inputs[0].dtype),)


def _gate_stream(gates: Callable[[], Gates], _: nn.Module, __: object, result: Tensor) -> Tensor:
    gate = gates().residual
    return result if gate is None else result * gate.to(result.dtype)


def _norm_of_open(gates: Callable[[], Gates], writes: bool, norm: Any, inputs: tuple[Tensor], result: Tensor) -> Tensor:
    """Return what the norm would give if closed dimensions were not there; gated where it writes the stream."""
    gate = gates().residual
    if gate is None:
        return result
    is_open = (gate != 0).to(result.dtype)
    values = inputs[0].float()
    n_open = is_open.sum().clamp(min=1)
    if isinstance(norm, nn.LayerNorm):
        values = values - (values * is_open).sum(dim=-1, keepdim=True) / n_open
    variance = (values.square() * is_open).sum(dim=-1, keepdim=True) / n_open
    values = values * torch.rsqrt(variance + norm.eps) * norm.weight
    if getattr(norm, "bias", None) is not None:
        values = values + norm.bias
    return values.to(result.dtype) * (gate.to(result.dtype) if writes else is_open)


def _layers(module: Encoder) -> list[Any]:
    return list(module.layers)


def _stream_norms(module: Encoder) -> list[tuple[str, nn.Module]]:
    """Return the norms over the residual stream, by name; those of heads behind a dense layer have another width."""
    names = [f"layers.{i}.{block}_norm" for i in range(len(module.layers)) for block in ("attention", "ffn")]
    names += ["final_norm"] + [f"{name}.norm" for name, head in heads_of(module.spec) if not head.dense]
    if not module.spec.embeddings.project:
        names.append("embeddings.norm")
    found = [(name, module.get_submodule(name)) for name in names]
    return [(name, norm) for name, norm in found if not isinstance(norm, nn.Identity)]


def _writes_stream(spec: RankerSpec, name: str) -> bool:
    """Return whether a norm's result is the stream itself: that of one behind a block."""
    return name.startswith("layers.") and "exit" not in name and _is_post(spec, name)


def _is_post(spec: RankerSpec, name: str) -> bool:
    return spec.layers[int(name.split(".")[1])].norm_placement == "post"


def _stream_linears(spec: RankerSpec) -> list[str]:
    """Return the output matrices whose result joins the stream as it is: no norm stands behind them."""
    names = []
    for index, layer in enumerate(spec.layers):
        is_post = layer.norm_placement == "post"
        if layer.attention and not (is_post and layer.attention_norm):
            names.append(f"layers.{index}.attention.output")
        if layer.ffn and not (is_post and layer.ffn_norm):
            names.append(f"layers.{index}.ffn.down")
    return names


def _embedding_writers(spec: RankerSpec) -> list[str]:
    embeddings: Mapping[str, Any] = dict(spec.embeddings)
    if embeddings["project"]:
        return ["embeddings.project"]
    if embeddings["norm"]:
        return ["embeddings.norm"]
    return [f"embeddings.{name}" for name in ("tokens", "positions", "segments") if embeddings[name]]
