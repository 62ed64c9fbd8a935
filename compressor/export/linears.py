"""Linear layers and lookup tables of every form and precision; mirrors `ranker/linears.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.export.graph import FUSED, Graph
from compressor.ranker.linears import int8_rows, weight_levels
from compressor.ranker.spec import Int8Dynamic, LinearPrecision, LinearSpec, LowRankForm, TableSpec

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """A matrix product, or some columns of one, whose bias may still be open.

    Attributes:
        value: the product ``[T, columns]``.
        columns: how many columns ``value`` has.
        first: where this product's columns begin.
        width: how many columns are this product's.
        bias: float ``[width]``, which whoever takes the product has still to add; None where nothing is left to add.
    """

    value: str
    columns: int
    first: int = 0
    width: int
    bias: Tensor | None


def linear(graph: Graph, name: str, key: str, spec: LinearSpec, weights: Weights, values: str) -> Product:
    """Write ``x Wᵀ``, with the bias left open where a later op adds it for less.

    Args:
        graph: takes the nodes.
        name: node name, ``layer.3.ffn.down``.
        key: name of the weights, ``layers.3.ffn.down``.
        spec: form and precision.
        weights: all weights of the ranker.
        values: packed values ``[T, inputs]``.
    """
    bias = weights[f"{key}.bias"] if spec.bias else None
    if isinstance(spec.form, LowRankForm):
        thin = _product(graph, f"{name}.thin", weights[f"{key}.down"], None, spec.precision, values)
        return _product(graph, name, weights[f"{key}.up"], bias, spec.precision, thin.value)
    return _product(graph, name, weights[f"{key}.weight"], bias, spec.precision, values)


def fused_linears(
    graph: Graph, name: str, key: str, specs: Mapping[str, LinearSpec], weights: Weights, values: str
) -> list[Product]:
    """Write linears of the same input as columns of one product where their forms and precisions are alike.

    Args:
        graph: takes the nodes.
        name: name of the part that holds them, ``layer.3.attention``.
        key: the same in the weights' names.
        specs: the linears, by the last part of their names.
        weights: all weights of the ranker.
        values: packed values ``[T, inputs]``.
    """
    first = next(iter(specs.values()))
    if not all(spec.is_one_matrix and spec.precision == first.precision for spec in specs.values()):
        return [linear(graph, f"{name}.{part}", f"{key}.{part}", spec, weights, values) for part, spec in specs.items()]
    stacked = torch.cat([weights[f"{key}.{part}.weight"] for part in specs])
    biases = [weights[f"{key}.{part}.bias"] if spec.bias else torch.zeros(spec.outputs) for part, spec in specs.items()]
    bias = torch.cat(biases) if any(spec.bias for spec in specs.values()) else None
    whole = _product(graph, f"{name}.{'_'.join(specs)}", stacked, bias, first.precision, values)
    return _columns(whole, [spec.outputs for spec in specs.values()])


def _columns(whole: Product, widths: Sequence[int]) -> list[Product]:
    starts = [sum(widths[:index]) for index in range(len(widths))]
    return [
        Product(
            value=whole.value, columns=whole.columns, first=start, width=width,
            bias=None if whole.bias is None else whole.bias[start : start + width],
        )
        for start, width in zip(starts, widths, strict=True)
    ]  # fmt: skip


def add_bias(graph: Graph, name: str, product: Product) -> str:
    """Return a whole product with its bias added."""
    if product.bias is None:
        return product.value
    return graph.node("Add", [product.value, graph.weight(f"{name}.bias", product.bias.numpy())], name)


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
    graph: Graph, name: str, weight: Tensor, bias: Tensor | None, precision: LinearPrecision, values: str
) -> Product:
    if isinstance(precision, Int8Dynamic):
        return _int8_product(graph, name, weight, bias, precision, values)
    value = graph.node("MatMul", [values, graph.weight(f"{name}.weight", weight.numpy().T)], name)
    return Product(value=value, columns=len(weight), width=len(weight), bias=bias)


def _int8_product(
    graph: Graph, name: str, weight: Tensor, bias: Tensor | None, precision: Int8Dynamic, values: str
) -> Product:
    rounded, scales = int8_rows(weight, levels=weight_levels(precision))
    matrix = graph.weight(f"{name}.weight", rounded.numpy().T)
    scale = graph.weight(f"{name}.scale", scales.numpy())
    quantized, input_scale, zero = _quantized(graph, values)
    width = len(weight)
    if graph.fused:
        inputs = [quantized, matrix, input_scale, scale, zero, ""]
        inputs += [graph.weight(f"{name}.bias", bias.numpy())] if bias is not None else []
        value = graph.node("MatMulIntegerToFloat", inputs, name, domain=FUSED)
        return Product(value=value, columns=width, width=width, bias=None)
    sums = graph.node("MatMulInteger", [quantized, matrix, zero], f"{name}.sums")
    factors = graph.node("Mul", [input_scale, scale], f"{name}.factors")
    value = graph.node("Mul", [graph.node("Cast", [sums], f"{name}.float", to=1), factors], name)
    return Product(value=value, columns=width, width=width, bias=bias)


def _quantized(graph: Graph, values: str) -> list[str]:
    """Round activations to uint8, once for all linears that take them."""
    outputs = [f"{values}.quantized", f"{values}.quantized.scale", f"{values}.quantized.zero_point"]
    if graph.has(outputs[0]):
        return outputs
    return graph.nodes("DynamicQuantizeLinear", [values], outputs, name=f"{values}.quantize")
