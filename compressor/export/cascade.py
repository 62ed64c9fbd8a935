"""A cascade as ONNX graphs, one for the way to each stage and one for the way from the last to the head.

Between two of them the runtime drops candidates and makes new batches of what is left. One graph with the drop inside
would see the whole list as one batch: activations then leave the cache, and attention pads to the longest candidate.
100 candidates of 62 or 127 tokens in the mean, through 6 layers of 384, took 1.3 to 1.6 times the CPU time as one batch
(fp32 and int8, one thread of a busy machine), which is more than a stage may save. Mirrors `ranker/cascade.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from compressor.cascade_stages import Place, depth_of
from compressor.export.encoder import embeddings, input_names
from compressor.export.graph import Dialect, Graph
from compressor.export.heads import head
from compressor.export.layers import layer, norm
from compressor.export.layout import Layout, build_layout, first_tokens, pad, row_means
from compressor.export.linears import Weights
from compressor.export.parity import Batches, Parity, Results, compare
from compressor.ranker.cascade import stage_logits
from compressor.ranker.encoder import Encoder
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import ClassifierHead, RankerSpec
from compressor.runtime.cascade import OnnxCascade

_NO_MATCH = -2.0  # below every cosine
_LEAST_LENGTH = 1e-12


def write_cascade(spec: RankerSpec, weights: Weights, dialect: Dialect = "ort") -> list[onnx.ModelProto]:
    """Write the graphs of a ranker's cascade; stages that drop nothing are left out.

    Args:
        spec: the shape, of a cross-encoder.
        weights: one tensor per name of the spec, fp32 on the CPU.
        dialect: ``ort`` for ONNX Runtime's fused ops, ``portable`` for standard ops alone.

    Returns:
        None of them where nothing is dropped. The first takes what the ranker's own graph takes; the others what the
        one before hands over: ``states`` float32 ``[tokens, width]`` and ``positions`` int64 ``[tokens]`` of packed
        tokens, with an ``attention_mask`` int64 ``[batch, sequence]`` of where they stand. All give ``logits`` float32
        ``[batch, 1]``, of the stage or of the head; all but the last hand over ``states_out``, ``positions_out`` and
        ``lengths`` int64 ``[batch]``, how many of the tokens are each row's.
    """
    cascade = spec.cascade and spec.cascade.without_idle_stages()
    if not cascade:
        return []
    weights = {name: tensor.detach() for name, tensor in weights.items()}
    places: list[Place | None] = [*(stage.behind for stage in cascade.stages), None]
    starts = [0, *(depth_of(stage.behind) for stage in cascade.stages)]
    return [
        _write_stretch(spec, weights, dialect, start, place, is_first=index == 0)
        for index, (start, place) in enumerate(zip(starts, places, strict=True))
    ]


def _write_stretch(
    spec: RankerSpec, weights: Weights, dialect: Dialect, start: int, place: Place | None, *, is_first: bool
) -> onnx.ModelProto:
    """Write the layers from ``start`` to a stage, or with None to the head."""
    graph = Graph(dialect, max_length=spec.max_length)
    layout = build_layout(graph, "attention_mask", positions=None if is_first else "positions")
    values = embeddings(graph, spec.embeddings, weights, layout) if is_first else "states"
    end = len(spec.layers) if place is None else depth_of(place)
    for index in range(start, end):
        first_only = index == len(spec.layers) - 1 and spec.reads_first_token_only
        values = layer(graph, index, spec.layers[index], weights, values, layout, first_only)
    outputs = []
    if place is not None:
        graph.node("Identity", [values], "states_out")
        graph.node("Identity", [layout.positions], "positions_out")
        graph.node("ReduceSum", [layout.mask, graph.ints(1)], "lengths", keepdims=0)
        outputs = [
            helper.make_tensor_value_info("states_out", TensorProto.FLOAT, ["tokens", spec.width]),
            helper.make_tensor_value_info("positions_out", TensorProto.INT64, ["tokens"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
        ]
    if place == "embeddings":
        _similarity(graph, layout)
    else:
        _score(graph, spec, weights, layout, values, place)
    outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1]))
    return graph.finish(_inputs(spec, is_first), outputs, "cascade")


def _score(
    graph: Graph, spec: RankerSpec, weights: Weights, layout: Layout, values: str, layer_index: int | None
) -> None:
    """Write a head: the exit's behind a layer, or with None the ranker's own, whose last layer may have but one row."""
    own = spec.head if layer_index is None else spec.layers[layer_index].exit
    assert isinstance(own, ClassifierHead)  # noqa: S101  # the spec says so
    if layer_index is not None:
        prefix = f"layers.{layer_index}.exit."
        weights = {f"head.{n.removeprefix(prefix)}" if n.startswith(prefix) else n: t for n, t in weights.items()
                   if not n.startswith("head.")}  # fmt: skip
        if own.pool == "first":
            values = first_tokens(graph, layout, values, "pooled")
    values = norm(graph, "final_norm", "final_norm", spec.final_norm, weights, values)
    if own.pool == "mean":
        values = row_means(graph, layout, values, "pooled")
    head(graph, own, weights, values)


def _similarity(graph: Graph, layout: Layout) -> None:
    """Write the similarity of token embeddings, ``logits [B, 1]``."""
    name = "similarity"
    tokens = "embeddings.tokens"  # looked up by the embeddings already
    length = graph.node("ReduceL2", [tokens], f"{name}.length", axes=[-1], keepdims=1)
    bounded = graph.node("Max", [length, graph.float_scalar(_LEAST_LENGTH)], f"{name}.bounded_length")
    rows = pad(graph, layout, graph.node("Div", [tokens, bounded], f"{name}.unit"), f"{name}.rows")  # [B, S, W]
    columns = graph.node("Transpose", [rows], f"{name}.columns", perm=[0, 2, 1])
    cosines = graph.node("MatMul", [rows, columns], f"{name}.cosines")  # [B, S, S]
    segments = {
        which: graph.node("And", [
            layout.real, graph.node("Equal", ["token_type_ids", graph.int_scalar(segment)], f"{name}.{which}_segment")
        ], f"{name}.{which}_tokens")
        for which, segment in (("query", 0), ("document", 1))
    }  # fmt: skip
    document = graph.node("Unsqueeze", [segments["document"], graph.ints(1)], f"{name}.document")  # [B, 1, S]
    matches = graph.node("Where", [document, cosines, graph.float_scalar(_NO_MATCH)], f"{name}.matches")
    greatest = graph.node("ReduceMax", [matches], f"{name}.greatest", axes=[2], keepdims=0)  # [B, S]
    # The first token belongs to neither text.
    shares = graph.node("Cast", [segments["query"]], f"{name}.weights", to=TensorProto.FLOAT)
    bounds = [graph.ints(1), graph.ints(2**31 - 1), graph.ints(1)]
    weighed = graph.node("Slice", [shares, *bounds], f"{name}.asking")
    found = graph.node("Slice", [greatest, *bounds], f"{name}.found")
    sums = graph.node("ReduceSum", [graph.node("Mul", [found, weighed], f"{name}.parts"), graph.ints(1)],
                      f"{name}.sums", keepdims=1)  # fmt: skip
    counts = graph.node("ReduceSum", [weighed, graph.ints(1)], f"{name}.counts", keepdims=1)
    least = graph.node("Max", [counts, graph.float_scalar(1.0)], f"{name}.bounded_counts")
    graph.node("Div", [sums, least], "logits")


def _inputs(spec: RankerSpec, is_first: bool) -> list[onnx.ValueInfoProto]:
    shape = ["batch", "sequence"]
    if is_first:
        return [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in input_names(spec)]
    return [
        helper.make_tensor_value_info("states", TensorProto.FLOAT, ["tokens", spec.width]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, ["tokens"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, shape),
    ]


def check_cascade(ranker: Ranker, cascade: OnnxCascade, batches: Sequence[dict[str, np.ndarray]]) -> list[Parity]:
    """Compare the graphs of a cascade with torch, with nothing dropped: the agreement of each.

    Raises:
        RunError: a graph does not score as its stage in torch does.
    """
    found = np.concatenate([cascade.undropped(batch) for batch in batches], axis=1)  # [stages + 1, n]
    places = [stage.behind for stage in cascade.settings.stages]

    def results_of(stage: int) -> Results:
        def results(module: Encoder, some: Batches) -> np.ndarray:
            with torch.inference_mode():
                tensors = ({name: torch.from_numpy(array) for name, array in batch.items()} for batch in some)
                return np.concatenate(
                    [stage_logits(module, places, batch)[stage, :, None].float().numpy() for batch in tensors]
                )

        return results

    return [
        compare(path.name, ranker, batches, found[stage, :, None], results_of(stage))
        for stage, path in enumerate(cascade.paths)
    ]
