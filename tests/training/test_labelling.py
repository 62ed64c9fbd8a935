"""Teachers label pairs: exactly, once, after a kill from where they were, alone and as an ensemble."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from compressor.data import RankingData
from compressor.data.teacher_scores import FILE, RECORD
from compressor.errors import InputError
from compressor.ranker.rounding import round_spec
from compressor.ranker.spec import Int8Dynamic, SimilarityHead
from compressor.ranker.store import save_ranker
from compressor.storage import sole_writer
from compressor.training import scorers
from compressor.training.labelling import teacher_scores
from compressor.training.teachers import FileTeacher, RankerTeacher
from tests import tiny

TOLERANCE = 5e-6  # fp32 sums in another order; found are 4e-7 here, and 4.8e-6 on the packaged teacher's real logits


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RANKPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def never(monkeypatch):
    """Make every further scoring an error."""

    def fail(*arguments):
        raise AssertionError("nothing is left to score")

    return lambda: monkeypatch.setattr("compressor.training.labelling.open_scorer", fail)


def write_run(path: Path, scores, pairs) -> FileTeacher:
    path.write_text("".join(f"{q} Q0 {d} 1 {s} t\n" for (q, d), s in zip(pairs, scores, strict=True)))
    return FileTeacher(scores=str(path))


def write_margins(path: Path, scores, pairs) -> FileTeacher:
    known = dict(zip(pairs, scores, strict=True))
    first = {q: next(d for other, d in pairs if other == q) for q, _ in pairs}
    rows = [(q, first[q], d, known[q, first[q]] - known[q, d]) for q, d in pairs if d != first[q]]
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return FileTeacher(scores=str(path), format="margin_only")


def centered(values, pairs) -> np.ndarray:
    queries = np.array([query for query, _ in pairs])
    return np.array([v - values[queries == q].mean() for v, q in zip(values, queries, strict=True)])


def test_labels_are_the_torch_scores(tiny_ranker, tiny_data):
    pairs = tiny_data.pairs()
    found = teacher_scores([RankerTeacher()], tiny_data, pairs, own=lambda: tiny_ranker)
    expected = tiny_ranker.score(tiny_data.texts(pairs))
    assert expected.std() > 0.1
    np.testing.assert_allclose(found.values, expected, atol=TOLERANCE)
    assert found.values.dtype == np.float32
    assert found.offsets_known
    assert found.n_missing == 0
    assert found.notes[0]["scored"] == len(pairs)
    assert found.notes[0]["scored_by"] == "exported graph, fp32"


def test_labels_do_not_depend_on_what_else_is_scored(tiny_ranker, tiny_data, cache):
    pairs = tiny_data.pairs()
    together = teacher_scores([RankerTeacher()], tiny_data, pairs, own=lambda: tiny_ranker)
    score, _ = scorers.open_scorer(tiny_ranker, "tiny")
    alone = [score([pair], lambda n: None)[0] for pair in tiny_data.texts(pairs[:12])]
    np.testing.assert_allclose(together.values[:12], alone, atol=TOLERANCE)


def test_a_second_run_asks_for_nothing_and_a_longer_one_for_the_rest(tiny_ranker, tiny_data, never, monkeypatch):
    pairs, said = tiny_data.pairs(), list[str]()
    first = teacher_scores([RankerTeacher()], tiny_data, pairs[:20], own=lambda: tiny_ranker)

    def export(*arguments):
        raise AssertionError("the graph is in the cache")

    monkeypatch.setattr("compressor.export.encoder.write_graph", export)
    longer = teacher_scores([RankerTeacher()], tiny_data, pairs, own=lambda: tiny_ranker, say=said.append)
    assert said == ["the teacher: 20 of 48 pairs are scored already"]
    assert longer.notes[0]["scored"] == 28
    np.testing.assert_array_equal(longer.values[:20], first.values)
    never()
    again = teacher_scores([RankerTeacher()], tiny_data, pairs[::-1], own=lambda: tiny_ranker)
    np.testing.assert_array_equal(again.values[::-1], longer.values)


def test_scores_are_looked_up_by_pair(tiny_ranker, tiny_data):
    pairs = tiny_data.pairs()[:10]
    found = teacher_scores([RankerTeacher()], tiny_data, pairs, own=lambda: tiny_ranker)
    some = [pairs[7], pairs[0], ("q6", "nowhere"), pairs[7]]
    np.testing.assert_array_equal(found.of(some), [*found.values[[7, 0]], np.nan, found.values[7]])
    assert found.of(some).dtype == np.float32
    assert found.of([]).shape == (0,)


LABELLER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from compressor.data import teacher_scores as module
from compressor.training.labelling import RankerTeacher, teacher_scores
from tests import tiny

module.ScoreStore.fill.__kwdefaults__["chunk"] = 8
fsync, count = os.fsync, 0

def counted(handle):
    global count
    fsync(handle)
    count += 1
    if count == 3:
        os.kill(os.getpid(), 9)

os.fsync = counted
data = tiny.build_data()
teacher_scores([RankerTeacher()], data, data.pairs(), own=tiny.build_ranker)
"""


