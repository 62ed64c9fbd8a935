"""Multi-head attention: linears on packed tokens, the product of queries and keys on the padded view.

Mirrors `ranker/attention.py`.
"""

from __future__ import annotations

import math

import numpy as np

from compressor.export.graph import FUSED, Graph
from compressor.export.layout import Layout, attention_bias, first_tokens, pack, pad
from compressor.export.linears import Product, Weights, fused_linears, linear
from compressor.ranker.spec import AttentionSpec, RotarySpec


def attention(
    graph: Graph, name: str, key: str, spec: AttentionSpec, weights: Weights, values: str, layout: Layout,
    first_only: bool,
) -> Product:  # fmt: skip
    """Write attention, ``[T, width] -> [T, width]``, or ``-> [B, width]`` where only first tokens ask."""
    if first_only:
        asking_values = first_tokens(graph, layout, values, f"{name}.asking")
        asked = [spec.key, spec.value]
        keys, mixed_values = fused_linears(graph, name, [f"{key}.key", f"{key}.value"], asked, weights, values)
        (query,) = fused_linears(graph, name, [f"{key}.query"], [spec.query], weights, asking_values)
        positions = first_tokens(graph, layout, layout.positions, f"{name}.asking_positions")
    else:
        names = [f"{key}.{part}" for part in ("query", "key", "value")]
        parts = [spec.query, spec.key, spec.value]
        query, keys, mixed_values = fused_linears(graph, name, names, parts, weights, values)
        positions = layout.positions
    if spec.positions:
        query = rotate(graph, f"{name}.query.rotated", query, positions, spec, spec.positions)
        keys = rotate(graph, f"{name}.key.rotated", keys, layout.positions, spec, spec.positions)
    if first_only:
        query = graph.node("Unsqueeze", [query, graph.ints(1)], f"{name}.query.padded")  # [B, 1, H * d]
    else:
        query = pad(graph, layout, query, f"{name}.query.padded")
    keys = pad(graph, layout, keys, f"{name}.key.padded")
    mixed_values = pad(graph, layout, mixed_values, f"{name}.value.padded")
    mixed = mix(graph, f"{name}.mixed", spec, query, keys, mixed_values, layout, first_only)  # [B, S or 1, H * d]
    if first_only:
        packed = graph.node("Squeeze", [mixed, graph.ints(1)], f"{name}.packed")
    else:
        packed = pack(graph, layout, mixed, f"{name}.packed", spec.heads * spec.head_width)
    return linear(graph, f"{name}.output", f"{key}.output", spec.output, weights, packed)


def mix(
    graph: Graph, name: str, spec: AttentionSpec, query: str, keys: str, values: str, layout: Layout, first_only: bool
) -> str:
    """Write softmax(QKᵀ / √d + bias) V over the padded view, ``[B, S or 1, H * d]``."""
    if graph.fused and spec.pattern.kind == "full":
        return graph.node(
            "MultiHeadAttention", [query, keys, values, "", _key_mask(graph, layout)], name,
            domain=FUSED, num_heads=spec.heads,
        )  # fmt: skip
    heads, width = spec.heads, spec.head_width
    scaled = graph.node("Mul", [query, graph.float_scalar(1 / math.sqrt(width))], f"{name}.scaled")
    query = _heads(graph, f"{name}.query", scaled, heads, width, [0, 2, 1, 3])  # [B, H, S, d]
    keys = _heads(graph, f"{name}.key", keys, heads, width, [0, 2, 3, 1])  # [B, H, d, S]
    values = _heads(graph, f"{name}.value", values, heads, width, [0, 2, 1, 3])
    scores = graph.node("MatMul", [query, keys], f"{name}.scores")
    seen = graph.node("Add", [scores, attention_bias(graph, layout, spec.pattern, first_only)], f"{name}.seen")
    shares = graph.node("Softmax", [seen], f"{name}.shares", axis=-1)
    mixed = graph.node("MatMul", [shares, values], f"{name}.by_head")
    turned = graph.node("Transpose", [mixed], f"{name}.by_token", perm=[0, 2, 1, 3])
    return graph.reshape(turned, name, 0, 0, heads * width)


def _key_mask(graph: Graph, layout: Layout) -> str:
    name = "layout.key_mask"
    if name not in layout.biases:
        layout.biases[name] = graph.node("Cast", [layout.mask], name, to=6)
    return layout.biases[name]


def _heads(graph: Graph, name: str, value: str, heads: int, width: int, order: list[int]) -> str:
    split = graph.reshape(value, f"{name}.split", 0, 0, heads, width)
    return graph.node("Transpose", [split], f"{name}.heads", perm=order)


def rotate(graph: Graph, name: str, values: str, positions: str, attention: AttentionSpec, spec: RotarySpec) -> str:
    """Turn each head's halves by the angle of its position, ``[T, H * d] -> [T, H * d]``."""
    heads, half = attention.heads, attention.head_width // 2
    cosine, sine = angle_tables(spec, half, graph.max_length)
    cosines = graph.weight(f"rotary.{spec.base:g}.cosine", cosine)
    sines = graph.weight(f"rotary.{spec.base:g}.sine", sine)
    if graph.fused:  # a batch of T rows with one token each: the op's tables then bound positions, not tokens
        rows = graph.node("Unsqueeze", [values, graph.ints(1)], f"{name}.rows")
        places = graph.node("Unsqueeze", [positions, graph.ints(1)], f"{name}.places")
        turned = graph.node(
            "RotaryEmbedding", [rows, places, cosines, sines], f"{name}.turned", domain=FUSED, interleaved=0
        )
        return graph.node("Squeeze", [turned, graph.ints(1)], name)
    split = graph.reshape(values, f"{name}.heads", -1, heads, 2 * half)
    left, right = graph.split(split, f"{name}.halves", {"left": half, "right": half})
    cos = graph.node(
        "Unsqueeze", [graph.node("Gather", [cosines, positions], f"{name}.cos_rows"), graph.ints(1)], f"{name}.cos"
    )
    sin = graph.node(
        "Unsqueeze", [graph.node("Gather", [sines, positions], f"{name}.sin_rows"), graph.ints(1)], f"{name}.sin"
    )

    def times(a: str, b: str, part: str) -> str:
        return graph.node("Mul", [a, b], f"{name}.{part}")

    new_left = graph.node("Sub", [times(left, cos, "left_cos"), times(right, sin, "right_sin")], f"{name}.left")
    new_right = graph.node("Add", [times(right, cos, "right_cos"), times(left, sin, "left_sin")], f"{name}.right")
    joined = graph.node("Concat", [new_left, new_right], f"{name}.joined", axis=-1)
    return graph.reshape(joined, name, -1, heads * 2 * half)


def angle_tables(spec: RotarySpec, half: int, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and sines of each position's angles, float32 ``[max_length, d / 2]`` each."""
    frequencies = np.power(np.float32(spec.base), -np.arange(half, dtype=np.float32) / np.float32(half))
    angles = np.arange(max_length, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
