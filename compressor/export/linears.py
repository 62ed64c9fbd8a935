"""Linear layers and lookup tables of every form and precision; mirrors `ranker/linears.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressor.export.graph import Graph
from compressor.export.rounding import block_product, dynamic_product, rows_of_4_bits, static_product
from compressor.ranker.quantizers import int8_rows
from compressor.ranker.spec import (
    Int4Blocks,
    Int8Blocks,
    Int8Dynamic,
    Int8Static,
    LinearPrecision,
    LinearSpec,
    LowRankForm,
    TableSpec,
    float_kind,
)

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
    ranges = weights.get(f"{key}.input_ranges")
    if isinstance(spec.form, LowRankForm):
        first, second = (None, None) if ranges is None else ranges
        thin = _product(graph, f"{name}.thin", weights[f"{key}.down"], None, spec.precision, values, first)
        return _product(graph, name, weights[f"{key}.up"], bias, spec.precision, thin.value, second)
    only = None if ranges is None else ranges[0]
    return _product(graph, name, weights[f"{key}.weight"], bias, spec.precision, values, only)


def fused_linears(
    graph: Graph, name: str, key: str, specs: Mapping[str, LinearSpec], weights: Weights, values: str
) -> list[Product]:
    """Write linears of the same input as columns of one product where forms, precisions and ranges are alike.

    Args:
        graph: takes the nodes.
        name: name of the part that holds them, ``layer.3.attention``.
        key: the same in the weights' names.
        specs: the linears, by the last part of their names.
        weights: all weights of the ranker.
        values: packed values ``[T, inputs]``.
    """
    first = next(iter(specs.values()))
    ranges = [found for part in specs if (found := weights.get(f"{key}.{part}.input_ranges")) is not None]
    is_one = all(spec.is_one_matrix and spec.precision == first.precision for spec in specs.values())
    if not is_one or not all(torch.equal(found, ranges[0]) for found in ranges):
        return [linear(graph, f"{name}.{part}", f"{key}.{part}", spec, weights, values) for part, spec in specs.items()]
    stacked = torch.cat([weights[f"{key}.{part}.weight"] for part in specs])
    biases = [weights[f"{key}.{part}.bias"] if spec.bias else torch.zeros(spec.outputs) for part, spec in specs.items()]
    bias = torch.cat(biases) if any(spec.bias for spec in specs.values()) else None
    only = ranges[0][0] if ranges else None
    whole = _product(graph, f"{name}.{'_'.join(specs)}", stacked, bias, first.precision, values, only)
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


def lifted(graph: Graph, specs: Sequence[LinearSpec], values: str) -> str:
    """Return packed values as ``[1, T, inputs]`` where linears round them by fixed ranges in standard ops.

    OpenVINO folds a norm's gain into the rounding of a matrix ``[T, inputs]``, which is then a pass of its own over
    numbers in fp32, and leaves it with the norm where there are three axes.
    """
    if not _are_lifted(graph, specs):
        return values
    return graph.once(f"{values}.lifted", lambda at: graph.node("Unsqueeze", [values, graph.ints(0)], at))


def lowered(graph: Graph, name: str, specs: Sequence[LinearSpec], product: Product) -> Product:
    """Return what comes of values that `lifted` has lifted for ``specs`` as ``[T, outputs]`` again, its bias added."""
    if not _are_lifted(graph, specs):
        return product
    whole = add_bias(graph, f"{name}.biased", product)
    return replace(product, value=graph.node("Squeeze", [whole, graph.ints(0)], f"{name}.lowered"), bias=None)


def _are_lifted(graph: Graph, specs: Sequence[LinearSpec]) -> bool:
    """What rounds by blocks reads matrices."""
    kinds = {spec.precision.kind for spec in specs}
    return not graph.fused and "int8_static" in kinds and kinds <= {"int8_static", "fp32"}


def add_bias(graph: Graph, name: str, product: Product) -> str:
    """Return a whole product with its bias added."""
    if product.bias is None:
        return product.value
    return graph.node("Add", [product.value, graph.weight(f"{name}.bias", product.bias.numpy())], name)


def table(graph: Graph, name: str, key: str, spec: TableSpec, weights: Weights, ids: str, first_row: int = 0) -> str:
    """Look rows up, ``[T] -> [T, width]`` in fp32; ``first_row`` is the row that id 0 takes."""
    rows = weights[f"{key}.weight"][first_row:]
    if isinstance(spec.precision, Int4Blocks):
        return rows_of_4_bits(graph, name, rows, spec.precision, ids)
    if spec.precision.kind != "int8_rows":
        floats = float_kind(spec.precision)
        with graph.computing_in(floats):
            stored = graph.weight(f"{name}.weight", rows.numpy())
        if floats == "fp32":
            return graph.node("Gather", [stored, ids], name)
        return graph.cast(graph.node("Gather", [stored, ids], f"{name}.rows"), name, floats, "fp32")
    values, scales = int8_rows(rows)
    found = graph.node("Gather", [graph.weight(f"{name}.weight", values.numpy()), ids], f"{name}.rows")
    scale = graph.node("Gather", [graph.weight(f"{name}.scale", scales[:, None].numpy()), ids], f"{name}.scales")
    return graph.node("Mul", [graph.node("Cast", [found], f"{name}.float", to=1), scale], name)


def _product(
    graph: Graph, name: str, weight: Tensor, bias: Tensor | None, precision: LinearPrecision, values: str,
    input_range: Tensor | None,
) -> Product:  # fmt: skip
    around, own = graph.floats, float_kind(precision)
    if around != own:
        values = graph.cast(values, f"{name}.input", around, own)
        with graph.computing_in(own):
            product = _product(graph, f"{name}.product", weight, bias, precision, values, input_range)
            value = add_bias(graph, f"{name}.biased", product)
        value = graph.cast(value, name, own, around)
        return Product(value=value, columns=len(weight), width=len(weight), bias=None)
    match precision:
        case Int8Dynamic():
            value, left = dynamic_product(graph, name, weight, bias, precision, values)
        case Int8Static():
            assert input_range is not None  # noqa: S101  # the weights were checked against the spec
            value, left = static_product(graph, name, weight, bias, precision, values, input_range)
        case Int8Blocks() | Int4Blocks():
            value, left = block_product(graph, name, weight, precision, values), bias
        case _:
            value, left = graph.node("MatMul", [values, graph.weight(f"{name}.weight", weight.numpy().T)], name), bias
    return Product(value=value, columns=len(weight), width=len(weight), bias=left)
