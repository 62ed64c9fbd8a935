"""Teachers as a recipe names them: mappings, places, hashes."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from compressor.errors import InputError
from compressor.recipe_faults import faults_of
from compressor.records import Record
from compressor.training.teachers import FileTeacher, RankerTeacher, Teacher


def test_teachers_are_written_as_mappings(tmp_path):
    adapter = TypeAdapter[tuple[Teacher, ...]](tuple[Teacher, ...])
    value = [{"ranker": "packaged", "weight": 2}, {"scores": "runs/a.tsv", "format": "margin_tsv"}, {}, "a/b"]
    found = adapter.validate_python(value)
    assert found == (
        RankerTeacher(ranker="packaged", weight=2),
        FileTeacher(scores="runs/a.tsv", format="margin_tsv"),
        RankerTeacher(),
        RankerTeacher(ranker="a/b"),
    )
    assert adapter.validate_python(adapter.dump_python(found, mode="json")) == found
    for wrong in ({"scores": "a", "ranker": "b"}, {"scores": "a", "format": "csv"}, {"ranker": "a", "weight": 0}):
        with pytest.raises(ValidationError):
            adapter.validate_python([wrong])


@pytest.mark.parametrize(
    ("teacher", "where", "found"),
    [
        ({"scores": "a.tsv", "weigth": 2}, "weigth", "found the unknown key 'weigth'; allowed: "),
        ({"scores": "a.tsv", "format": "csv"}, "format", "found 'csv'; allowed: 'trec', 'margin_tsv', "),
        ({"format": "trec"}, "scores", "found nothing; allowed: a value: this key is required"),
        ({"ranker": "a", "wait": 1}, "wait", "found the unknown key 'wait'; allowed: "),
        ({"ranker": "a", "weight": -1}, "weight", "found -1; allowed: greater than 0"),
        ({"scores": "a", "ranker": "b"}, "ranker", "found the unknown key 'ranker'; allowed: format, weight"),
    ],
)
def test_faults_of_a_teacher_in_a_recipe(teacher, where, found):
    class Settings(Record):
        teachers: tuple[Teacher, ...] = ()

    value = {"teachers": [teacher]}
    with pytest.raises(ValidationError) as error:
        Settings.model_validate(value)
    (fault,) = faults_of(error.value, value, Settings, "r.yaml", ("passes", 0, "distill"))
    assert str(fault).startswith(f"r.yaml: passes.0.distill.teachers.0.{where}: {found}")


def test_placed_teachers_and_their_fingerprints(tmp_path):
    assert RankerTeacher(ranker="org/model").placed(tmp_path).ranker == "org/model"
    assert RankerTeacher().placed(tmp_path) == RankerTeacher()
    assert RankerTeacher().fingerprints() == {}
    assert RankerTeacher().offsets_known
    assert FileTeacher(scores="a.tsv").offsets_known is None
    assert FileTeacher(scores="a.tsv", format="margin_tsv").offsets_known is True
    assert FileTeacher(scores="a.tsv", format="margin_only").offsets_known is False
    placed = FileTeacher(scores="a.tsv").placed(tmp_path)
    assert placed.scores == str(tmp_path / "a.tsv")
    with pytest.raises(InputError, match=r"a\.tsv: found no such file; allowed: a file of teacher scores"):
        placed.fingerprints()
    (tmp_path / "a.tsv").write_text("1\t2\t3\n")
    before = dict(placed.fingerprints())
    (tmp_path / "a.tsv").write_text("1\t2\t4\n")
    assert list(before) == [placed.scores]
    assert before != placed.fingerprints()
