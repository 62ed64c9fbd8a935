"""Large rankers teach: their scores are stored like others', also where a score belongs to a list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from compressor.errors import InputError
from compressor.families.large_ranker import PairScorer
from compressor.families.large_teacher import open_large
from compressor.passes.contract import PlanError
from compressor.passes.distill import Distill
from compressor.recipe_faults import faults_of
from compressor.records import Record
from compressor.training.labelling import teacher_scores
from compressor.training.teachers import LargeTeacher, RankerTeacher, Teacher
from tests import tiny
from tests.families.large_rankers import build_qwen3, build_t5

FIRST = {"scoring": "first_token", "window": 4, "stride": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RANKPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return build_t5(tmp_path_factory.mktemp("teacher") / "t5")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return build_qwen3(tmp_path_factory.mktemp("teacher") / "decoder")


@pytest.fixture
def never(monkeypatch):
    """Make every further loading an error."""

    def fail(*arguments):
        raise AssertionError("nothing is left to score")

    return lambda: monkeypatch.setattr("compressor.families.large_teacher.LargeTeacher.open", fail)


def large(folder, **changes) -> LargeTeacher:
    return LargeTeacher.model_validate({"large": str(folder), **changes})


def test_labels_are_the_ranker_s_scores_and_are_asked_once(t5, tiny_data, never):
    pairs = tiny_data.pairs()
    first = teacher_scores([large(t5)], tiny_data, pairs[:20])
    assert first.notes[0]["scored"] == 20
    assert first.offsets_known
    scorer = open_large(large(t5)).open()
    assert isinstance(scorer, PairScorer)
    expected = scorer.score(tiny_data.texts(pairs), lambda n: None)
    said = list[str]()
    longer = teacher_scores([large(t5)], tiny_data, pairs, say=said.append)
    assert said == ["t5: 20 of 48 pairs are scored already"]
    assert longer.notes[0]["scored"] == 28
    np.testing.assert_allclose(longer.values, expected, atol=2e-5)
    never()
    again = teacher_scores([large(t5, batch_tokens=99, weight=3)], tiny_data, pairs[::-1])
    np.testing.assert_array_equal(again.values[::-1], longer.values)
    with pytest.raises(AssertionError, match="nothing is left"):
        teacher_scores([large(t5, max_length=60)], tiny_data, pairs)


def test_a_large_ranker_and_a_small_one_teach_together(t5, tiny_ranker, tiny_data):
    pairs = tiny_data.pairs()
    alone = [
        teacher_scores([one], tiny_data, pairs, own=lambda: tiny_ranker).values for one in (RankerTeacher(), large(t5))
    ]
    both = teacher_scores([RankerTeacher(), large(t5, weight=3)], tiny_data, pairs, own=lambda: tiny_ranker)
    np.testing.assert_allclose(both.values, alone[0] / 4 + alone[1] * 3 / 4, rtol=1e-5, atol=1e-6)


def test_lists_are_ranked_whole_and_stored_by_their_documents(decoder, tiny_data, never, monkeypatch):
    monkeypatch.setattr("compressor.training.large_labels.CHUNK_PAIRS", 5)  # lists of 8 lie in two or three chunks
    pairs = tiny_data.pairs()
    found = teacher_scores([large(decoder, **FIRST)], tiny_data, pairs)
    assert not found.offsets_known
    direct = open_large(large(decoder, **FIRST)).open()
    for query, candidates in tiny_data.candidates.items():
        own = found.of([(query, document) for document in candidates])
        np.testing.assert_allclose(np.sort(own)[::-1], -np.log(np.arange(1, 9)), rtol=1e-6)
        texts = [tiny_data.documents[document] for document in candidates]
        np.testing.assert_allclose(direct.score_lists([(tiny_data.queries[query], texts)])[0], own, rtol=1e-6)  # type: ignore[union-attr]
    some = [pair for number, pair in enumerate(pairs) if number % 8 < 3]
    shorter = teacher_scores([large(decoder, **FIRST)], tiny_data, some)
    assert shorter.notes[0]["scored"] == len(some), "another list, other scores"
    assert set(np.round(np.exp(-shorter.values), 3)) == {1.0, 2.0, 3.0}
    never()
    again = teacher_scores([large(decoder, **FIRST)], tiny_data, pairs[::-1])
    np.testing.assert_array_equal(again.values[::-1], found.values)


def test_a_killed_list_goes_on_with_equal_scores(decoder, tiny_data, monkeypatch):
    pairs, teacher = tiny_data.pairs(), large(decoder, **FIRST)
    monkeypatch.setattr("compressor.training.large_labels.CHUNK_PAIRS", 5)
    told = list[int]()

    def killed(self, keys, scores, original):
        if len(told) == 1:
            raise KeyboardInterrupt
        told.append(len(scores))
        return original

    from compressor.data.teacher_scores import ScoreStore

    check = ScoreStore._check
    monkeypatch.setattr(ScoreStore, "_check", lambda self, scores, n: killed(self, n, scores, check(self, scores, n)))
    with pytest.raises(KeyboardInterrupt):
        teacher_scores([teacher], tiny_data, pairs)
    monkeypatch.setattr(ScoreStore, "_check", check)
    found = teacher_scores([teacher], tiny_data, pairs)
    assert found.notes[0]["scored"] == len(pairs) - 5
    own = found.of([("q1", document) for document in tiny_data.candidates["q1"]])
    np.testing.assert_allclose(np.sort(own)[::-1], -np.log(np.arange(1, 9)), rtol=1e-6)


def test_large_teachers_are_written_as_mappings(t5, tmp_path):
    adapter = TypeAdapter[tuple[Teacher, ...]](tuple[Teacher, ...])
    value = [{"large": "models/t5", "precision": "int4", "weight": 2}, {"ranker": "packaged"}]
    found = adapter.validate_python(value)
    assert found[0] == LargeTeacher(large="models/t5", precision="int4", weight=2)
    assert adapter.validate_python(adapter.dump_python(found, mode="json")) == found
    (tmp_path / "models").symlink_to(t5.parent)
    placed = found[0].placed(tmp_path)
    assert placed.large == str(t5)
    assert found[0].name == "t5 (int4)"
    assert large(t5).fingerprints() == large(t5, weight=2).fingerprints()
    with pytest.raises(InputError, match="large ranker: found 'nowhere', no folder and no hub id"):
        LargeTeacher(large="nowhere").fingerprints()


def test_faults_of_a_large_teacher_are_said_of_it_alone():
    class Settings(Record):
        teachers: tuple[Teacher, ...] = ()

    value = {"teachers": [{"large": "a", "precison": "int4"}]}
    with pytest.raises(ValidationError) as error:
        Settings.model_validate(value)
    (fault,) = faults_of(error.value, value, Settings, "r.yaml")
    assert str(fault).startswith("r.yaml: teachers.0.precison: found the unknown key 'precison'; allowed: ")
    assert "did you mean 'precision'?" in str(fault)


def test_distill_refuses_ranks_where_scores_are_learned_as_they_are():
    teachers = [{"large": "org/model", "scoring": "first_token"}]
    with pytest.raises(PlanError, match="mse, which learns scores as they are, and a teacher of ranks within lists"):
        Distill.model_validate({"teachers": teachers}).plan(tiny.tiny_spec())
    relative = Distill.model_validate({"teachers": teachers, "losses": {"listwise_kl": 1}})
    assert relative.plan(tiny.tiny_spec()) == tiny.tiny_spec()