def test_a_killed_labelling_goes_on(tiny_ranker, tiny_data, repository, cache):
    result = subprocess.run([sys.executable, "-c", LABELLER, str(repository)], check=False, capture_output=True)
    assert result.returncode == -signal.SIGKILL
    path = cache / "teacher-scores" / tiny_ranker.fingerprint / FILE
    assert path.stat().st_size == 24 * RECORD.itemsize
    pairs = tiny_data.pairs()
    found = teacher_scores([RankerTeacher()], tiny_data, pairs, own=lambda: tiny_ranker)
    assert found.notes[0]["scored"] == 24
    np.testing.assert_allclose(found.values, tiny_ranker.score(tiny_data.texts(pairs)), atol=TOLERANCE)


def test_a_ranker_can_be_named_by_its_folder(tiny_ranker, tiny_data, tmp_path):
    save_ranker(tiny_ranker, tmp_path / "teachers" / "big")
    teacher = RankerTeacher(ranker="teachers/big").placed(tmp_path)
    assert teacher.ranker == str(tmp_path / "teachers" / "big")
    pairs = tiny_data.pairs()[:9]
    own = teacher_scores([RankerTeacher()], tiny_data, pairs, own=lambda: tiny_ranker)
    found = teacher_scores([teacher], tiny_data, pairs)
    np.testing.assert_array_equal(found.values, own.values)
    assert "scored" not in found.notes[0], "the same ranker by another name is the same teacher"
    assert list(teacher.fingerprints()) == [teacher.ranker]


def test_a_quantized_teacher_is_refused(tiny_ranker, tiny_data, cache):
    rounded = tiny_ranker.changed(spec=round_spec(tiny_ranker.spec, Int8Dynamic(), None))
    with pytest.raises(InputError, match="found the teacher, a quantized ranker, whose scores depend on") as error:
        teacher_scores([RankerTeacher()], tiny_data, tiny_data.pairs(), own=lambda: rounded)
    assert "allowed: a ranker in fp32; name the folder under stages/" in str(error.value)


def test_the_graph_is_made_once_and_a_killed_export_leaves_nothing(tiny_ranker, cache):
    folder = scorers.graph_folder(tiny_ranker)
    assert (folder / "onnx" / "model.onnx").is_file()
    made = folder.stat().st_mtime_ns
    assert scorers.graph_folder(tiny_ranker) == folder
    assert folder.stat().st_mtime_ns == made
    left = folder.parent / ".graph.partial-a1"
    folder.rename(left)
    with sole_writer(folder.parent):
        left.mkdir()  # cleared by the line above; here it stands for what another process is writing
        waiting = threading.Thread(target=scorers.graph_folder, args=(tiny_ranker,))
        waiting.start()
        waiting.join(timeout=0.3)
        assert waiting.is_alive()
        assert left.is_dir()
    waiting.join(timeout=20)
    assert [path.name for path in folder.parent.iterdir()] == ["graph"]


def test_torch_labels_as_the_graph_does(tiny_ranker, tiny_data):
    pairs = tiny_data.texts(tiny_data.pairs())
    told = list[int]()
    scores = scorers.torch_scorer(tiny_ranker, "cpu")(pairs, told.append)
    np.testing.assert_allclose(scores, tiny_ranker.score(pairs), atol=TOLERANCE)
    assert sum(told) == len(pairs)


@pytest.mark.gpu
def test_torch_labels_on_a_gpu_as_the_graph_does(tiny_ranker, tiny_data):
    pairs = tiny_data.texts(tiny_data.pairs())
    score, how = scorers.open_scorer(tiny_ranker, "tiny")
    assert how.endswith("CUDA")
    np.testing.assert_allclose(score(pairs, lambda n: None), tiny_ranker.score(pairs), atol=1e-4)


def test_a_bi_encoder_labels_with_its_similarity(tiny_data):
    ranker = tiny.build_ranker(tiny.tiny_spec(head=SimilarityHead(pool="mean")))
    pairs = tiny_data.pairs()[:16]
    expected = ranker.score(tiny_data.texts(pairs))
    found = teacher_scores([RankerTeacher()], tiny_data, pairs, own=lambda: ranker)
    np.testing.assert_allclose(found.values, expected, atol=TOLERANCE)
    torch_scores = scorers.torch_scorer(ranker, "cpu")(tiny_data.texts(pairs), lambda n: None)
    np.testing.assert_allclose(torch_scores, expected, atol=TOLERANCE)


