"""Multi-head attention: linears on packed tokens, the product of queries and keys on the padded view by heads.

Mirrors `ranker/attention.py`. One gather takes packed columns straight to ``[B, H, S, d]``, and one takes the result
back, so that packing costs no more than the transposes that any attention needs. ONNX Runtime's fused
MultiHeadAttention makes these transposes on one thread and is slower on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from compressor.export.attention_bias import attention_bias
from compressor.export.graph import FUSED, Graph
from compressor.export.layout import Layout, by_heads, by_tokens, first_tokens, pad, padded_positions, seen_by
from compressor.export.linears import Product, Weights, fused_linears, lifted, linear, lowered
from compressor.export.query_rows import keys_of
from compressor.ranker.spec import AttentionPattern, AttentionSpec, LinearSpec, LowRankForm, RotarySpec


def attention(
    graph: Graph, name: str, key: str, spec: AttentionSpec, weights: Weights, values: str, layout: Layout,
    first_only: bool, whole_keys: bool = False, shown: str | None = None,
) -> Product:  # fmt: skip
    """Write attention, ``[T, width] -> [T, width]``, or ``-> [B, width]`` where only first tokens ask.

    Args:
        graph: the graph under construction.
        name: what its values are named after.
        key: where its weights are found.
        spec: its shape.
        weights: of the ranker.
        values: packed states ``[T, width]``.
        layout: where they stand.
        first_only: whether first tokens alone ask.
        whole_keys: write keys with their bias even where the attention can do without, see `keys_before_rotation`.
        shown: packed states that keys and values are made of, where ``layout.shown`` says; by default the states.
    """
    if first_only and _needs_no_keys(graph, spec):
        mixed = _first_tokens_mixed(graph, name, key, spec, weights, values, layout, shown)
        return _output(graph, name, key, spec, weights, mixed, None)
    parts = {"query": spec.query, "key": spec.key, "value": spec.value}
    read = values if layout.query_rows else lifted(graph, list(parts.values()), values)
    keys_read = read if shown is None else lifted(graph, list(parts.values()), shown)
    if first_only:
        asking = first_tokens(graph, layout, values, f"{name}.asking")
        query = linear(graph, f"{name}.query", f"{key}.query", spec.query, weights, asking)
        keys, held = _keys_and_values(graph, name, key, spec, weights, keys_read)
        queries = graph.reshape(query.value, f"{name}.query.heads", -1, spec.heads, 1, spec.head_width)
        queries = _biased(graph, f"{name}.query.biased", spec, query, queries)
    else:
        if layout.query_rows or shown:
            query = linear(graph, f"{name}.query", f"{key}.query", spec.query, weights, read)
            keys, held = _keys_and_values(graph, name, key, spec, weights, keys_read)
        else:
            query, keys, held = fused_linears(graph, name, key, parts, weights, read)
        queries = _heads(graph, f"{name}.query.heads", spec, query, layout)
        queries = _biased(graph, f"{name}.query.biased", spec, query, queries)
    key_heads = _seen_heads(graph, f"{name}.key.heads", spec, keys, layout)
    if spec.positions or whole_keys:
        biased = _biased(graph, f"{name}.key.biased", spec, keys, key_heads)
    if spec.positions:
        half = spec.head_width // 2
        queries = rotate(graph, f"{name}.query.rotated", queries, layout, spec.positions, half, first_only)
        key_heads = rotate(graph, f"{name}.key.rotated", biased, seen_by(layout), spec.positions, half, False)
    # Without rotation the keys' bias adds one number to all scores of a query, which the softmax takes out again.
    value_heads = _seen_heads(graph, f"{name}.value.heads", spec, held, layout)
    left_over = held.bias
    if spec.output.precision.kind != "fp32":  # its input is rounded: what is added behind it would not be
        value_heads = _biased(graph, f"{name}.value.biased", spec, held, value_heads)
        left_over = None
    mixed = mix(graph, f"{name}.mixed", spec, queries, key_heads, value_heads, layout, first_only)
    width = spec.heads * spec.head_width
    if first_only:
        packed = graph.reshape(mixed, f"{name}.packed", -1, width)
    else:
        packed = by_tokens(graph, layout, mixed, f"{name}.packed", spec.heads, spec.head_width)
    return _output(graph, name, key, spec, weights, packed, left_over)


def attention_keys(
    graph: Graph, name: str, key: str, spec: AttentionSpec, weights: Weights, values: str, layout: Layout,
    first_only: bool,
) -> None:  # fmt: skip
    """Write, of an attention, what tokens are to others alone: a query that is run apart hands it on."""
    if first_only and _needs_no_keys(graph, spec):
        keys_of(graph, layout, values, spec.key.inputs)
        return
    for product in _keys_and_values(graph, name, key, spec, weights, values):
        keys_of(graph, layout, product.value, product.columns)


def mix(
    graph: Graph, name: str, spec: AttentionSpec, query: str, keys: str, values: str, layout: Layout, first_only: bool
) -> str:
    """Write softmax(QKᵀ / √d + bias) V by heads, ``[B, H, S or 1, d]``."""
    scale = 1 / math.sqrt(spec.head_width)
    shares = attention_shares(graph, name, query, keys, spec.pattern, scale, layout, first_only)
    return graph.node("MatMul", [shares, values], name)


def attention_shares(
    graph: Graph, name: str, query: str, keys: str, pattern: AttentionPattern, scale: float, layout: Layout,
    first_only: bool,
) -> str:  # fmt: skip
    """Write softmax(scale QKᵀ + bias), ``[B, H, asking, S]``, under the name's ``.shares``."""
    scores = _scores(graph, name, query, keys, scale)
    seen = graph.node("Add", [scores, attention_bias(graph, layout, pattern, first_only)], f"{name}.seen")
    return graph.node("Softmax", [seen], f"{name}.shares", axis=-1)


