"""isolate_query: what a query becomes does not depend on its document, in every layer and wherever layers are run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from compressor.algorithms.calibration import calibration_batches, scores_from
from compressor.errors import InputError, RunError
from compressor.export import export_folder
from compressor.families import can_be_stock
from compressor.passes import PlanError
from compressor.passes.distill import Distill
from compressor.passes.isolate_query import IsolateQuery
from compressor.passes.pool_tokens import PoolTokens
from compressor.passes.quantize import Quantize
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import DropoutSpec, SimilarityHead
from compressor.ranker.tokens import TokenLayout
from compressor.runtime.ranker import OnnxRanker
from tests import tiny
from tests.passes.students import QUICK, applied, supply_for
from tests.passes.test_token_rules import with_template
from tests.ranker.cascades import cascade, cascading
from tests.ranker.cases import SEPARATOR, SPECS

QUERY = "which tree is green"
DOCUMENTS = [
    "the tree in the garden is green when it rains", "", "[SEP]", "a [SEP] in the text [SEP] [CLS] of a page",
    tiny.LONG_DOCUMENT,
]  # fmt: skip


@pytest.fixture(scope="module")
def ranker():
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 3), seed=3)


@pytest.fixture(scope="module")
def isolated(ranker):
    return applied(IsolateQuery(), ranker)


def traced(ranker, query, documents, module=None):
    """Return the trace of a query's pairs in one batch, and how many tokens stand before each document."""
    from compressor.runtime.batching import padded

    encoded = ranker.tokenizer.encode_pairs([(query, document) for document in documents])
    inputs = padded(encoded, np.arange(len(documents)), ranker.spec.pad_id)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    end = encoded.input_ids[0].tolist().index(SEPARATOR) + 1
    with torch.no_grad():
        return (module or ranker.module).trace(**tensors), end


def query_states(ranker, query, documents, module=None):
    """Return the states of the query's tokens behind each layer but the last, float32 ``[layers, documents, q, W]``."""
    trace, end = traced(ranker, query, documents, module)
    return np.stack([layout.pad(state)[:, 1:end].numpy() for state, layout in
                     list(zip(trace.states, trace.layouts, strict=True))[:-1]])  # fmt: skip


def test_weights_stay_and_scores_do_not(ranker, isolated, tiny_pairs):
    assert isolated.spec.isolates_query
    assert isolated.spec.separator_id == SEPARATOR
    assert all(torch.equal(isolated.weights[name], tensor) for name, tensor in ranker.weights.items())
    assert np.abs(isolated.score(tiny_pairs) - ranker.score(tiny_pairs)).max() > 1e-3


@pytest.mark.parametrize("query", [QUERY, "", "two [SEP] texts"])
def test_a_query_becomes_the_same_beside_every_document(ranker, isolated, query):
    states = query_states(isolated, query, DOCUMENTS)
    np.testing.assert_allclose(states, np.broadcast_to(states[:, :1], states.shape), atol=1e-6)
    seeing = query_states(ranker, query, DOCUMENTS)
    assert np.abs(seeing[1:] - seeing[1:, :1]).max() > 1e-3, "the test would see it"


def test_documents_and_the_first_token_still_see_the_query(isolated):
    traces = [traced(isolated, query, DOCUMENTS[:1]) for query in (QUERY, "which tree is large")]
    first, other = (trace.layouts[1].pad(trace.states[1])[0] for trace, _ in traces)
    end = traces[0][1]
    assert (first[0] - other[0]).abs().max() > 1e-3
    assert (first[end:] - other[end:]).abs().amax(dim=1).min() > 1e-4


