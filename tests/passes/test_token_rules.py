"""pool_tokens and keep_tokens: where rules stand, what is refused, and what comes behind them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from compressor.errors import InputError
from compressor.passes import PlanError
from compressor.passes.add_exits import AddExits
from compressor.passes.cut_at_exit import CutAtExit
from compressor.passes.distill import Distill
from compressor.passes.keep_tokens import KeepTokens
from compressor.passes.merge_tokens import MergeTokens
from compressor.passes.pool_tokens import PoolTokens
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.ranker.spec import AttentionScorer, DropoutSpec, KeepShareRule, PageRankScorer, PoolRule, SimilarityHead
from compressor.training.matches import same_relations, same_tokens
from tests import tiny
from tests.passes.students import QUICK, supply_for
from tests.ranker.cases import SEPARATOR


@pytest.fixture(scope="module")
def ranker():
    """A cross-encoder of four layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), seed=3)


def run(step, ranker, data=None, teacher=None):
    result = step.apply(ranker, supply_for(step, data, teacher or ranker))
    assert step.plan(ranker.spec).rule_layers == result.spec.rule_layers
    return result


def rules_of(ranker):
    return {place: ranker.spec.layers[place].token_rule for place in ranker.spec.rule_layers}


def test_rules_stand_where_they_are_put(ranker):
    assert rules_of(run(PoolTokens(), ranker)) == {1: PoolRule(stride=2)}  # two of four layers see all tokens
    assert rules_of(run(PoolTokens(layer=2, stride=4), ranker)) == {2: PoolRule(stride=4)}
    seeing = run(PoolTokens(queries_only=True), ranker)
    assert rules_of(seeing) == {1: PoolRule(stride=2, queries_only=True)}
    assert rules_of(run(PoolTokens(stride=4), seeing)) == {1: PoolRule(stride=4)}
    assert rules_of(run(PoolTokens(stride=1), seeing)) == {}
    assert rules_of(run(KeepTokens(), ranker)) == {1: KeepShareRule(share=0.5, scorer=AttentionScorer())}
    step = KeepTokens.model_validate({"layers": {"0": 0.7, 1: 1, 2: 0.5}, "scorer": "pagerank"})
    assert rules_of(run(step, ranker)) == {
        place: KeepShareRule(share=share, scorer=PageRankScorer()) for place, share in ((0, 0.7), (2, 0.5))
    }
    both = run(PoolTokens(layer=2), run(KeepTokens(layers={0: 0.5}), ranker))
    assert both.spec.rule_layers == (0, 2)
    assert both.spec.separator_id == SEPARATOR


