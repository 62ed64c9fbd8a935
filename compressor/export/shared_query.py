"""A ranker whose queries are isolated, as two graphs: the query once for a list, and then its candidates.

The candidates' graph runs each row's first token and document; where these look at the query, its rows stand behind
theirs. Scores are those of the ranker's own graph: the same numbers are summed. Sparse cross-encoders (arXiv
2312.17649) attend like this; that their queries' states can be kept is a consequence that the paper does not draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from compressor.export.encoder import embeddings, input_names
from compressor.export.graph import Dialect, Graph
from compressor.export.heads import head
from compressor.export.layers import layer, layer_keys, norm
from compressor.export.layout import Layout, build_layout, row_means
from compressor.export.linears import Weights
from compressor.export.parity import Parity, compare
from compressor.export.query_rows import beside_query, keys_of, of_query
from compressor.ranker.cost import last_attention
from compressor.ranker.dense_sparse import expanded
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import RankerSpec
from compressor.runtime.shared_query import OnnxSharedQuery
from compressor.runtime.tokenizer import Encoded


def shares_query(spec: RankerSpec) -> bool:
    """Whether a query can be run once for a list.

    It is not where token rules let tokens go, whose graphs tell query and document apart in whole rows; nor where no
    token sees another.
    """
    return spec.isolates_query and not spec.rule_layers and last_attention(spec) is not None


def write_shared_query(
    spec: RankerSpec, weights: Weights, dialect: Dialect = "ort"
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Write the graph of a query and that of its candidates.

    Args:
        spec: the shape, of a ranker that `shares_query`.
        weights: one tensor per name of the spec, fp32 on the CPU.
        dialect: ``ort`` for ONNX Runtime's fused ops, ``portable`` for standard ops alone.

    Returns:
        The first takes what the ranker's own graph takes, one row that holds the query's tokens alone, and gives
        ``query.0``, ``query.1``, ... float32 ``[query, columns]``: what layers make of it that others read. The second
        takes rows without the query, and these; it gives ``logits`` float32 ``[batch, 1]``.
    """
    spec, weights = expanded(spec, {name: tensor.detach() for name, tensor in weights.items()})
    return _query_graph(spec, weights, dialect), _candidates_graph(spec, weights, dialect)


def _query_graph(spec: RankerSpec, weights: Weights, dialect: Dialect) -> onnx.ModelProto:
    graph = Graph(dialect, max_length=spec.max_length)
    layout = of_query(graph, build_layout(graph, "attention_mask"))
    values = embeddings(graph, spec.embeddings, weights, layout)
    last_read = last_attention(spec) if spec.reads_first_token_only else None
    for index, one in enumerate(spec.layers):
        if index == last_read:  # nobody reads what the query becomes behind it
            layer_keys(graph, index, one, weights, values, layout, index == len(spec.layers) - 1)
            break
        values = layer(graph, index, one, weights, values, layout, False)
    else:
        _normed_with_query(graph, spec, weights, layout, values)
    assert layout.query_rows  # noqa: S101  # of_query gave it
    return graph.finish(_inputs(spec), layout.query_rows.hand_on(graph), "query")


def _candidates_graph(spec: RankerSpec, weights: Weights, dialect: Dialect) -> onnx.ModelProto:
    graph = Graph(dialect, max_length=spec.max_length)
    layout = beside_query(graph, build_layout(graph, "attention_mask"))
    values = embeddings(graph, spec.embeddings, weights, layout)
    for index, one in enumerate(spec.layers):
        first_only = index == len(spec.layers) - 1 and spec.reads_first_token_only
        values = layer(graph, index, one, weights, values, layout, first_only)
    if spec.reads_first_token_only:
        pooled = norm(graph, "final_norm", "final_norm", spec.final_norm, weights, values)
    else:
        seen, values = _normed_with_query(graph, spec, weights, layout, values)
        pooled = row_means(graph, seen, values, "pooled")
    head(graph, spec.head, weights, pooled)
    assert layout.query_rows  # noqa: S101  # beside_query gave it
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])
    return graph.finish([*_inputs(spec), *layout.query_rows.inputs()], [output], "candidates")


def _normed_with_query(
    graph: Graph, spec: RankerSpec, weights: Weights, layout: Layout, values: str
) -> tuple[Layout, str]:
    """Write the last states, normed, with the query's behind them: a head that averages reads these too."""
    values = norm(graph, "final_norm", "final_norm", spec.final_norm, weights, values)
    return keys_of(graph, layout, values, spec.width)


def _inputs(spec: RankerSpec) -> list[onnx.ValueInfoProto]:
    shape = ["batch", "sequence"]
    return [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in input_names(spec)]


def check_shared_query(ranker: Ranker, shared: OnnxSharedQuery, batches: Sequence[dict[str, np.ndarray]]) -> Parity:
    """Compare the two graphs, each row's query run apart from it, with torch.

    Raises:
        RunError: they do not score as the ranker does.
    """
    rows = [(batch, row) for batch in batches for row in range(len(batch["input_ids"]))]
    input_ids, type_ids = (
        [batch[name][row][batch["attention_mask"][row] == 1] for batch, row in rows]
        for name in ("input_ids", "token_type_ids")
    )
    encoded = Encoded(input_ids=input_ids, type_ids=type_ids)
    found = shared.run(encoded, pad_id=ranker.spec.pad_id, batch_tokens=4096)
    return compare(shared.candidates_path.name, ranker, batches, found[:, None], other_mates=True)
