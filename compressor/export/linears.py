"""Linear layers and lookup tables of every form and precision; mirrors `ranker/linears.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compressor.export.graph import FUSED, Graph
from compressor.ranker.linears import int8_rows, weight_levels
from compressor.ranker.spec import DenseForm, Int8Dynamic, LinearPrecision, LinearSpec, LowRankForm, TableSpec

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """A matrix product ``[T, outputs]`` and the bias that whoever takes it has still to add (None: nothing)."""

    value: str
    bias: str | None


def linear(graph: Graph, name: str, key: str, spec: LinearSpec, weights: Weights, values: str) -> Product:
    """Write ``x Wᵀ``, with the bias left open where a later op adds it for free.

    Args:
        graph: takes the nodes.
        name: node name, ``layer.3.ffn.down``.
        key: name of the weights, ``layers.3.ffn.down``.
        spec: form and precision.
        weights: all weights of the ranker.
        values: packed values ``[T, inputs]``.
    """
    bias = weights[f"{key}.bias"].numpy() if spec.bias else None
    if isinstance(spec.form, LowRankForm):
        thin = _product(graph, f"{name}.thin", weights[f"{key}.down"], None, spec.precision, values)
        return _product(graph, name, weights[f"{key}.up"], bias, spec.precision, thin.value)
    return _product(graph, name, weights[f"{key}.weight"], bias, spec.precision, values)


def fused_linears(
    graph: Graph, name: str, keys: Sequence[str], specs: Sequence[LinearSpec], weights: Weights, values: str
) -> list[str]:
    """Write several linears of the same input: as one product where their forms and precisions are alike.

    Returns:
        Their results ``[T, outputs]``, biases added, in order.
    """
    parts = [key.rpartition(".")[2] for key in keys]
    alike = all(isinstance(s.form, DenseForm) and s.precision == specs[0].precision for s in specs)
    if not alike:
        return [
            add_bias(graph, f"{name}.{part}", linear(graph, f"{name}.{part}.product", key, spec, weights, values))
            for part, key, spec in zip(parts, keys, specs, strict=True)
        ]
    stacked = torch.cat([weights[f"{key}.weight"] for key in keys])
    biases = [
        weights[f"{key}.bias"] if spec.bias else torch.zeros(spec.outputs)
        for key, spec in zip(keys, specs, strict=True)
    ]
    bias = torch.cat(biases).numpy() if any(spec.bias for spec in specs) else None
    joined = "_".join(parts)
    product = _product(graph, f"{name}.{joined}.product", stacked, bias, specs[0].precision, values)
    result = add_bias(graph, f"{name}.{joined}", product)
    if len(keys) == 1:
        return [result]
    widths = {part: spec.outputs for part, spec in zip(parts, specs, strict=True)}
    return graph.split(result, f"{name}.split", widths)


def add_bias(graph: Graph, name: str, product: Product) -> str:
    """Return the product with its bias added."""
    return graph.node("Add", [product.value, product.bias], name) if product.bias else product.value


def table(graph: Graph, name: str, key: str, spec: TableSpec, weights: Weights, ids: str, first_row: int = 0) -> str:
    """Look rows up, ``[T] -> [T, width]``; ``first_row`` is the row that id 0 takes."""
    rows = weights[f"{key}.weight"][first_row:]
    if spec.precision.kind != "int8_rows":
        return graph.node("Gather", [graph.weight(f"{name}.weight", rows.numpy()), ids], name)
    values, scales = int8_rows(rows)
    found = graph.node("Gather", [graph.weight(f"{name}.weight", values.numpy()), ids], f"{name}.rows")
    scale = graph.node("Gather", [graph.weight(f"{name}.scale", scales[:, None].numpy()), ids], f"{name}.scales")
    return graph.node("Mul", [graph.node("Cast", [found], f"{name}.float", to=1), scale], name)


def _product(
    graph: Graph, name: str, weight: Tensor, bias: np.ndarray | None, precision: LinearPrecision, values: str
) -> Product:
    bias_name = graph.weight(f"{name}.bias", bias) if bias is not None else None
    if isinstance(precision, Int8Dynamic):
        return _int8_product(graph, name, weight, bias_name, precision, values)
    matrix = graph.weight(f"{name}.weight", weight.numpy().T)
    return Product(value=graph.node("MatMul", [values, matrix], name), bias=bias_name)


def _int8_product(
    graph: Graph, name: str, weight: Tensor, bias: str | None, precision: Int8Dynamic, values: str
) -> Product:
    rounded, scales = int8_rows(weight, levels=weight_levels(precision))
    matrix = graph.weight(f"{name}.weight", rounded.numpy().T)
    scale = graph.weight(f"{name}.scale", scales.numpy())
    if graph.fused:
        inputs = [values, matrix, scale, "", bias] if bias else [values, matrix, scale]
        return Product(value=graph.node("DynamicQuantizeMatMul", inputs, name, domain=FUSED), bias=None)
    outputs = [f"{name}.quantized", f"{name}.input_scale", f"{name}.zero_point"]
    quantized, input_scale, zero = graph.nodes("DynamicQuantizeLinear", [values], outputs, name=f"{name}.quantize")
    sums = graph.node("MatMulInteger", [quantized, matrix, zero], f"{name}.sums")
    factors = graph.node("Mul", [input_scale, scale], f"{name}.factors")
    value = graph.node("Mul", [graph.node("Cast", [sums], f"{name}.float", to=1), factors], name)
    return Product(value=value, bias=bias)
