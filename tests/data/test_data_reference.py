"""The forms of a reference, and the sentences for wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from compressor.data_reference import DataReference
from compressor.errors import InputError

WRONG = [
    ({}, "exactly one of 'collection'"),
    ({"collection": "a", "pairs": "b"}, "exactly one of 'collection'"),
    ({"pairs": "b.tsv", "split": "test"}, "take 'split' and 'candidates' away"),
    ({"pairs": "b.tsv", "candidates": "bm25:10"}, "take 'split' and 'candidates' away"),
    ({"collection": "ir_datasets:beir/scifact", "split": "test"}, "write ir_datasets:beir/scifact/test"),
    ({"collection": "a", "candidates": "bm25:many"}, "write bm25, bm25:DEPTH with a whole number from 1"),
    ({"collection": "a", "candidates": "bm25:0"}, "write bm25, bm25:DEPTH"),
    ({"collection": "a", "candidates": "scoreddocs"}, "'scoreddocs' is for ir_datasets"),
    ({"collection": "a", "candidates": ["bm25", "scoreddocs"]}, "'scoreddocs' is for ir_datasets"),
    ({"collection": "a", "candidates": []}, "at least 1 item"),
    ({"collection": "a", "candidates": ["bm25", ""]}, "at least 1 character"),
    ({"collection": "a", "candidates": ["bm25", "bm25:ten"]}, "or a TREC run file, not bm25:ten"),
    ({"collection": "a", "candidates": ["bm25", "bm25:10"]}, "two first stages are called bm25"),
    ({"collection": "a", "candidates": ["x/run.trec", "y/run.trec"]}, "two first stages are called run.trec"),
    ({"collection": "a", "candidates": ["bm25", "runs/random"]}, "no run can be called random"),
    ({"collection": "a", "queries": 0}, "greater than or equal to 1"),
    ({"collection": "a", "splt": "test"}, "splt"),
    ({"collection": ""}, "at least 1 character"),
    (7, "valid dictionary"),
]


def resolved(value: object, base: Path) -> DataReference:
    return DataReference.model_validate(value).resolved(base)


def test_the_built_in_collection(tmp_path):
    reference = resolved("api-docs/test", tmp_path)
    assert (reference.collection, reference.split, str(reference)) == ("api-docs", "test", "api-docs/test")


def test_a_folder_with_and_without_split(beir, tmp_path):
    folder = str(beir())
    both = resolved("pets/test", tmp_path), resolved({"collection": folder, "split": "test"}, Path("/"))
    assert both[0] == both[1]
    assert (both[0].collection, both[0].split) == (folder, "test")
    assert resolved("./pets", tmp_path).split is None


def test_resolving_twice_changes_nothing(beir, tmp_path):
    beir(run="q1 d1\n")
    for value in (
        "pets/test",
        {"collection": "pets", "split": "test", "candidates": "runs/first.trec"},
        {"collection": "pets", "split": "test", "candidates": ["bm25:7", "runs/first.trec"]},
        "api-docs/dev",
    ):
        once = resolved(value, tmp_path)
        assert once.resolved(Path("/")) == once
        assert DataReference.model_validate(once.model_dump(mode="json")) == once


def test_a_run_is_looked_for_beside_the_recipe_and_then_in_the_collection(beir, tmp_path):
    folder = beir(run="q1 d1\n")
    reference = {"collection": "pets", "split": "test", "candidates": "runs/first.trec"}
    assert resolved(reference, tmp_path).candidates == (str(folder / "runs" / "first.trec"),)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first.trec").write_text("q1 d2\n", encoding="utf-8")
    assert resolved(reference, tmp_path).candidates == (str(tmp_path / "runs" / "first.trec"),)


def test_several_first_stages_have_names(beir, tmp_path):
    beir(run="q1 d1\n")
    several = resolved({"collection": "pets", "candidates": ["bm25:7", "runs/first.trec"]}, tmp_path)
    assert [(stage.name, stage.depth) for stage in several.first_stages] == [("bm25", 7), ("first.trec", None)]
    one, listed = (resolved({"collection": "pets", "candidates": value}, tmp_path) for value in ("bm25", ["bm25"]))
    assert one == listed


def test_an_ir_datasets_id_keeps_its_slashes(tmp_path):
    reference = resolved("ir_datasets:beir/scifact/test", tmp_path)
    assert reference.ir_datasets_id == "beir/scifact/test"
    assert reference.split is None


@pytest.mark.parametrize(("value", "message"), WRONG, ids=[wrong[1][:30] for wrong in WRONG])
def test_wrong_forms(value, message):
    with pytest.raises(ValidationError) as error:
        DataReference.model_validate(value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("api-docs", "api-docs: found no split; allowed: train, dev, test; write api-docs/test"),
        ("api-docs/tets", "found the split 'tets'; allowed: train, dev, test; did you mean 'test'?"),
        ("api-doc/test", "; did you mean 'api-docs'?"),
        ("pest/test", "pest/test: found no collection at "),
        ("pest/test", "allowed: api-docs/SPLIT, a BEIR folder, a BEIR folder/SPLIT, or ir_datasets:ID; did you mean"),
        ("empty", "found a folder without corpus.jsonl"),
        ({"pairs": "pairs.tsv"}, "found no file at "),
        (
            {"collection": "pets", "candidates": "bm52"},
            "allowed: bm25, bm25:DEPTH or a TREC run file; did you mean 'bm25'?",
        ),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest_that_is(beir, tmp_path, value, message):
    beir()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as error:
        resolved(value, tmp_path)
    assert message in str(error.value)
