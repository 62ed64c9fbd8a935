"""Collections with made queries: what is read, chosen and given candidates; forms of a reference, and its faults."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from compressor.data import api_docs, check_reference, load_data
from compressor.data_reference import DataReference
from compressor.errors import InputError
from compressor.query_settings import MadeQueries, QueryKind
from compressor.recipe import parse_recipe

KINDS: tuple[QueryKind, ...] = get_args(QueryKind)


def load(tmp_path, depth: int = 100, **fields: Any):
    fields = {"collection": "pets", "make_queries": True, **fields}
    return load_data(DataReference.model_validate(fields), base=tmp_path, depth=depth)


def test_a_beir_folder_is_read_whole_without_its_queries_and_judgments(beir, tmp_path):
    beir(queries=None)
    data = load(tmp_path, make_queries={"kinds": ["titles", "sentences"], "per_document": 2})
    assert data.queries == {
        "d1~sentences": "Cats sleep most of the day",
        "d2~sentences": "Dogs bark at night",
        "d3~sentences": "Birds sing in the morning and sleep at night",
        "d4~sentences": "Fish swim",
    }, "a title is no part of the body, and one word asks for nothing"
    assert (data.name, data.qrels) == ("pets, made queries", {})
    assert data.first_stage == "bm25, depth 100, and the document that the query was made of"
    assert all(query.partition("~")[0] in found for query, found in data.candidates.items())
    assert data.candidates["d3~sentences"] == ["d3", "d2", "d1"]
    assert data.runs == {"bm25": data.candidates}


def test_titles_are_stripped_from_the_body(beir, tmp_path):
    corpus = [{"_id": "d1", "title": " House cats ", "text": "They sleep. House cats sleep most of the day."}]
    beir(corpus="\n".join(map(json.dumps, corpus)))
    data = load(tmp_path, make_queries=["titles"])
    assert data.documents == {"d1": "House cats  They sleep. House cats sleep most of the day."}
    assert data.queries == {"d1~titles": "House cats"}
    assert load(tmp_path, make_queries="sentences").queries == {"d1~sentences": "House cats sleep most of the day"}, (
        "the title alone would be the shorter and more salient sentence"
    )


def test_the_chosen_queries_are_a_part_of_all(beir, tmp_path):
    beir()
    every = load(tmp_path)
    few = load(tmp_path, queries=2, exclude_queries=["d2~sentences"])
    assert len(few.queries) == 2
    assert few.queries.items() < every.queries.items()
    assert "d2~sentences" not in few.queries


def test_the_depth_holds_for_made_queries_too(beir, tmp_path):
    beir()
    assert load(tmp_path, candidates="bm25:1").candidates["d2~sentences"] == ["d2"]
    assert {len(found) for found in load(tmp_path, depth=2).candidates.values()} <= {1, 2}


def test_another_kind_makes_other_data(beir, tmp_path):
    beir()
    assert load(tmp_path).fingerprint == load(tmp_path).fingerprint
    assert load(tmp_path).fingerprint != load(tmp_path, make_queries=["keywords"]).fingerprint


def test_api_docs(tmp_path, monkeypatch):
    monkeypatch.setattr(api_docs, "installed_versions", lambda: {"rich": "any"})  # one small package
    data = load(tmp_path, collection="api-docs", split="train", queries=5, candidates="bm25:8")
    assert len(data.queries) == 5
    assert all(query.rpartition("~")[0] in found for query, found in data.candidates.items())
    assert data.name == "api-docs/train, made queries"


WRONG = [
    ({"split": "test"}, "queries are made out of a whole collection: take 'pairs' and 'split' away"),
    ({"collection": None, "pairs": "p.tsv"}, "take 'pairs' and 'split' away"),
    ({"candidates": "runs/first.trec"}, "no run knows queries that are yet to be made: write bm25:DEPTH"),
    ({"candidates": ["bm25", "runs/first.trec"]}, "write bm25:DEPTH, not runs/first.trec"),
    ({"make_queries": []}, "at least 1 item"),
    ({"make_queries": ["titles", "titles"]}, "a kind stands twice"),
    ({"make_queries": {"kinds": ["titles"], "per_document": 0}}, "greater than 0"),
    ({"make_queries": {"kinds": ["titles"], "generator": "a/b"}}, "take one of them away"),
    ({"make_queries": {"generator": {"model": "a/b", "prompt": "no place"}}}, "write {document} once"),
    ({"make_queries": 7}, "valid dictionary"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_wrong_references(fields, message):
    with pytest.raises(ValidationError) as error:
        DataReference.model_validate({"collection": "pets", "make_queries": True, **fields})
    assert message in str(error.value)


def test_a_split_written_into_the_collection_is_refused(beir, tmp_path):
    beir()
    with pytest.raises(InputError, match=r"pets/test, made queries: found no collection at "):
        check_reference(DataReference.model_validate({"collection": "pets/test", "make_queries": True}), tmp_path)


def test_a_collection_that_yields_none_is_refused(beir, tmp_path):
    beir()
    with pytest.raises(InputError) as error:
        load(tmp_path, make_queries=["titles", "headings"])
    found = "make_queries: found no titles, headings in 4 documents; name other kinds: sentences and keywords are found"
    assert found in str(error.value)


def test_an_unknown_kind_is_refused_with_the_nearest():
    recipe = {"teacher": "packaged", "data": {"in_domain": {"collection": "pets", "make_queries": ["title"]}}}
    with pytest.raises(InputError, match=r"make_queries\.0: found 'title'; allowed: .*; did you mean 'titles'\?"):
        parse_recipe(recipe, {}, "r.yaml")


@pytest.mark.parametrize(
    ("short", "kinds"),
    [
        (True, KINDS),
        ("titles", ("titles",)),
        (["titles", "keywords"], ("titles", "keywords")),
        ({"kinds": ["titles"]}, ("titles",)),
        ({}, KINDS),
        ({"generator": "organization/model"}, None),
    ],
)
def test_every_form_survives_the_way_into_a_recipe_and_back(short, kinds):
    recipe = parse_recipe(
        {"teacher": "packaged", "data": {"in_domain": {"collection": "pets", "make_queries": short}}}, {}, "r.yaml"
    )
    made = recipe.data.in_domain[0].make_queries
    assert made is not None
    assert made.kinds == kinds
    again = parse_recipe(recipe.dump(), {}, "again")
    assert again == recipe
    assert MadeQueries.model_validate(made.model_dump(mode="json")) == made


def test_false_makes_none(beir, tmp_path):
    beir()
    reference = DataReference.model_validate({"collection": "pets", "split": "test", "make_queries": False})
    assert reference == DataReference.model_validate("pets/test").resolved(tmp_path).changed(collection="pets")
