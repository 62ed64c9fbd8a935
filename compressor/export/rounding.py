"""Matrix products of rounded weights with rounded activations; mirrors `ranker/quantizers.py`.

Each returns the product's value and the bias that is still to be added to it, if any.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from compressor.export.graph import FUSED, Graph
from compressor.ranker.quantizers import int8_rows, scale_and_zero, weight_blocks, weight_levels
from compressor.ranker.spec import Int4Blocks, Int8Blocks, Int8Dynamic, Int8Static

_ACCURACY_OF_INT8 = 4  # of MatMulNBits: activations are rounded by blocks, products are those of whole numbers
_LEAST_BLOCK = 1e-30  # as in the simulation

Pending = tuple[str, Tensor | None]


def dynamic_product(
    graph: Graph, name: str, weight: Tensor, bias: Tensor | None, precision: Int8Dynamic, values: str
) -> Pending:
    """Write a product whose activations are rounded by the range that they have in this call."""
    matrix, scale = _rows(graph, name, weight, weight_levels(precision))
    quantized, input_scale, zero = _dynamically(graph, values)
    if graph.fused:
        return _integer_product(graph, name, [quantized, matrix, input_scale, scale, zero], bias)
    sums = graph.node("MatMulInteger", [quantized, matrix, zero], f"{name}.sums")
    factors = graph.node("Mul", [input_scale, scale], f"{name}.factors")
    return graph.node("Mul", [graph.node("Cast", [sums], f"{name}.float", to=1), factors], name), bias


def static_product(
    graph: Graph,
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    precision: Int8Static,
    values: str,
    input_range: Tensor,
) -> Pending:
    """Write a product whose activations are rounded by a fixed range, ``[2]``.

    The portable form is QDQ: runtimes with kernels for whole numbers find them there.
    """
    matrix, scale = _rows(graph, name, weight, weight_levels(precision))
    quantized, input_scale, zero = _statically(graph, values, input_range)
    if graph.fused:
        return _integer_product(graph, name, [quantized, matrix, input_scale, scale, zero], bias)
    read = graph.once(
        f"{quantized}.float", lambda at: graph.node("DequantizeLinear", [quantized, input_scale, zero], at)
    )
    back = _dequantized(graph, name, matrix, scale, len(weight), axis=1)
    return graph.node("MatMul", [read, back], name), bias


def block_product(graph: Graph, name: str, weight: Tensor, precision: Int8Blocks | Int4Blocks, values: str) -> str:
    """Write a product of weights rounded by blocks with activations rounded by blocks, without a bias.

    The portable form spells it out: standard ops of this opset know neither 4 bits nor blocks. Its weights take 8 bits
    then, and the product is one of floats.
    """
    bits, size = precision.bits, precision.block_size
    codes, scales = weight_blocks(weight, bits, size)
    outputs, inputs = weight.shape
    if graph.fused:
        packed = graph.weight(f"{name}.weight", packed_blocks(codes.numpy(), bits))
        scale = graph.weight(f"{name}.scale", scales.flatten().numpy())
        return graph.node(
            "MatMulNBits", [values, packed, scale], name, domain=FUSED,
            K=inputs, N=outputs, bits=bits, block_size=size, accuracy_level=_ACCURACY_OF_INT8,
        )  # fmt: skip
    scale = graph.weight(f"{name}.scale", scales.flatten().numpy())
    matrix = _own(graph, f"{name}.weight", codes.flatten(0, 1).numpy())  # [outputs * blocks, size]
    back = _dequantized(graph, name, matrix, scale, scales.numel(), axis=0)
    rows = graph.reshape(back, f"{name}.rows", outputs, -1)
    turned = graph.node("Transpose", [rows], f"{name}.turned", perm=[1, 0])  # [blocks * size, outputs]
    return graph.node("MatMul", [_by_blocks(graph, values, inputs, size), turned], name)


def rows_of_4_bits(graph: Graph, name: str, rows: Tensor, precision: Int4Blocks, ids: str) -> str:
    """Look up rows of a table stored in 4 bits by blocks, ``[T] -> [T, width]`` in fp32, by standard operators alone.

    A byte holds a number of the left half of a row in its lower half, and its counterpart of the right half.
    """
    codes, scales = weight_blocks(rows, precision.bits, precision.block_size)
    blocks, size = codes.shape[1:]
    unsigned = (codes.numpy().astype(np.int16) + 8).astype(np.uint8).reshape(len(codes), -1)
    half = unsigned.shape[1] // 2
    stored = graph.weight(f"{name}.weight", unsigned[:, :half] | (unsigned[:, half:] << 4))
    found = graph.node("Cast", [graph.node("Gather", [stored, ids], f"{name}.bytes")], f"{name}.both", to=1)
    shifted = graph.node("Mul", [found, graph.float_scalar(1 / 16)], f"{name}.shifted")
    right = graph.node("Floor", [shifted], f"{name}.right")
    left = graph.node(
        "Sub", [found, graph.node("Mul", [right, graph.float_scalar(16.0)], f"{name}.of_right")], f"{name}.left"
    )
    both = graph.node("Concat", [left, right], f"{name}.unsigned", axis=-1)
    signed = graph.node("Sub", [both, graph.float_scalar(8.0)], f"{name}.codes")
    scale = graph.node("Gather", [graph.weight(f"{name}.scale", scales[..., None].numpy()), ids], f"{name}.scales")
    product = graph.node("Mul", [graph.reshape(signed, f"{name}.blocks", -1, blocks, size), scale], f"{name}.scaled")
    found = graph.reshape(product, f"{name}.whole", -1, blocks * size)
    width = rows.shape[1]
    return (
        found
        if width == blocks * size
        else graph.node("Slice", [found, graph.ints(0), graph.ints(width), graph.ints(1)], f"{name}.columns")
    )


def packed_blocks(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes ``[rows, blocks, size]`` as `MatMulNBits` stores them: unsigned, two of 4 bits in a byte.

    The first of the two takes the lower half.
    """
    unsigned = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return unsigned if bits == 8 else unsigned[..., 0::2] | (unsigned[..., 1::2] << 4)