def test_each_row_of_a_batch_has_its_own_query(isolated, tiny_pairs):
    pairs = [*tiny_pairs, ("", "a page"), ("a", ""), ("", "")]
    together = isolated.score(pairs, batch_tokens=100_000)
    alone = np.concatenate([isolated.score([pair]) for pair in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_layers_that_are_run_one_by_one_heed_it(isolated, tiny_pairs):
    batches = calibration_batches(isolated, tiny_pairs)
    with torch.inference_mode():
        found = scores_from(isolated.module, batches, [batch.embedded for batch in batches], 0, len(tiny_pairs))
    np.testing.assert_allclose(found, isolated.score(tiny_pairs), atol=1e-5)


def test_rows_and_tokens_that_go_leave_queries_where_they_were():
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    layout = TokenLayout.of(mask, query_ends=torch.tensor([3, 2]))
    assert layout.isolated is not None
    assert layout.isolated.tolist() == [[False, True, True, False, False, False], [False, True, *[False] * 4]]
    fewer, _ = layout.keep_tokens(torch.tensor([1, 1, 1, 0, 0, 1, 1, 1, 0, 1]).bool())
    assert fewer.isolated is not None
    assert fewer.isolated.tolist() == [[False, True, True, False], [False, True, False, False]]
    rows, _ = layout.keep_rows(torch.tensor([1]))
    assert rows.isolated is not None
    assert rows.isolated.tolist() == [[False, True, False, False]]
    assert TokenLayout.of(mask).isolated is None


def test_it_is_trained_under_the_same_mask(ranker, isolated, tiny_data):
    still = isolated.changed(spec=isolated.spec.changed(dropout=DropoutSpec()))
    module = still.trainable()
    states = query_states(still, QUERY, DOCUMENTS, module)
    np.testing.assert_allclose(states, np.broadcast_to(states[:, :1], states.shape), atol=1e-6)
    quick = {**QUICK, "epochs": 4, "learning_rate": 1e-3, "losses": {"mse": 1}, "representations": {}}
    step = Distill.model_validate(quick)
    trained = step.apply(still, supply_for(step, tiny_data, ranker))
    assert trained.spec.isolates_query
    pairs = tiny_data.texts(tiny_data.pairs())
    before, left = (np.abs(one.score(pairs) - ranker.score(pairs)).mean() for one in (still, trained))
    assert left < 0.8 * before
    after = query_states(trained, QUERY, DOCUMENTS)
    np.testing.assert_allclose(after, np.broadcast_to(after[:, :1], after.shape), atol=1e-6)
    assert np.abs(after[1:] - states[1:]).max() > 1e-4


@pytest.mark.parametrize("reach", [100, 3])
def test_masked_torch_equals_rows_apart(reach, tiny_pairs):
    """The query's states are those of a row that holds the query alone, up to the first token that it may not see."""
    from compressor.ranker.spec import WindowPattern
    from tests.ranker.cases import attention, of_layers

    layer = tiny.tiny_layer(attention=attention(pattern=WindowPattern(reach=reach)))
    ranker = tiny.build_ranker(of_layers(layer, layer, isolates_query=True, separator_id=SEPARATOR))
    (row,) = ranker.tokenizer.encode_pairs(tiny_pairs[:1]).input_ids
    end = row.tolist().index(SEPARATOR) + 1
    inputs = {"input_ids": torch.tensor(row)[None], "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
    module = ranker.module.double()  # in fp32, rows of other lengths take other kernels, which sum in another order
    found = module.trace(**inputs, relations=[1]).states[2][1:end]
    alone = TokenLayout.of(torch.ones(1, end - 1), positions=torch.arange(1, end))
    values = module.embed(alone, inputs["input_ids"][:, 1:end], None)
    for each in module.layers:
        values = each(values, alone)
    torch.testing.assert_close(found, values, atol=1e-12, rtol=0)


BERT = tiny.tiny_spec()
REFUSED = {
    "a bi-encoder": (BERT.changed(head=SimilarityHead(pool="first")), "a bi-encoder"),
    "twice": (SPECS["isolated"], "isolates queries already"),
    "a cascade": (cascading().spec, "a ranker that has a cascade"),
    "rounded": (Quantize(scheme="int8_dynamic").plan(BERT), "a quantized ranker"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name):
    spec, found = REFUSED[name]
    with pytest.raises(PlanError, match=found) as refused:
        IsolateQuery().plan(spec)
    assert refused.value.allowed


@pytest.mark.parametrize(
    ("pair", "found"),
    [
        ("[CLS] A B [SEP]", "no special token of its own between query and document"),
        ("[SEP] A [SEP] B", "no special token of its own between query and document"),
        ("A [SEP] B [SEP]", "pairs begin with the query's own first token"),
    ],
)
def test_a_tokenizer_that_does_not_tell_is_refused(ranker, pair, found):
    with pytest.raises(InputError, match=found):
        applied(IsolateQuery(), with_template(ranker, pair))


def test_two_separators_part_behind_the_first(ranker):
    doubled = applied(IsolateQuery(), with_template(ranker, "[CLS] A [SEP] [SEP] B [SEP]"))
    states = query_states(doubled, QUERY, DOCUMENTS)
    np.testing.assert_allclose(states, np.broadcast_to(states[:, :1], states.shape), atol=1e-6)


def test_a_shape_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="no query to isolate"):
        SPECS["isolated"].changed(head=SimilarityHead(pool="first"))
    with pytest.raises(ValueError, match="a cascade of a ranker that isolates queries"):
        cascading(cascade(), isolates_query=True, separator_id=SEPARATOR)
    with pytest.raises(RunError, match="isolates queries and has no separator_id"):
        Encoder(BERT.changed(isolates_query=True))


def test_old_shapes_keep_their_fingerprints(ranker, isolated):
    assert "isolates_query" not in ranker.spec.model_dump(mode="json")
    assert isolated.spec.model_dump(mode="json")["isolates_query"] is True


def test_the_folder_is_one_for_all_and_has_no_checkpoint(isolated, tiny_pairs, tmp_path):
    assert "isolates_query" in (can_be_stock(isolated.spec) or "")
    pooled = applied(PoolTokens(layer=0), isolated)
    for name, one in {"plain": isolated, "pooled": pooled}.items():
        report = export_folder(one, tmp_path / name, manifest={}, portable=True, calibration_pairs=tiny_pairs)
        assert {"model.onnx", "model_portable.onnx"} <= {record.file for record in report.parity}
        assert not (tmp_path / name / "model.safetensors").exists()
        assert json.loads((tmp_path / name / "spec.json").read_text())["isolates_query"] is True
        pairs = [(QUERY, document) for document in DOCUMENTS]
        for file in ("onnx/model.onnx", "onnx/model_portable.onnx"):
            found = OnnxRanker.load(tmp_path / name, file=file, threads=1).score(pairs)
            np.testing.assert_allclose(found, one.score(pairs), atol=1e-5)
