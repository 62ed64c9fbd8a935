"""Graphs that let tokens go, against torch: batches of many shapes, both dialects, and the folder that leaves."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from compressor.errors import RunError
from compressor.export import export_folder, parity, write_graph
from compressor.export.parity import clear_rows
from compressor.families import can_be_stock
from compressor.passes.keep_tokens import KeepTokens
from compressor.passes.merge_tokens import MergeTokens
from compressor.passes.pool_tokens import PoolTokens
from compressor.passes.quantize import Quantize
from compressor.ranker.spec import (
    KeepShareRule,
    KeepThresholdRule,
    LearnedScorer,
    MergeRule,
    PageRankScorer,
    PoolRule,
    RankerSpec,
    TableSpec,
    WindowPattern,
)
from compressor.runtime.ranker import OnnxRanker
from compressor.runtime.session import session_options
from tests.export.component import DIALECTS
from tests.passes.students import supply_for
from tests.ranker.cases import SEPARATOR, attention
from tests.tiny import WIDTH, build_ranker, tiny_layer, tiny_spec

SHAPES = ((1, 16), (7, 33), (64, 128), (3, 512))
TOLERANCE = 2e-5  # fp32 sums in another order
CLEAR_MARGIN = 1e-4  # nearer scores may change places by rounding
RULES = {
    "pool": PoolRule(stride=3),
    "pool queries": PoolRule(stride=3, queries_only=True),
    "attention": KeepShareRule(share=0.5),
    "pagerank": KeepShareRule(share=0.3, scorer=PageRankScorer()),
    "learned": KeepShareRule(share=0.4, scorer=LearnedScorer()),
    "merge": MergeRule(share=0.5, margin=0.7),
    "merge any": MergeRule(share=0.7, margin=0.4, keep_query_terms=False),
    "threshold": KeepThresholdRule(threshold=0.95, share=0.5),
}
ATTENTIONS = {
    "learned positions": attention(),
    "rotary in a window": attention(rotary_base=10000.0, pattern=WindowPattern(reach=6)),
}


def spec_with(rule, inner):
    embeddings = tiny_spec().embeddings.changed(positions=TableSpec(rows=512, width=WIDTH))
    layer = tiny_layer(attention=inner)
    layers = (layer.changed(token_rule=rule), layer, layer)
    return tiny_spec(separator_id=SEPARATOR, max_length=512, embeddings=embeddings, layers=layers)


def batch_of_shape(spec, n_rows, n_columns):
    """Return pairs with queries of 1 to 5 tokens; every fourth ends its query twice, as RoBERTa does."""
    draw = np.random.default_rng(n_columns)
    lengths = draw.integers(9, n_columns + 1, n_rows)
    lengths[0] = n_columns
    mask = (np.arange(n_columns) < lengths[:, None]).astype(np.int64)
    ids = draw.integers(SEPARATOR + 2, spec.embeddings.tokens.rows, mask.shape)
    rows = np.arange(n_rows)
    ends = draw.integers(2, 7, n_rows)
    ids[rows, ends] = ids[rows, lengths - 1] = SEPARATOR
    ids[rows[::4], ends[::4] + 1] = SEPARATOR
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": mask * (np.arange(n_columns) > 3)}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("inner", ATTENTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_a_graph_scores_as_torch_does(rule, inner, dialect):
    ranker = build_ranker(spec_with(RULES[rule], ATTENTIONS[inner]))
    model = write_graph(ranker.spec, ranker.weights, dialect).SerializeToString()
    session = ort.InferenceSession(model, session_options(threads=1), providers=["CPUExecutionProvider"])
    n_clear = 0
    for shape in SHAPES:
        batch = batch_of_shape(ranker.spec, *shape)
        with torch.inference_mode():
            expected = ranker.module(**{name: torch.tensor(array) for name, array in batch.items()}).numpy()
        (found,) = session.run(None, {node.name: batch[node.name] for node in session.get_inputs()})
        clear = clear_rows(ranker, [batch], least=CLEAR_MARGIN)
        np.testing.assert_allclose(found[clear], expected[clear], atol=TOLERANCE, rtol=0, err_msg=str(shape))
        n_clear += clear.sum()
    # Of 75 rows: near ties are rare, but where a third of a long document merges each row makes many choices.
    assert n_clear >= (65 if rule == "merge any" else 70)
    assert not {node.op_type for node in write_graph(ranker.spec, ranker.weights, dialect).graph.node} & {"If", "Loop"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_windows_see_tokens_in_the_floats_of_the_layer_that_looks(dialect, tiny_pairs, tiny_data):
    ranker = build_ranker(tiny_spec(layers=(tiny_layer(),) * 3))
    for step in (
        PoolTokens(layer=0, queries_only=True),
        Quantize.model_validate({"scheme": "fp16", "keep_fp32": ["layers.0.*"]}),
    ):
        ranker = step.apply(ranker, supply_for(step, tiny_data, ranker))
    assert ranker.spec.layers[1].states == "fp16"
    model = write_graph(ranker.spec, ranker.weights, dialect).SerializeToString()
    session = ort.InferenceSession(model, session_options(threads=1), providers=["CPUExecutionProvider"])
    batch = parity.parity_batches(ranker, tiny_pairs)[0]
    with torch.inference_mode():
        expected = ranker.module(**{name: torch.tensor(array) for name, array in batch.items()}).numpy()
    (found,) = session.run(None, {node.name: batch[node.name] for node in session.get_inputs()})
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)  # fp16 has ten bits


@pytest.mark.parametrize(
    "step",
    [PoolTokens(), PoolTokens(layer=0, queries_only=True), KeepTokens(scorer="pagerank"), MergeTokens()],
    ids=["pool", "pool queries", "keep", "merge"],
)
def test_a_folder_says_which_tokens_go_and_holds_no_stock_checkpoint(step, tiny_pairs, tmp_path):
    whole = build_ranker(tiny_spec(layers=(tiny_layer(),) * 3))
    ranker = step.apply(whole, supply_for(step, None, whole))
    assert can_be_stock(whole.spec) is None
    assert "token_rule" in (can_be_stock(ranker.spec) or "")
    export_folder(ranker, tmp_path / "model", manifest={}, int8_companion=False, portable=True)
    assert RankerSpec.model_validate_json((tmp_path / "model" / "spec.json").read_text()) == ranker.spec
    assert not (tmp_path / "model" / "model.safetensors").exists()
    for file in (None, "onnx/model_portable.onnx"):
        found = OnnxRanker.load(tmp_path / "model", file=file, threads=1).score(tiny_pairs)
        np.testing.assert_allclose(found, ranker.score(tiny_pairs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheme", ["none", "int8_dynamic"])
def test_where_every_choice_is_close_a_rounded_graph_is_compared_and_no_other(
    scheme, tiny_pairs, tiny_data, tmp_path, monkeypatch
):
    ranker = build_ranker(tiny_spec(layers=(tiny_layer(),) * 3))
    for step in (MergeTokens(), Quantize.model_validate({"scheme": scheme})):
        ranker = step.apply(ranker, supply_for(step, tiny_data, ranker))
    path = tmp_path / "model.onnx"
    path.write_bytes(write_graph(ranker.spec, ranker.weights).SerializeToString())
    batches = parity.parity_batches(ranker, tiny_pairs)
    n_rows = sum(len(batch["input_ids"]) for batch in batches)
    monkeypatch.setattr(parity, "clear_rows", lambda *_, **__: np.zeros(n_rows, dtype=bool))
    if scheme == "none":
        with pytest.raises(RunError, match="so close that rounding may turn it"):
            parity.check_parity(ranker, path, batches)
        return
    assert parity.check_parity(ranker, path, batches)[0].n_rows == n_rows
    broken = {**ranker.weights, "head.output.weight": -ranker.weights["head.output.weight"]}
    path.write_bytes(write_graph(ranker.spec, broken).SerializeToString())
    with pytest.raises(RunError, match="does not score as the ranker does"):
        parity.check_parity(ranker, path, batches)