PLAIN = tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4)
RULED = PLAIN.changed(layers=(tiny.tiny_layer(), tiny.tiny_layer(token_rule=PoolRule(stride=2)), *PLAIN.layers[2:]))
REFUSED = {
    "the last layer": (PoolTokens(layer=3), PLAIN, "layer 3 of a ranker of 4 layers", "layer"),
    "windows that nobody asks with": (
        PoolTokens(layer=2, queries_only=True),
        PLAIN,
        "above which the first token alone asks",
        "queries_only",
    ),
    "no such layer": (KeepTokens(layers={7: 0.5}), PLAIN, "layer 7 of a ranker of 4 layers", "layers"),
    "a layer twice": (KeepTokens(layers={1: 0.5, "middle": 0.5}), PLAIN, "layer 1 by its number and as", "layers"),
    "a layer with a rule": (KeepTokens(), RULED, "layer 1, behind which tokens go already", "layers"),
    "one layer": (PoolTokens(), PLAIN.changed(layers=PLAIN.layers[:1]), "a ranker of one layer", ""),
    "a bi-encoder": (PoolTokens(), PLAIN.changed(head=SimilarityHead(pool="first")), "a bi-encoder", ""),
    "no attention": (
        KeepTokens(layers={0: 0.5}),
        PLAIN.changed(layers=(tiny.tiny_layer(attention=None), *PLAIN.layers[1:])),
        "layer 0, which has no attention to judge tokens by",
        "layers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name):
    step, spec, found, setting = REFUSED[name]
    with pytest.raises(PlanError, match=found) as refused:
        step.plan(spec)
    assert refused.value.allowed
    assert refused.value.setting == setting


@pytest.mark.parametrize("settings", [{"stride": 0}, {"stride": 65}, {"layer": "first"}, {"layer": -1}])
def test_senseless_pools_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PoolTokens.model_validate(settings)


@pytest.mark.parametrize("settings", [{"layers": {}}, {"layers": {0: 0}}, {"layers": {0: 1.1}}, {"scorer": "length"}])
def test_senseless_choices_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        KeepTokens.model_validate(settings)


def with_template(ranker, pair):
    tokenizer = json.loads(ranker.tokenizer_files["tokenizer.json"])
    ids = {token: index for index, token in enumerate(tiny.SPECIALS)}
    tokens = [{"SpecialToken": {"id": t, "type_id": 0}} if t in ids else {"Sequence": {"id": t, "type_id": 0}}
              for t in pair.split()]  # fmt: skip
    tokenizer["post_processor"]["pair"] = tokens
    files = {**ranker.tokenizer_files, "tokenizer.json": json.dumps(tokenizer).encode()}
    return ranker.changed(tokenizer_files=files)


@pytest.mark.parametrize(
    ("pair", "separator"),
    [
        ("[CLS] A [SEP] B [SEP]", "[SEP]"),
        ("[CLS] A [SEP] [SEP] B [SEP]", "[SEP]"),  # RoBERTa
        ("A [SEP] B", "[SEP]"),
        ("[CLS] A B [SEP]", None),
        ("[SEP] A [SEP] B", None),  # a row's first separator would stand before the query
        ("A B", None),
    ],
)
def test_the_separator_stands_between_the_texts(ranker, pair, separator):
    told = with_template(ranker, pair)
    if separator is None:
        assert told.tokenizer.separator_id is None
        with pytest.raises(InputError, match="no special token of its own between query and document"):
            run(PoolTokens(), told)
    else:
        assert run(PoolTokens(), told).spec.separator_id == tiny.SPECIALS.index(separator)


def test_a_pair_with_two_separators_loses_the_same_document_tokens(ranker, tiny_pairs):
    doubled = run(PoolTokens(layer=0, stride=3), with_template(ranker, "[CLS] A [SEP] [SEP] B [SEP]"))
    encoded = doubled.tokenizer.encode_pairs(tiny_pairs[:3])
    for ids in encoded.input_ids:
        inputs = {"input_ids": torch.tensor(ids)[None], "attention_mask": torch.ones(1, len(ids))}
        left = doubled.module.trace(**inputs).layouts[2].positions.tolist()
        start = ids.tolist().index(SEPARATOR) + 2
        assert ids[start - 1] == SEPARATOR
        assert left == [*range(start), *range(start, len(ids) - 1, 3), len(ids) - 1]


def test_a_cut_behind_a_rule_scores_as_its_exit_did(ranker, tiny_pairs):
    ruled = run(KeepTokens(layers={0: 0.5, 1: 0.5}), run(AddExits(layers=(1,)), ranker))
    cut = run(CutAtExit(layer=1), ruled)
    assert cut.spec.rule_layers == (0,)  # behind the last layer nothing reads what is left
    encoded = ruled.tokenizer.encode_pairs(tiny_pairs)
    for ids, types, score in zip(encoded.input_ids, encoded.type_ids, cut.score(tiny_pairs), strict=True):
        inputs = {"input_ids": torch.tensor(ids)[None], "attention_mask": torch.ones(1, len(ids))}
        trace = ruled.module.trace(**inputs, token_type_ids=torch.tensor(types)[None])
        assert trace.exits[1].item() == pytest.approx(score, abs=1e-5)


def test_a_trimmed_vocabulary_knows_its_separator(ranker, tiny_data):
    ruled = run(KeepTokens(layers={0: 0.4}), ranker)
    # The separator moves: as the last of all tokens it cannot stay where it is.
    step = TrimVocabulary(texts=("train",))
    trimmed = run(step, ruled, tiny_data)
    pairs = tiny_data.texts(tiny_data.pairs()[:12])
    assert trimmed.spec.embeddings.tokens.rows < ruled.spec.embeddings.tokens.rows
    assert trimmed.spec.separator_id == trimmed.tokenizer.separator_id
    np.testing.assert_array_equal(trimmed.score(pairs), ruled.score(pairs))


REPRESENTATIONS = {"hidden": {"layers": "uniform"}, "relations": {"layers": "uniform"}}


@pytest.mark.parametrize(
    "step", [PoolTokens(), KeepTokens(layers={0: 0.6, 1: 0.6}), MergeTokens()], ids=["pool", "keep", "merge"]
)
def test_a_student_with_fewer_tokens_learns_from_inner_states(step, ranker, tiny_data):
    noise = torch.Generator().manual_seed(1)
    weights = {name: t + 0.1 * torch.randn(t.shape, generator=noise) for name, t in ranker.weights.items()}
    shape = ranker.spec.changed(dropout=DropoutSpec())
    student = run(step, ranker.changed(spec=shape, weights=weights))
    settings = {**QUICK, "epochs": 6, "learning_rate": 3e-3, "representations": REPRESENTATIONS}
    distill = Distill.model_validate(settings)
    supply = supply_for(distill, tiny_data, ranker)
    trained = distill.apply(student, supply)
    assert rules_of(trained) == rules_of(student)
    for name in ("hidden", "relations"):
        losses = [value for _, value in supply.curves[f"loss/{name}"]]
        assert losses[-1] < losses[0], name


def test_states_are_compared_token_by_token(ranker, tiny_pairs):
    """Up to the first rule student and teacher are one; kept tokens are compared with themselves."""
    student = run(KeepTokens(layers={1: 0.5}), ranker)
    ids = torch.tensor(student.tokenizer.encode_pairs(tiny_pairs[:1]).input_ids[0])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    own, theirs = (each.module.trace(**inputs, relations=[2]) for each in (student, ranker))
    for state in range(3):
        torch.testing.assert_close(*same_tokens(own, state, theirs, state))
    left, right = same_tokens(own, 3, theirs, 3)
    kept = own.reductions[1].kept
    assert torch.equal(right, theirs.states[3][kept])
    assert left.shape == right.shape != theirs.states[3].shape
    (query, *_), (their_query, *_) = same_relations(own, 2, theirs, 2)
    torch.testing.assert_close(query, their_query)  # layer 2 reads kept states as they were


def test_a_teacher_that_lets_tokens_go_is_not_watched_inside(ranker, tiny_data):
    distill = Distill.model_validate({**QUICK, "representations": REPRESENTATIONS})
    with pytest.raises(InputError, match="a teacher that lets tokens go behind layer 1"):
        distill.apply(ranker, supply_for(distill, tiny_data, run(PoolTokens(), ranker)))
