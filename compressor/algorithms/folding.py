"""Folding: what a narrower ranker leaves out is predicted from what it keeps, inside the matrices that read it.

Dimensions of the residual stream, neurons and heads are far from independent: where some are cut, least squares on
calibration texts tells what they would have been, and the prediction is one more linear map, which goes into the next
matrix. Norms over fewer dimensions have other means and variances: their weights are fitted to what the whole norm
gave. (After least-squares reconstruction in channel pruning: He et al., arXiv 1707.06168.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.algorithms.calibration import CalibrationBatch
from compressor.algorithms.linear_fits import Moments, most_telling, prediction
from compressor.algorithms.subcloning import Kept, axes_of, heads_of, sliced
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.linears import Linear
from compressor.ranker.names import renumbered
from compressor.ranker.spec import LinearMapSpec, RankerSpec

Inputs = Mapping[str, Moments]  # module name of a linear → moments of what it reads

_READ_TOGETHER = {"key": "query", "value": "query", "gate": "up"}


def measure_inputs(module: Encoder, batches: Sequence[CalibrationBatch]) -> Inputs:
    """Measure what every linear reads, over all real tokens; query, key and value share theirs, as do gate and up."""
    found: dict[str, Moments] = {}
    parts: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        parent, _, kind = name.rpartition(".")
        if isinstance(part, Linear):
            if kind in _READ_TOGETHER:
                found[name] = found[f"{parent}.{_READ_TOGETHER[kind]}"]
            else:
                found[name], parts[name] = Moments(), part
    _run(module, batches, parts, lambda name, values, _: found[name].add(values), "Measuring inputs")
    return found


def of_layers(inputs: Inputs, layers: Sequence[int]) -> Inputs:
    """Return the moments of some layers alone, under their new numbers, and all that belong to no layer."""
    places = {old: new for new, old in enumerate(layers)}
    return {new: moments for name, moments in inputs.items() if (new := renumbered(name, places))}


def most_predictive(inputs: Inputs, weights: Mapping[str, Tensor], spec: RankerSpec, small: RankerSpec) -> Kept:
    """Choose what stays of a ranker so that it gets the shape ``small``: that which tells most about the rest.

    Args:
        inputs: what its linears read.
        weights: its weights.
        spec: its shape.
        small: the shape that is wanted.
    """

    def sites(*names: str) -> list[tuple[Tensor, Tensor]]:
        """Return what some linears read together: one site, or none where a layer has no such linear."""
        names = tuple(name for name in names if name in inputs)
        if not names:
            return []
        reader = torch.cat([_matrix(weights, name) for name in names])
        return [(inputs[names[0]].second(centered=f"{names[0]}.bias" in weights), reader)]

    stream, heads, neurons = [], [], []
    for index, (layer, narrow) in enumerate(zip(spec.layers, small.layers, strict=True)):
        attention, ffn = f"layers.{index}.attention", f"layers.{index}.ffn"
        stream += sites(*(f"{attention}.{name}" for name in ("query", "key", "value")))
        stream += sites(f"{ffn}.down") if isinstance(layer.ffn, LinearMapSpec) else sites(f"{ffn}.up", f"{ffn}.gate")
        heads.append(_chosen(sites(f"{attention}.output"), narrow.heads, layer.head_width))
        neurons.append(_chosen(sites(f"{ffn}.down"), narrow.ffn_width))
    for name, head in heads_of(spec):
        stream += sites(f"{name}.{'dense' if head.dense else 'output'}")
    pooled = {
        name: _chosen(sites(f"{name}.output"), head.dense.outputs) for name, head in heads_of(small) if head.dense
    }
    return Kept(residual=_chosen(stream, small.width), heads=heads, neurons=neurons, pooled=pooled)


def _chosen(sites: Sequence[tuple[Tensor, Tensor]], count: int, group: int = 1) -> Tensor:
    if not sites or count * group in (0, sites[0][1].shape[1]):
        return torch.arange(count)
    return most_telling([second for second, _ in sites], [reader for _, reader in sites], count, group)


def folded(spec: RankerSpec, weights: Mapping[str, Tensor], kept: Kept, inputs: Inputs) -> dict[str, Tensor]:
    """Return the weights between the parts that stay, with predictions of the rest folded into them.

    Args:
        spec: the shape of ``weights``.
        weights: of the ranker whose parts ``kept`` counts.
        kept: what stays.
        inputs: what its linears read.
    """
    small = sliced(spec, weights, kept)
    for name, (outputs, read) in axes_of(spec, kept):
        is_left = f"{name}.weight" in small or f"{name}.down" in small
        if read is not None and name in inputs and is_left:
            _fold(small, weights, name, outputs, prediction(inputs[name], read, centered=f"{name}.bias" in weights))
    return small


def _fold(
    small: dict[str, Tensor], weights: Mapping[str, Tensor], name: str, outputs: Tensor | None,
    predicted: tuple[Tensor, Tensor],
) -> None:  # fmt: skip
    factors, constants = predicted
    kind = "down" if f"{name}.down" in weights else "weight"  # of a low-rank linear, `down` reads
    reads = weights[f"{name}.{kind}"]
    if kind == "weight" and outputs is not None:
        reads = reads[outputs]
    small[f"{name}.{kind}"] = reads @ factors
    if f"{name}.bias" in small:
        more = reads @ constants
        small[f"{name}.bias"] = small[f"{name}.bias"] + (small[f"{name}.up"] @ more if kind == "down" else more)


def _matrix(weights: Mapping[str, Tensor], name: str) -> Tensor:
    return weights[f"{name}.weight"] if f"{name}.weight" in weights else weights[f"{name}.up"] @ weights[f"{name}.down"]


@dataclass
class _NormFit:
    """Sums for the regression of each dimension of a norm's result on the same dimension, normed among fewer."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    n: int = 0

    def add(self, own: Tensor, wanted: Tensor) -> None:
        self.n += len(own)
        found = {"x": own, "y": wanted, "xx": own * own, "xy": own * wanted}
        for name, values in found.items():
            self.sums[name] = self.sums.get(name, 0) + values.double().sum(dim=0)

    def weights(self, has_bias: bool) -> dict[str, Tensor]:
        x, y, xx, xy = (self.sums[name] / self.n for name in ("x", "y", "xx", "xy"))
        tiny = torch.finfo(torch.float32).tiny
        if not has_bias:
            return {"weight": (xy / xx.clamp(min=tiny)).float()}
        weight = (xy - x * y) / (xx - x * x).clamp(min=tiny)
        return {"weight": weight.float(), "bias": (y - weight * x).float()}


