"""Passes that train draw from several first stages, and refuse those that the data has not before anything runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compressor.errors import InputError
from compressor.passes.finetune import Finetune
from compressor.pipeline import make_stages
from compressor.recipe import parse_recipe
from compressor.registry import registered
from tests.passes.students import QUICK, cut, distilled, score_rmse, supply_for, unlabelled

SHARES = {"bm25": 0.5, "dense.trec": 0.25, "random": 0.25}
LISTS = {"list_size": 4, "sources": SHARES, "curriculum": "reciprocal_rank"}


@pytest.fixture
def data(tiny_data):
    runs = {
        "bm25": {query: found[:5] for query, found in tiny_data.candidates.items()},
        "dense.trec": {query: found[3:] for query, found in tiny_data.candidates.items()},
    }
    return replace(tiny_data, runs=runs)


@pytest.mark.parametrize("how", ["live", "stored"])
def test_distill_learns_from_all_of_them_with_a_curriculum(tiny_ranker, data, how):
    student = cut(tiny_ranker, [1])
    result = distilled(student, tiny_ranker, unlabelled(data), lists=LISTS, teacher_scores=how, epochs=40)
    assert score_rmse(result, tiny_ranker, data) < score_rmse(student, tiny_ranker, data) / 3


def test_the_first_steps_weigh_less_than_without_a_curriculum(tiny_ranker, data):
    student = cut(tiny_ranker, [1])

    def first_loss(curriculum):
        curves = {}
        settings = {"losses": {"mse": 1}, "representations": {}, "epochs": 1, "lists_per_step": 1}
        lists = {**LISTS, "curriculum": curriculum}
        distilled(student, tiny_ranker, data, lambda supply: curves.update(supply.curves), lists=lists, **settings)
        return curves["loss"][0][1]

    assert 0 < first_loss("reciprocal_rank") < first_loss(None)


def test_finetune_takes_negatives_from_all_of_them(tiny_ranker, data):
    step = Finetune.model_validate({**QUICK, "lists": LISTS})
    supply = supply_for(step, data, tiny_ranker)
    step.apply(tiny_ranker, supply)
    points = [value for _, value in supply.curves["loss"]]
    assert sum(points[-5:]) < sum(points[:5])


PASSES = [
    {"distill": {"lists": {"sources": {"dense.tre": 1}}}},
    {"distill": {"lists": {"sources": {"dense.tre": 1}}, "data": "in_domain"}},
    {"finetune": {"lists": {"sources": {"dense.tre": 1}}}},
]


@pytest.mark.parametrize("step", PASSES)
def test_unknown_sources_are_refused_before_anything_runs(step, data, tmp_path):
    place = {"collection": "pets"}
    value = {"teacher": "packaged", "data": {"train": place, "in_domain": place}, "passes": [step]}
    recipe = parse_recipe(value, registered(), "r.yaml")
    with pytest.raises(InputError) as error:
        make_stages(recipe, "fingerprint", lambda need: data, tmp_path)
    (verb,) = step
    assert str(error.value) == (
        f"{verb}: lists.sources.dense.tre: found no such first stage; "
        "allowed: of tiny/test: bm25, dense.trec, first_stage, random; did you mean 'dense.trec'?"
    )


def test_unknown_sources_are_refused_in_a_pass_that_is_called_alone(tiny_ranker, data):
    with pytest.raises(InputError, match=r"distill: lists\.sources\.sparse: found no such first stage"):
        distilled(tiny_ranker, tiny_ranker, data, lists={"sources": {"sparse": 1}})


def test_another_run_makes_another_stage(data, tmp_path):
    value = {"teacher": "packaged", "data": {"train": {"collection": "pets"}}, "passes": ["distill"]}
    recipe = parse_recipe(value, registered(), "r.yaml")
    other = replace(data, runs={**data.runs, "dense.trec": data.runs["bm25"]})
    (first,) = make_stages(recipe, "f", lambda need: data, tmp_path)
    (second,) = make_stages(recipe, "f", lambda need: other, tmp_path)
    assert first.folder != second.folder
