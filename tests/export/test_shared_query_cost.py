"""What a query that is run once saves: products counted in the graphs, against what the costs say."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from compressor.export.shared_query import write_shared_query
from compressor.ranker.cost import macs, macs_of_shared_query
from compressor.ranker.spec import ClassifierHead, LinearSpec
from compressor.runtime.session import session_options
from tests.ranker.cases import SEPARATOR, attention, of_layers
from tests.tiny import WIDTH, build_ranker, tiny_layer

ISOLATED = {"isolates_query": True, "separator_id": SEPARATOR}


def products(model, feed):
    """Return the multiply-adds of all matrix products that a graph makes of an input."""
    nodes = [node for node in model.graph.node if node.op_type == "MatMul" and "pooled" not in node.name]
    names = sorted({name for node in nodes for name in (node.input[0], node.output[0])})
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = session_options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = dict(zip(names, session.run(names, feed), strict=True))
    return sum(found[node.output[0]].size * found[node.input[0]].shape[-1] for node in nodes)


ROTARY = tiny_layer(attention=attention(rotary_base=100.0))  # whose last layer makes keys of all tokens
MEAN = ClassifierHead(pool="mean", output=LinearSpec(inputs=WIDTH, outputs=1))


@pytest.mark.parametrize(
    "spec",
    [of_layers(ROTARY, ROTARY, **ISOLATED), of_layers(*[tiny_layer()] * 3, head=MEAN, **ISOLATED)],
    ids=["first", "mean"],
)
def test_the_graphs_multiply_as_often_as_the_costs_say(spec):
    ranker, n_query, n_own = build_ranker(spec), 5, 12
    query, candidates = write_shared_query(spec, ranker.weights, "portable")
    ids = {"query": np.full((1, n_query), 20), "own": np.full((1, n_own), 30)}

    def inputs(which):
        return {"input_ids": ids[which], "attention_mask": np.ones_like(ids[which]), "token_type_ids": ids[which] * 0}

    plain = onnx.ModelProto()
    plain.CopyFrom(query)  # `products` adds outputs
    names = [node.name for node in plain.graph.output]
    session = ort.InferenceSession(plain.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"])
    handed = dict(zip(names, session.run(names, inputs("query")), strict=True))
    counted = products(query, inputs("query")), products(candidates, inputs("own") | handed)
    assert counted == macs_of_shared_query(spec, n_query + n_own, query_tokens=n_query - 1)
    # What a pair costs less than both: the query's tokens look at no others, where a masked graph multiplies all.
    asking = spec.layers[:-1] if spec.reads_first_token_only else spec.layers
    unseen = sum(2 * n_query * n_own * layer.heads * layer.head_width for layer in asking)
    assert macs(spec, n_query + n_own) - sum(counted) == unseen