def fitted_norms(
    module: Encoder, batches: Sequence[CalibrationBatch], spec: RankerSpec, kept: Kept, layers: Sequence[int]
) -> dict[str, Tensor]:
    """Return weights of norms over fewer dimensions, by name, fitted to what the whole norms gave there.

    Args:
        module: the whole ranker.
        batches: calibration texts.
        spec: the shape whose parts ``kept`` counts.
        kept: what stays.
        layers: the module's layer of each layer of ``spec``.
    """
    own = dict(module.named_modules())
    stays = {}
    for name, (dimensions, _) in axes_of(spec, kept):
        whole = renumbered(name, dict(enumerate(layers)))
        if whole and dimensions is not None and isinstance(own.get(whole), nn.LayerNorm | nn.RMSNorm):
            stays[whole] = (name, dimensions)
    fits = {name: _NormFit() for name in stays}

    def add(whole: str, values: Tensor, result: Tensor) -> None:
        part: Any = own[whole]
        _, dimensions = stays[whole]
        few = values[..., dimensions]
        norm = F.rms_norm if isinstance(part, nn.RMSNorm) else F.layer_norm
        fits[whole].add(norm(few, (len(dimensions),), eps=part.eps), result[..., dimensions])

    _run(module, batches, {name: own[name] for name in stays}, add, "Fitting norms")
    return {
        f"{stays[whole][0]}.{kind}": tensor
        for whole, fit in fits.items()
        if fit.n
        for kind, tensor in fit.weights(has_bias=getattr(own[whole], "bias", None) is not None).items()
    }


def _run(
    module: Encoder, batches: Sequence[CalibrationBatch], parts: Mapping[str, nn.Module],
    show: Callable[[str, Tensor, Tensor], None], title: str,
) -> None:  # fmt: skip
    """Run all that a ranker computes, exits too, and show what some of its parts read and give."""
    with torch.inference_mode(), _shown(parts, show), progress(title, len(batches)) as advance:
        for batch in batches:
            inputs = batch.inputs
            values = module.embed(batch.layout, inputs["input_ids"], inputs.get("token_type_ids"))
            layers: Iterable[Any] = module.layers
            for index, layer in enumerate(layers):
                values = layer(values, batch.layout)
                if layer.spec.exit:
                    module.exit_logits(index, values, batch.layout)
            module.head(module.pool(values, batch.layout, first_only=False))
            advance()


@contextmanager
def _shown(parts: Mapping[str, nn.Module], show: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    hooks = [
        part.register_forward_hook(lambda _, inputs, result, name=name: show(name, inputs[0], result))
        for name, part in parts.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
