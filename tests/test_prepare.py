"""The desk: each collection once, and made queries never in both training and test data."""

from __future__ import annotations

import json

import pytest

from compressor.errors import InputError
from compressor.prepare import Desk
from compressor.recipe import parse_recipe


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKPRESS_CACHE", str(tmp_path / "cache"))
    texts = {"d1": "Cats sleep most of the day.", "d2": "Dogs bark at night.", "d3": "Birds sing in the morning."}
    folder = tmp_path / "pets"
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "dogs bark at night?"}\n')
    (folder / "qrels" / "test.tsv").write_text("q1 0 d2 1\n")


def desk(tmp_path, **data):
    return Desk(parse_recipe({"teacher": "packaged", "data": data}, {}, "r.yaml"), tmp_path)


def test_only_a_recipe_with_the_same_data_is_served(tmp_path):
    def recipe(**changes):
        return parse_recipe({"teacher": "packaged", "data": {"test": "pets/test"}, **changes}, {}, "r.yaml")

    own = desk(tmp_path, test="pets/test")
    assert own.serves(recipe(seed=3), tmp_path)
    assert not own.serves(recipe(), tmp_path.parent)
    assert not own.serves(recipe(bench={"candidates": 7}), tmp_path)
    assert not own.serves(recipe(data={"test": "pets/dev"}), tmp_path)


MADE = {"collection": "pets", "make_queries": ["sentences"]}


def test_made_queries_of_the_test_data_are_left_out_and_it_is_said_once(tmp_path, capsys):
    made = desk(tmp_path, in_domain=MADE, calibration=MADE, test="pets/test")
    for data in (made.load("in_domain"), made.load("calibration"), *made.seen.values()):
        assert list(data.queries) == ["d1~sentences", "d3~sentences"]
    assert [data.name for data in made.tests] == ["pets/test"]
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert said == ["pets, made queries: 1 of 3 left out, as they stand in the test data"]


def test_queries_that_a_person_named_are_still_refused(tmp_path):
    with pytest.raises(InputError, match="add 'exclude_queries: "):
        _ = desk(tmp_path, train="pets/test", test="pets/test").tests


def test_nothing_is_left_out_without_test_data(tmp_path, capsys):
    assert len(desk(tmp_path, in_domain=MADE).load("in_domain").queries) == 3
    assert "left out" not in capsys.readouterr().err


def test_no_query_left_is_refused(tmp_path):
    with pytest.raises(InputError, match="pets, made queries: found no query that does not also stand in the test"):
        desk(tmp_path, in_domain=MADE, test=MADE).load("in_domain")