def queries_and_keys(graph: Graph, name: str, spec: AttentionSpec) -> tuple[str, str]:
    """Return the queries and keys of an attention that `attention` wrote for all tokens, ``[B, H, S, d]`` each.

    Keys may lack their bias, which no softmax sees.
    """
    if spec.positions:
        return f"{name}.query.rotated", f"{name}.key.rotated"
    query = f"{name}.query.biased"
    return query if graph.has(query) else f"{name}.query.heads", f"{name}.key.heads"


def keys_before_rotation(graph: Graph, name: str) -> str:
    """Return the keys of an attention that `attention` wrote with ``whole_keys``, ``[B, H, S, d]``."""
    return f"{name}.key.biased" if graph.has(f"{name}.key.biased") else f"{name}.key.heads"


def _scores(graph: Graph, name: str, query: str, keys: str, scale: float) -> str:
    """Write ``scale Q Kᵀ`` over the last two axes."""
    if graph.fused:
        return graph.node("FusedMatMul", [query, keys], f"{name}.scores", domain=FUSED, transB=1, alpha=scale)
    scaled = graph.node("Mul", [query, graph.float_scalar(scale)], f"{name}.scaled")
    turned = graph.node("Transpose", [keys], f"{name}.turned", perm=[0, 1, 3, 2])
    return graph.node("MatMul", [scaled, turned], f"{name}.scores")


def _first_tokens_mixed(
    graph: Graph, name: str, key: str, spec: AttentionSpec, weights: Weights, values: str, layout: Layout,
    shown: str | None,
) -> str:  # fmt: skip
    """Write the mixed values of first tokens, ``[B, H * d]``, without making any key or value.

    With one query per row and head, ``q · (W_k x) = (W_kᵀ q) · x`` and ``Σ p (W_v x) = W_v (Σ p x)``: the two products
    over all tokens become products over rows.
    """
    heads, width = spec.heads, spec.head_width
    others, rows = keys_of(graph, layout, shown or values, spec.key.inputs)
    padded = graph.node("Unsqueeze", [pad(graph, others, rows, f"{name}.padded"), graph.ints(1)], f"{name}.tokens")
    asking = first_tokens(graph, layout, values, f"{name}.asking")
    query = linear(graph, f"{name}.query", f"{key}.query", spec.query, weights, asking)
    queries = graph.reshape(query.value, f"{name}.query.heads", -1, heads, 1, width)
    queries = _biased(graph, f"{name}.query.biased", spec, query, queries)  # [B, H, 1, d]
    key_weight = weights[f"{key}.key.weight"].reshape(heads, width, -1)  # [H, d, W]
    turned = graph.node(
        "MatMul", [queries, graph.weight(f"{name}.key.weight", key_weight.numpy())], f"{name}.query.turned"
    )  # [B, H, 1, W]
    asked = graph.node("Transpose", [turned], f"{name}.query.rows", perm=[0, 2, 1, 3])  # [B, 1, H, W]
    scores = _scores(graph, f"{name}.mixed", asked, padded, 1 / math.sqrt(width))  # [B, 1, H, S]
    seen = graph.node("Add", [scores, attention_bias(graph, layout, spec.pattern, True)], f"{name}.mixed.seen")
    shares = graph.node("Softmax", [seen], f"{name}.mixed.shares", axis=-1)
    mixed = graph.node("MatMul", [shares, padded], f"{name}.mixed")  # [B, 1, H, W]
    by_head = graph.node("Transpose", [mixed], f"{name}.mixed.heads", perm=[0, 2, 1, 3])  # [B, H, 1, W]
    value_weight = weights[f"{key}.value.weight"].reshape(heads, width, -1).transpose(1, 2)  # [H, W, d]
    held = graph.node("MatMul", [by_head, graph.weight(f"{name}.value.weight", value_weight.numpy())], f"{name}.value")
    product = Product(
        value=held, columns=heads * width, width=heads * width,
        bias=weights[f"{key}.value.bias"] if spec.value.bias else None,
    )  # fmt: skip
    return graph.reshape(
        _biased(graph, f"{name}.value.biased", spec, product, held), f"{name}.packed", -1, heads * width
    )