def test_an_ensemble_is_a_weighted_mean(tiny_ranker, tiny_data, tmp_path):
    pairs = tiny_data.pairs()
    others = np.random.default_rng(0).normal(3, 20, len(pairs)).round(3)
    run = write_run(tmp_path / "other.run", others, pairs).changed(weight=3)
    found = teacher_scores([RankerTeacher(weight=2), run], tiny_data, pairs, own=lambda: tiny_ranker)
    own = tiny_ranker.score(tiny_data.texts(pairs))
    np.testing.assert_allclose(found.values, (2 * own + 3 * others) / 5, atol=1e-5)
    assert found.offsets_known
    assert [note["teacher"] for note in found.notes] == ["self", str(tmp_path / "other.run")]
    assert found.notes[1]["format"] == "trec"


def test_standardizing_takes_scales_out(tiny_ranker, tiny_data, tmp_path):
    pairs = tiny_data.pairs()
    own = tiny_ranker.score(tiny_data.texts(pairs))
    same = write_run(tmp_path / "same.run", [f"{100 * score + 7:.6f}" for score in own], pairs)
    teachers = (RankerTeacher(), same)
    found = teacher_scores(teachers, tiny_data, pairs, own=lambda: tiny_ranker, standardize=True)
    np.testing.assert_allclose(found.values, own, atol=1e-5)
    plain = teacher_scores(teachers, tiny_data, pairs, own=lambda: tiny_ranker)
    assert np.abs(plain.values - own).max() > 1
    others = np.random.default_rng(0).normal(3, 20, len(pairs)).round(3)
    mixed = teacher_scores(
        [RankerTeacher(), write_run(tmp_path / "other.run", others, pairs)], tiny_data, pairs,
        own=lambda: tiny_ranker, standardize=True,
    )  # fmt: skip
    scaled = (others - others.mean()) / others.std() * own.std() + own.mean()
    np.testing.assert_allclose(mixed.values, (own + scaled) / 2, atol=1e-5)


def test_a_constant_teacher_cannot_be_standardized(tiny_ranker, tiny_data, tmp_path):
    pairs = tiny_data.pairs()
    flat = write_run(tmp_path / "flat.run", [1] * len(pairs), pairs)
    with pytest.raises(InputError, match=r"flat\.run: found equal scores of all pairs; take it away"):
        teacher_scores([RankerTeacher(), flat], tiny_data, pairs, own=lambda: tiny_ranker, standardize=True)


def test_one_teacher_without_offsets_leaves_only_differences(tiny_ranker, tiny_data, tmp_path):
    pairs = tiny_data.pairs()
    others = np.random.default_rng(0).normal(0, 5, len(pairs)).round(3)
    margins = write_margins(tmp_path / "margins.tsv", others, pairs)
    alone = teacher_scores([margins], tiny_data, pairs)
    assert not alone.offsets_known
    np.testing.assert_allclose(alone.values, centered(others, pairs), atol=1e-5)
    own = tiny_ranker.score(tiny_data.texts(pairs))
    both = teacher_scores([RankerTeacher(), margins], tiny_data, pairs, own=lambda: tiny_ranker)
    assert not both.offsets_known
    np.testing.assert_allclose(both.values, (centered(own, pairs) + centered(others, pairs)) / 2, atol=1e-5)


def test_what_one_file_lacks_is_missing_counted_and_said(tiny_ranker, tiny_data, tmp_path):
    pairs, said = tiny_data.pairs(), list[str]()
    run = write_run(tmp_path / "some.run", range(30), pairs[:30])
    alone = teacher_scores([run], tiny_data, pairs, say=said.append)
    assert said == ["some.run: 18 of 48 pairs have no score and are left out"]
    assert alone.n_missing == alone.notes[0]["missing"] == 18
    both = teacher_scores([RankerTeacher(), run], tiny_data, pairs, own=lambda: tiny_ranker)
    np.testing.assert_array_equal(np.isnan(both.values), [False] * 30 + [True] * 18)
    rest = write_run(tmp_path / "rest.run", range(18), pairs[30:])
    with pytest.raises(InputError, match=r"found no pair that all of some\.run, rest\.run have a score of"):
        teacher_scores([run, rest], tiny_data, pairs)


def test_no_teacher_and_no_recipe_are_refused(tiny_data):
    with pytest.raises(InputError, match="teachers: found none"):
        teacher_scores([], tiny_data, tiny_data.pairs())
    with pytest.raises(InputError, match="'self' where no recipe names a teacher"):
        teacher_scores([RankerTeacher()], tiny_data, tiny_data.pairs())


def test_equal_texts_of_two_collections_share_a_score(tiny_ranker, tiny_data, never):
    teacher_scores([RankerTeacher()], tiny_data, tiny_data.pairs(), own=lambda: tiny_ranker)
    never()
    renamed = RankingData(
        name="b", collection="b", first_stage="by hand", queries={"x": tiny.QUERIES["q2"]},
        documents={"y": tiny.DOCUMENTS["d3"]}, qrels={}, candidates={},
    )  # fmt: skip
    found = teacher_scores([RankerTeacher()], renamed, [("x", "y")], own=lambda: tiny_ranker)
    np.testing.assert_allclose(found.values, tiny_ranker.score([renamed.texts([("x", "y")])[0]]), atol=TOLERANCE)
