"""Walks a float graph from its logits down to its tables: head, layers from the last to the first, embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorShapeProto

from compressor.families.onnx_import.attention import AttentionPart, attention
from compressor.families.onnx_import.embeddings import EmbeddingsPart, embeddings
from compressor.families.onnx_import.graph import Graph, NotRecognizedError, attribute
from compressor.families.onnx_import.parts import LinearPart, NormPart, activation, linear, norm, terms, unshaped
from compressor.ranker.spec import Activation


@dataclass(frozen=True, kw_only=True)
class HeadPart:
    """Output linear, and before it a dense linear with its activation where there is one."""

    output: LinearPart
    activation: Activation | None
    dense: LinearPart | None


@dataclass(frozen=True, kw_only=True)
class LayerPart:
    """One post-norm encoder layer."""

    attention: AttentionPart
    output: LinearPart
    attention_norm: NormPart
    up: LinearPart
    activation: Activation
    down: LinearPart
    ffn_norm: NormPart


@dataclass(frozen=True, kw_only=True)
class BertParts:
    """What a BERT-shaped ranker is made of; layers from the first to the last, no head for an encoder."""

    embeddings: EmbeddingsPart
    layers: list[LayerPart]
    head: HeadPart | None


def recognize(graph: Graph, *, is_encoder: bool = False) -> BertParts:
    """Recognize a BERT-shaped cross-encoder, or an encoder that gives its last states, by its data flow.

    Raises:
        NotRecognizedError: says where the walk stopped, what stands there, and what was looked for.
    """
    _check_inputs(graph)
    head, value = (None, graph.output) if is_encoder else _head(graph)
    layers: list[LayerPart] = []
    while (lookups := embeddings(graph, value)) is None:
        layer, value = _layer(graph, value, len(layers) + 1)
        layers.append(layer)
    if not layers:
        raise NotRecognizedError(graph.path, "layers", "none", "at least one layer")
    return BertParts(embeddings=lookups, layers=layers[::-1], head=head)


def _check_inputs(graph: Graph) -> None:
    allowed = {"input_ids", "attention_mask", "token_type_ids"}
    if not {"input_ids", "attention_mask"} <= set(graph.inputs) <= allowed:
        raise NotRecognizedError(
            graph.path, "inputs", ", ".join(graph.inputs) or "none", "input_ids, attention_mask[, token_type_ids]"
        )

    fixed = [value.name for value in graph.model.graph.input if any(map(_is_fixed, value.type.tensor_type.shape.dim))]
    if fixed:
        raise NotRecognizedError(graph.path, ", ".join(fixed), "a fixed shape", "free batch and sequence axes")


def _is_fixed(dimension: TensorShapeProto.Dimension) -> bool:
    return dimension.HasField("dim_value")


def _head(graph: Graph) -> tuple[HeadPart, str]:
    value = graph.output
    output = linear(graph, value)
    if output is None and norm(graph, value) is not None:
        found = "the states of an encoder that has no scoring head"
        raise NotRecognizedError(graph.path, f"output {value}", found, "one logit; the pass start_from takes encoders")
    if output is None or output.weight.shape[1] != 1:
        found = _found(graph, value) if output is None else f"a head of {output.weight.shape[1]} logits"
        raise NotRecognizedError(graph.path, f"output {value}", found, "one logit from a linear with constant weights")
    pooled, act, dense = output.values, None, None
    activated = activation(graph, pooled)
    if activated:
        act, dense = activated
        pooled = dense.values
    return HeadPart(output=output, activation=act, dense=dense), _first_token_of(graph, pooled)


def _first_token_of(graph: Graph, pooled: str) -> str:
    """Return the sequence ``[B, S, width]`` whose first token a pooled value is."""
    node = graph.producer(pooled)
    while node is not None and node.op_type in ("Squeeze", "Reshape"):
        node = graph.producer(node.input[0])
    if node is not None and node.op_type == "Gather" and attribute(node, "axis", 0) == 1:
        index = graph.scalar(node.input[1])
        if index == 0:
            return node.input[0]
    if node is not None and node.op_type == "Slice":
        starts, ends, axes = (graph.scalar(name) for name in [*node.input[1:4], "", ""][:3])
        if (starts, ends, axes) == (0, 1, 1):
            return node.input[0]
    raise NotRecognizedError(graph.path, "head", _found(graph, pooled), "the first token of the sequence")


def _layer(graph: Graph, value: str, from_last: int) -> tuple[LayerPart, str]:
    """Recognize the layer that gives a value; return it and the value it reads."""
    where = "the last layer" if from_last == 1 else f"layer {from_last} from the last"
    ffn_norm, down, middle = _normed_sum(graph, value, f"{where}, feed-forward")
    activated = activation(graph, down.values)
    if activated is None:
        wanted = "GELU, tanh GELU, ReLU, SiLU or tanh of a linear"
        raise NotRecognizedError(graph.path, f"{where}, feed-forward", _found(graph, down.values), wanted)
    act, up = activated
    attention_norm, output, source = _normed_sum(graph, middle, f"{where}, attention")
    mixed = attention(graph, output.values)
    if isinstance(mixed, str):
        wanted = "softmax(Q Kᵀ) V over linears of one input, or a fused Attention operator"
        raise NotRecognizedError(graph.path, f"{where}, attention", mixed, wanted)
    if up.values != middle or mixed.values != source:
        raise NotRecognizedError(graph.path, where, "a residual that skips something else", "post-norm residuals")
    layer = LayerPart(
        attention=mixed, output=output, attention_norm=attention_norm,
        up=up, activation=act, down=down, ffn_norm=ffn_norm,
    )  # fmt: skip
    return layer, source


def _normed_sum(graph: Graph, value: str, where: str) -> tuple[NormPart, LinearPart, str]:
    """Recognize ``norm(linear(...) + residual)``; return the norm, the linear and the residual's name."""
    wanted = "a layer norm of a linear plus a residual"
    part = norm(graph, value)
    if part is None:
        raise NotRecognizedError(graph.path, where, _found(graph, value), wanted)
    summands = terms(graph, *part.values)
    branches = [term for term in summands if linear(graph, term) is not None]
    if len(branches) == 2:  # a projected embedding is a linear too; the branch is what is computed from the other
        branches = [term for term, other in (branches, branches[::-1]) if _depends(graph, term, other)]
    branch = linear(graph, branches[0]) if len(branches) == 1 else None
    if branch is None or len(summands) != 2:
        found = f"a layer norm of {len(summands)} summands, {len(branches)} of them linears"
        raise NotRecognizedError(graph.path, where, found, wanted)
    residual = next(term for term in summands if term != branches[0])
    return part, branch.biased(part.bias), residual


def _depends(graph: Graph, value: str, other: str) -> bool:
    source = graph.producer(value)
    return source is not None and any(graph.nearest(name, lambda node: other in node.output) for name in source.input)


def _found(graph: Graph, value: str) -> str:
    node = graph.producer(unshaped(graph, value))
    return f"{value}, made by {node.op_type}" if node is not None else f"the input {value}"