def _output(
    graph: Graph,
    name: str,
    key: str,
    spec: AttentionSpec,
    weights: Weights,
    packed: str,
    left_over: torch.Tensor | None,
) -> Product:
    """Write the output linear; a bias of the values passes the softmax unchanged and joins the output's."""
    read = lifted(graph, [spec.output], packed)
    product = linear(graph, f"{name}.output", f"{key}.output", spec.output, weights, read)
    if left_over is None:
        return lowered(graph, name, [spec.output], product)
    passed = _applied(spec.output, f"{key}.output", weights, left_over)
    bias = passed if product.bias is None else product.bias + passed
    return Product(value=product.value, columns=product.columns, width=product.width, bias=bias)


def _applied(spec: LinearSpec, key: str, weights: Weights, vector: torch.Tensor) -> torch.Tensor:
    vector = vector.double()
    if isinstance(spec.form, LowRankForm):
        return (weights[f"{key}.up"].double() @ (weights[f"{key}.down"].double() @ vector)).float()
    return (weights[f"{key}.weight"].double() @ vector).float()


def _needs_no_keys(graph: Graph, spec: AttentionSpec) -> bool:
    """Whether one query per row can look at states themselves, see `_first_tokens_mixed`."""
    return graph.floats == "fp32" and _is_plain(spec.key) and _is_plain(spec.value) and not spec.positions


def _keys_and_values(
    graph: Graph, name: str, key: str, spec: AttentionSpec, weights: Weights, values: str
) -> list[Product]:
    return fused_linears(graph, name, key, {"key": spec.key, "value": spec.value}, weights, values)


def _is_plain(spec: LinearSpec) -> bool:
    return spec.is_one_matrix and spec.precision.kind == "fp32"


def _seen_heads(graph: Graph, name: str, spec: AttentionSpec, product: Product, layout: Layout) -> str:
    """Spread keys or values of all tokens that may be seen to heads."""
    seen, value = keys_of(graph, layout, product.value, product.columns)
    return _heads(graph, name, spec, replace(product, value=value), seen)


def _heads(graph: Graph, name: str, spec: AttentionSpec, product: Product, layout: Layout) -> str:
    return by_heads(
        graph, layout, product.value, name, columns=product.columns, first=product.first,
        heads=spec.heads, head_width=spec.head_width,
    )  # fmt: skip


def _biased(graph: Graph, name: str, spec: AttentionSpec, product: Product, by_head: str) -> str:
    """Add a product's open bias to its view by heads ``[B, H, S, d]``."""
    if product.bias is None:
        return by_head
    bias = product.bias.reshape(spec.heads, 1, spec.head_width).numpy()
    return graph.node("Add", [by_head, graph.weight(f"{name}.bias", bias)], name)


def rotate(graph: Graph, name: str, by_head: str, layout: Layout, spec: RotarySpec, half: int, first_only: bool) -> str:
    """Turn each head's halves by the angle of its position, ``[B, H, S, d] -> [B, H, S, d]``."""
    cosine, sine = angle_tables(spec, half, graph.max_length)
    cosines = graph.weight(f"rotary.{spec.base!r}.{half}.cosine", cosine)
    sines = graph.weight(f"rotary.{spec.base!r}.{half}.sine", sine)
    positions = padded_positions(graph, layout)  # [B, S]
    if first_only:
        positions = graph.once(
            f"{layout.name}.first_positions", lambda at: graph.node("Gather", [positions, graph.ints(0)], at, axis=1)
        )
    if graph.fused:
        return graph.node("RotaryEmbedding", [by_head, positions, cosines, sines], name, domain=FUSED, interleaved=0)
    left, right = graph.split(by_head, f"{name}.halves", {"left": half, "right": half})
    cos = _angles(graph, f"{name}.cos", cosines, positions)
    sin = _angles(graph, f"{name}.sin", sines, positions)

    def times(a: str, b: str, part: str) -> str:
        return graph.node("Mul", [a, b], f"{name}.{part}")

    new_left = graph.node("Sub", [times(left, cos, "left_cos"), times(right, sin, "right_sin")], f"{name}.left")
    new_right = graph.node("Add", [times(right, cos, "right_cos"), times(left, sin, "left_sin")], f"{name}.right")
    return graph.node("Concat", [new_left, new_right], name, axis=-1)


def _angles(graph: Graph, name: str, table: str, positions: str) -> str:
    return graph.node("Unsqueeze", [graph.node("Gather", [table, positions], f"{name}.rows"), graph.ints(1)], name)


def angle_tables(spec: RotarySpec, half: int, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and sines of each position's angles, float32 ``[max_length, d / 2]`` each."""
    frequencies = spec.base ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(max_length).float()[:, None] * frequencies
    return angles.cos().numpy(), angles.sin().numpy()