def _rows(graph: Graph, name: str, weight: Tensor, levels: int) -> tuple[str, str]:
    rounded, scales = int8_rows(weight, levels=levels)
    return _own(graph, f"{name}.weight", rounded.numpy().T), graph.weight(f"{name}.scale", scales.numpy())


def _own(graph: Graph, name: str, codes: np.ndarray) -> str:
    """Store int8 codes for one node alone.

    Where ONNX Runtime is told to widen sums, it makes them unsigned node by node, and fails on what several share.
    """
    return graph.weight(name, codes, shared=False)


def _dequantized(graph: Graph, name: str, matrix: str, scale: str, n_scales: int, axis: int) -> str:
    """Return int8 codes times their scales along an axis.

    Zero points are spelled out: ONNX Runtime, told to widen sums, would add a scalar, which it then refuses.
    """
    zeros = _own(graph, f"{name}.zero_points", np.zeros(n_scales, np.int8))
    return graph.node("DequantizeLinear", [matrix, scale, zeros], f"{name}.float", axis=axis)


def _integer_product(graph: Graph, name: str, factors: list[str], bias: Tensor | None) -> Pending:
    inputs = [*factors, ""]
    inputs += [graph.weight(f"{name}.bias", bias.numpy())] if bias is not None else []
    return graph.node("MatMulIntegerToFloat", inputs, name, domain=FUSED), None


def _dynamically(graph: Graph, values: str) -> list[str]:
    """Round activations to uint8, once for all linears that take them."""
    outputs = [f"{values}.quantized", f"{values}.quantized.scale", f"{values}.quantized.zero_point"]
    if graph.has(outputs[0]):
        return outputs
    return graph.nodes("DynamicQuantizeLinear", [values], outputs, name=f"{values}.quantize")


def _statically(graph: Graph, values: str, input_range: Tensor) -> tuple[str, str, str]:
    """Round activations to uint8 by a range, once for all linears that take them in the same range."""
    scale, zero = scale_and_zero(*input_range)
    name = f"{values}.quantized.{float(scale)!r}.{int(zero)}"
    stored_scale = graph.weight(f"{name}.scale", scale.numpy())
    stored_zero = graph.weight(f"{name}.zero_point", zero.numpy().astype(np.uint8))
    quantized = graph.once(name, lambda at: graph.node("QuantizeLinear", [values, stored_scale, stored_zero], at))
    return quantized, stored_scale, stored_zero


def _by_blocks(graph: Graph, values: str, inputs: int, size: int) -> str:
    """Round activations to int8 by blocks in floats, ``[T, inputs] -> [T, blocks * size]``, once for all linears."""

    def make(name: str) -> str:
        missing = -inputs % size
        filled = values
        if missing:
            pads = graph.ints(0, 0, 0, missing)
            filled = graph.node("Pad", [values, pads, graph.float_scalar(0.0)], f"{name}.filled")
        blocks = graph.reshape(filled, f"{name}.blocks", -1, (inputs + missing) // size, size)
        magnitudes = graph.node("Abs", [blocks], f"{name}.magnitudes")
        largest = graph.node("ReduceMax", [magnitudes], f"{name}.largest", axes=[-1], keepdims=1)
        largest = graph.node("Max", [largest, graph.float_scalar(_LEAST_BLOCK)], f"{name}.bounded")
        steps = graph.node("Div", [graph.float_scalar(127.0), largest], f"{name}.steps")
        codes = graph.node("Round", [graph.node("Mul", [blocks, steps], f"{name}.scaled")], f"{name}.codes")
        scale = graph.node("Div", [largest, graph.float_scalar(127.0)], f"{name}.scale")
        return graph.reshape(graph.node("Mul", [codes, scale], f"{name}.rounded"), name, -1, inputs + missing)

    return graph.once(f"{values}.by_blocks_of_{size}", make)
