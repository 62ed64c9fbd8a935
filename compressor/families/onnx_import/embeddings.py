"""Recognizes embeddings: a norm over lookups, told apart by what indexes them, or the fused operator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from compressor.families.onnx_import.graph import Graph, NotRecognizedError, attribute
from compressor.families.onnx_import.parts import LinearPart, NormPart, linear, norm, terms, tidy


@dataclass(frozen=True, kw_only=True)
class EmbeddingsPart:
    """Tables ``[rows, width]``, their norm, and the linear to the layers' width where there is one."""

    tokens: np.ndarray
    positions: np.ndarray | None
    position_offset: int
    segments: np.ndarray | None
    norm: NormPart
    project: LinearPart | None


def embeddings(graph: Graph, value: str) -> EmbeddingsPart | None:
    """Recognize a value as embeddings, or return None where it is a layer's result."""
    project = linear(graph, value)
    value = project.values if project else value
    node = graph.producer(value)
    if node is not None and node.op_type == "EmbedLayerNormalization":
        return _fused_embeddings(graph, node, project)
    part = norm(graph, value)
    summands = terms(graph, *part.values) if part else []
    nodes = [graph.producer(term) for term in summands]
    lookups = [n for n in nodes if n is not None and n.op_type == "Gather" and graph.is_constant(n.input[0])]
    fixed = [array for term in summands if (array := graph.constant(term)) is not None]
    if part is None or not lookups or len(lookups) + len(fixed) != len(summands):
        return None
    return _sorted_tables(graph, [(n.input[0], n.input[1]) for n in lookups], fixed, part, project)


def _fused_embeddings(graph: Graph, node: NodeProto, project: LinearPart | None) -> EmbeddingsPart:
    ids, segment_ids, tokens, positions, segments, weight, shift, _, position_ids = [*node.input, *[""] * 8][:9]
    part = NormPart(
        values=[],
        bias=None,
        weight=_array(graph, weight),
        shift=graph.constant(shift),
        epsilon=tidy(attribute(node, "epsilon", 1e-12)),
    )
    lookups = [(tokens, ids)]
    if segments:
        lookups.append((segments, segment_ids))
    if position_ids:
        return _sorted_tables(graph, [*lookups, (positions, position_ids)], [], part, project)
    return replace(_sorted_tables(graph, lookups, [], part, project), positions=_array(graph, positions))


_EXAMPLE = {
    "input_ids": np.array([[7, 5, 3, 5, 9]]),
    "token_type_ids": np.array([[0, 0, 1, 0, 1]]),
    "attention_mask": np.ones((1, 5), np.int64),
}


def _sorted_tables(
    graph: Graph, lookups: list[tuple[str, str]], rows: list[np.ndarray], part: NormPart, project: LinearPart | None
) -> EmbeddingsPart:
    """Tell which lookup is which by what indexes it for one example row.

    Args:
        graph: the graph.
        lookups: names of tables and of their indices.
        rows: constants that are added to every token.
        part: the norm over the sum.
        project: the linear after it, if there is one.
    """
    found: dict[str, np.ndarray] = {}
    offset = 0
    for table, index in lookups:
        array = _array(graph, table)
        kind, start = _kind(graph.evaluate([index], _EXAMPLE)[0].reshape(-1))
        if kind == "row" or (kind == "segments" and len(array) == 1):
            rows = [*rows, array[:1]]
        elif kind and kind not in found:
            found[kind] = array
            offset = start if kind == "positions" else offset
        else:
            wanted = "one lookup each by token, by position and by segment"
            raise NotRecognizedError(graph.path, "embeddings", f"a second or unknown lookup ({index})", wanted)
    if "tokens" not in found or any(row.size != row.shape[-1] for row in rows):
        raise NotRecognizedError(graph.path, "embeddings", "no table indexed by input_ids", "a token table")
    # A row added to every token alike (the only segment's) moves into a table.
    carrier = "positions" if "positions" in found else "tokens"
    for row in rows:
        found[carrier] = found[carrier].astype(np.float32) + row.reshape(1, -1)
    return EmbeddingsPart(
        tokens=found["tokens"], positions=found.get("positions"), position_offset=offset,
        segments=found.get("segments"), norm=part, project=project,
    )  # fmt: skip


def _kind(asked: np.ndarray) -> tuple[str, int]:
    """Name a lookup by the rows that the example asks it for, and say with which row positions start."""
    if np.array_equal(asked, _EXAMPLE["input_ids"][0]):
        return "tokens", 0
    if np.array_equal(asked, _EXAMPLE["token_type_ids"][0]):
        return "segments", 0
    if np.array_equal(asked - asked[0], np.arange(5)):
        return "positions", int(asked[0])
    return ("", 0) if asked.any() else ("row", 0)


def _array(graph: Graph, name: str) -> np.ndarray:
    array = graph.constant(name)
    if array is None:
        raise NotRecognizedError(graph.path, "embeddings", f"{name}, which is computed", "a constant")
    return array
