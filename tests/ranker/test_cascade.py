"""Cascades in torch: which candidates go on, in what order they end, and what a shape must have for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compressor.cascade_stages import Cascade, ExportedCascade
from compressor.ranker.cascade import run_cascade, score_stages, similarity
from compressor.ranker.cost import macs, macs_of_stages
from compressor.ranker.spec import RankerSpec
from compressor.ranker.store import load_ranker, save_ranker
from compressor.ranker.tokens import TokenLayout
from compressor.runtime.batching import padded
from compressor.runtime.list_scores import best, in_one_order
from tests.ranker.cascades import STAGES, cascade, cascading, long_list, rank_list
from tests.tiny import tiny_layer, tiny_spec

PLACES = [stage["behind"] for stage in STAGES]
TOLERANCE = 1e-5  # fp32 sums in another order


@pytest.fixture(scope="module")
def ranker():
    return cascading()


@pytest.fixture(scope="module")
def scored():
    """The candidates of one list, scored everywhere: ``[stages + 1, C]``."""
    query, documents = long_list()
    return score_stages(cascading(), PLACES, [(query, document) for document in documents])


@pytest.mark.parametrize(
    ("n", "counts"),
    [(100, [80, 50, 25]), (23, [19, 12, 6]), (5, [4, 3, 2]), (3, [3, 2, 2]), (2, [2, 2, 2]), (1, [1] * 3)],
)
def test_counts_are_shares_rounded_up(n, counts):
    assert cascade().counts(n) == counts


def test_a_share_is_the_decimal_number_that_was_written():
    for share, n, count in ((0.07, 100, 7), (0.1, 30, 3), (0.29, 100, 29), (0.005, 1000, 5), (1 / 3, 3, 1)):
        assert cascade({"behind": 0, "keep": share}, keep_at_least=1).counts(n) == [count]


def test_every_stage_drops_the_weakest_of_those_that_are_left(ranker, scored):
    query, documents = long_list()
    found = rank_list(ranker, query, documents)
    alive = np.arange(len(documents))
    for place, count in enumerate(ranker.spec.cascade.counts(len(documents))):
        order = alive[np.argsort(-scored[place, alive], kind="stable")]
        alive = np.sort(order[:count])
        assert set(np.flatnonzero(found.stages > place)) == set(alive.tolist())
    assert np.bincount(found.stages).tolist() == [4, 7, 6, 6]


def test_who_went_further_stands_before_who_did_not(ranker, scored):
    query, documents = long_list()
    found = rank_list(ranker, query, documents)
    for stage in range(4):
        members = np.flatnonzero(found.stages == stage)
        behind = found.scores[found.stages < stage]
        assert not len(behind) or found.scores[members].min() >= behind.max() + 1 - TOLERANCE
        lowered = scored[stage, members] - found.scores[members]
        assert np.ptp(lowered) < TOLERANCE, "within a stage the logits decide"
    reached = found.stages == 3
    np.testing.assert_allclose(found.scores[reached], scored[3, reached], atol=TOLERANCE)
    np.testing.assert_allclose(
        found.scores[reached],
        ranker.score([(query, documents[one]) for one in np.flatnonzero(reached)]),
        atol=TOLERANCE,
    )


def test_logits_that_lie_low_enough_are_left_as_they_are():
    logits, stages = np.array([2.0, -5.0, -4.0, 3.0], dtype=np.float32), np.array([1, 0, 0, 1])
    np.testing.assert_array_equal(in_one_order(logits, stages).scores, logits)
    np.testing.assert_array_equal(
        in_one_order(-logits, stages).scores, [-2, -5 + 1, -6 + 1, -3][:0] or [-2, -4, -5, -3]
    )


def test_of_equal_scores_the_first_in_the_list_goes_on():
    assert best(np.array([1, 2, 2, 2, 0], dtype=np.float32), 2).tolist() == [1, 2]
    settings = cascade({"behind": 0, "keep": 0.5}, keep_at_least=1)
    found = rank_list(cascading(settings), "red", ["the same stone"] * 6)
    assert found.stages.tolist() == [1, 1, 1, 0, 0, 0]


def test_the_order_of_the_candidates_and_padding_do_not_matter(ranker):
    query, documents = long_list()
    found = rank_list(ranker, query, documents)
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = rank_list(ranker, query, [documents[one] for one in order])
    np.testing.assert_array_equal(shuffled.stages, found.stages[order])
    np.testing.assert_allclose(shuffled.scores, found.scores[order], atol=TOLERANCE)
    encoded = ranker.tokenizer.encode_pairs([(query, document) for document in documents])
    inputs = padded(encoded, np.arange(len(documents)), ranker.spec.pad_id)
    wider = {name: np.pad(array, ((0, 0), (0, 9))) for name, array in inputs.items()}
    (narrow, stages), (wide, wide_stages) = (
        run_cascade(ranker.module, ranker.spec.cascade, **{k: torch.from_numpy(v) for k, v in some.items()})
        for some in (inputs, wider)
    )
    assert torch.equal(stages, wide_stages)
    torch.testing.assert_close(wide, narrow, atol=TOLERANCE, rtol=0)


def test_shares_of_one_and_short_lists_change_nothing_to_the_bit(ranker):
    query, documents = long_list()
    pairs = [(query, document) for document in documents]
    idle = cascading(cascade({"behind": "embeddings", "keep": 1}, {"behind": 1, "keep": 1}))
    np.testing.assert_array_equal(rank_list(idle, query, documents).scores, idle.score(pairs))
    found = rank_list(ranker, query, documents[:2])
    assert found.stages.tolist() == [3, 3]
    np.testing.assert_allclose(found.scores, ranker.score(pairs[:2]), atol=TOLERANCE)
    assert rank_list(ranker, query, []).scores.shape == (0,)


def test_pairs_are_scored_at_full_depth(ranker, tiny_pairs):
    np.testing.assert_array_equal(ranker.score(tiny_pairs), ranker.without_exits().score(tiny_pairs))


def test_similarity_is_the_mean_over_query_tokens_of_the_best_match(ranker):
    table = torch.nn.functional.normalize(ranker.weights["embeddings.tokens.weight"], dim=1)
    ids = torch.tensor([[2, 90, 91, 3, 92, 93, 94, 3], [2, 90, 3, 90, 3, 0, 0, 0]])
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0]])
    mask = (ids > 0).long()
    with torch.inference_mode():
        found = similarity(ranker.module, TokenLayout.of(mask), ids, segments)
    cosines = table[[90, 91, 3]] @ table[[92, 93, 94, 3]].T  # of the query's tokens with the document's
    torch.testing.assert_close(found[0, 0], cosines.amax(dim=1).mean())
    torch.testing.assert_close(found[1, 0], torch.tensor(1.0))  # all is there


def test_multiply_adds_are_those_of_the_layers_that_are_run():
    spec = cascading().spec
    by_stage = macs_of_stages(spec, 20)
    ends = [spec.without_exits().changed(layers=spec.without_exits().layers[:depth]) for depth in (1, 2, 4)]
    first_only = spec.layers[0]  # a cut computes its last layer for one token; a stage hands all of them on
    one_layer = macs(spec.without_exits(), 20) - macs(ends[1], 20)  # two layers in full
    head = 16 * 16 + 16
    similar = 20 * 20 * 16
    assert by_stage[0] == similar
    assert by_stage[1] == similar + one_layer // 2 + head
    assert by_stage[2] == similar + one_layer + 2 * head
    assert by_stage[3] == similar + macs(spec.without_exits(), 20) + 2 * head
    assert first_only.exit is not None


def test_specs_without_a_cascade_are_written_as_ever():
    spec = tiny_spec()
    assert "cascade" not in spec.model_dump()
    assert "cascade" not in json.loads(spec.model_dump_json())
    assert RankerSpec.model_validate(spec.model_dump(mode="json")) == spec
    with_one = cascading().spec
    assert RankerSpec.model_validate_json(with_one.model_dump_json()) == with_one
    assert with_one.without_exits() == tiny_spec(layers=(tiny_layer(),) * 4)
    served = with_one.changed(cascade=cascade({"behind": 0, "keep": 0.5}, {"behind": 2, "keep": 0.5})).as_served()
    assert served.exit_layers == (0, 2)
    assert with_one.changed(cascade=cascade({"behind": 0, "keep": 1})).as_served() == with_one.without_exits()


def test_a_cascade_survives_its_file(ranker, tmp_path):
    save_ranker(ranker, tmp_path / "stage")
    loaded = load_ranker(tmp_path / "stage")
    assert loaded.spec == ranker.spec
    assert (
        loaded.fingerprint == ranker.fingerprint != ranker.changed(spec=ranker.spec.changed(cascade=None)).fingerprint
    )


@pytest.mark.parametrize(
    ("stages", "found"),
    [
        ([{"behind": 1, "keep": 0.5}, {"behind": 0, "keep": 0.4}], "stages behind 1, 0: they stand in the order"),
        ([{"behind": 0, "keep": 0.5}, {"behind": 0, "keep": 0.4}], "stages behind 0, 0"),
        ([{"behind": 0, "keep": 0.5}, {"behind": "embeddings", "keep": 0.4}], "stages behind 0, embeddings"),
        ([{"behind": 0, "keep": 0.4}, {"behind": 1, "keep": 0.5}], "shares 0.4, 0.5: each is one of the whole list"),
        ([{"behind": 0, "keep": 0}], "greater than 0"),
        ([{"behind": 0, "keep": 1.5}], "less than or equal to 1"),
        ([{"behind": -1, "keep": 0.5}], "greater than or equal to 0"),
        ([], "at least 1 item"),
    ],
)
def test_stages_that_mean_nothing_are_refused(stages, found):
    with pytest.raises(ValidationError, match=found):
        Cascade.model_validate({"stages": stages})


def test_stages_need_something_to_score_with():
    spec = cascading().spec
    for behind in (3, 9):
        with pytest.raises(ValidationError, match=f"layers that have no exit: {behind}"):
            spec.changed(cascade=cascade({"behind": behind, "keep": 0.5}))
    one_segment = spec.embeddings.changed(segments=spec.embeddings.segments.changed(rows=1))
    with pytest.raises(ValidationError, match="tokens that are all of one segment"):
        spec.changed(embeddings=one_segment)
    with pytest.raises(ValidationError, match="2 files for 2 stages"):
        ExportedCascade.model_validate({"stages": STAGES[:2], "files": ["a", "b"]})
