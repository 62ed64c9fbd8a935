"""The store of teacher scores: what is stored comes back, nothing is scored twice, and a kill costs one chunk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.data.ranking_data import Pair
from compressor.data.teacher_scores import FILE, RECORD, ScoreStore, pair_keys
from compressor.errors import RunError
from compressor.storage import sole_writer

PAIRS = [(f"query {i // 7}", f"document {i}") for i in range(60)]


class Teacher:
    """Scores a pair by its texts and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[Pair]] = []

    def __call__(self, pairs, advance):
        self.asked.append(list(pairs))
        advance(len(pairs))
        return score_of(pairs)


def score_of(pairs) -> np.ndarray:
    return np.array([int(document.split()[-1]) + len(query) / 8 for query, document in pairs], dtype=np.float32)


def test_stored_scores_come_back_and_are_not_asked_for_again(tmp_path):
    store, teacher = ScoreStore(tmp_path), Teacher()
    assert np.isnan(store.get(PAIRS)).all()
    assert store.fill(PAIRS[:10], teacher, chunk=4) == 10
    assert [len(chunk) for chunk in teacher.asked] == [4, 4, 2]
    assert store.fill(PAIRS[:20], teacher, chunk=50) == 10
    assert teacher.asked[-1] == PAIRS[10:20]
    assert store.fill(PAIRS[5:15], teacher) == 0
    assert len(teacher.asked) == 4
    for one in (store, ScoreStore(tmp_path)):
        assert len(one) == 20
        found = one.get(PAIRS)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[:20], score_of(PAIRS[:20]))
        assert np.isnan(found[20:]).all()


def test_equal_pairs_are_scored_once(tmp_path):
    store, teacher = ScoreStore(tmp_path), Teacher()
    repeated = [PAIRS[3], PAIRS[1], PAIRS[3], PAIRS[3], PAIRS[1], PAIRS[2]]
    assert store.fill(repeated, teacher) == 3
    assert teacher.asked == [[PAIRS[3], PAIRS[1], PAIRS[2]]]
    np.testing.assert_array_equal(store.get(repeated), score_of(repeated))


def test_where_the_query_ends_counts(tmp_path):
    store = ScoreStore(tmp_path)
    store.fill([("ab", "c 1")], Teacher())
    assert np.isnan(store.get([("a", "bc 1"), ("abc 1", ""), ("", "abc 1")])).all()
    lone = [("\ud800", "half a character 2"), ("", "1")]
    store.fill(lone, Teacher())
    np.testing.assert_array_equal(store.get(lone), score_of(lone))


def test_teachers_do_not_mix_and_runs_share(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKPRESS_CACHE", str(tmp_path / "cache"))
    ScoreStore.open("a" * 64, "one").fill(PAIRS[:3], Teacher())
    assert len(ScoreStore.open("b" * 64)) == 0
    assert len(ScoreStore.open("a" * 64)) == 3
    assert {path.name for path in (tmp_path / "cache" / "teacher-scores").iterdir()} == {"a" * 64, "b" * 64}


texts = st.text(max_size=3)
many_pairs = st.lists(st.tuples(texts, texts), max_size=12)


@settings(max_examples=60, deadline=None)
@given(fills=st.lists(st.tuples(many_pairs, st.integers(1, 5), st.booleans()), max_size=6), asked=many_pairs)
def test_a_store_is_a_dictionary(tmp_path_factory, fills, asked):
    folder = tmp_path_factory.mktemp("store")
    store, known = ScoreStore(folder), dict[Pair, float]()
    drawn = np.random.default_rng(0)
    for pairs, chunk, reopens in fills:
        store = ScoreStore(folder) if reopens else store

        def score(some, advance):
            assert not set(some) & known.keys()
            assert len(set(some)) == len(some)
            scores = drawn.standard_normal(len(some)).astype(np.float32)
            known.update(zip(some, scores.tolist(), strict=True))
            return scores

        store.fill(pairs, score, chunk=chunk)
    everything = [*known, *asked]
    expected = [known.get(pair, np.nan) for pair in everything]
    np.testing.assert_array_equal(store.get(everything), np.array(expected, dtype=np.float32))
    assert len(store) == len(known)


@pytest.mark.parametrize("cut", [*range(1, RECORD.itemsize + 2), 3 * RECORD.itemsize + 5, 60 * RECORD.itemsize])
def test_a_broken_tail_is_scored_again(tmp_path, cut):
    ScoreStore(tmp_path).fill(PAIRS, Teacher())
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-cut])
    store, teacher = ScoreStore(tmp_path), Teacher()
    n_lost = -(-cut // RECORD.itemsize)
    np.testing.assert_array_equal(np.isnan(store.get(PAIRS)), [False] * (60 - n_lost) + [True] * n_lost)
    assert store.fill(PAIRS, teacher) == n_lost
    assert teacher.asked == [PAIRS[60 - n_lost :]]
    assert (tmp_path / FILE).read_bytes() == whole


@pytest.mark.parametrize("content", [bytes(RECORD.itemsize * 3), bytes(range(RECORD.itemsize)), b"\xff" * 48])
def test_records_that_are_none_count_as_missing(tmp_path, content):
    ScoreStore(tmp_path).fill(PAIRS[:5], Teacher())
    with (tmp_path / FILE).open("ab") as stream:
        stream.write(content)
    store = ScoreStore(tmp_path)
    assert len(store) == 5
    assert store.fill(PAIRS, Teacher()) == 55
    np.testing.assert_array_equal(ScoreStore(tmp_path).get(PAIRS), score_of(PAIRS))


def test_a_flipped_bit_in_the_middle_loses_one_score(tmp_path):
    ScoreStore(tmp_path).fill(PAIRS, Teacher())
    content = bytearray((tmp_path / FILE).read_bytes())
    for place in range(RECORD.itemsize):
        broken = content.copy()
        broken[30 * RECORD.itemsize + place] ^= 4
        (tmp_path / FILE).write_bytes(broken)
        found = ScoreStore(tmp_path).get(PAIRS)
        assert np.flatnonzero(np.isnan(found)).tolist() == [30]


FILLER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.data.test_teacher_scores import PAIRS, score_of
from compressor.data.teacher_scores import FILE, ScoreStore
folder, dies_at = Path(sys.argv[1]), int(sys.argv[2])

def score(pairs, advance):
    size = (folder / FILE).stat().st_size
    if size >= dies_at:
        print("ready", flush=True)
        time.sleep(60)
    return score_of(pairs)

ScoreStore(folder).fill(PAIRS, score, chunk=8)
"""


@pytest.mark.parametrize("dies_at", [0, 8 * RECORD.itemsize, 40 * RECORD.itemsize])
@pytest.mark.parametrize("tail", [0, 1, RECORD.itemsize - 1])
def test_a_killed_fill_goes_on_where_it_was(tmp_path, repository, dies_at, tail):
    command = [sys.executable, "-c", FILLER, str(tmp_path / "killed"), str(dies_at), str(repository)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    path = tmp_path / "killed" / FILE
    assert path.stat().st_size == dies_at
    with path.open("ab") as stream:  # what a write that the kill broke off would leave
        stream.write(b"\x01" * tail)
    store, teacher = ScoreStore(tmp_path / "killed"), Teacher()
    assert store.fill(PAIRS, teacher, chunk=8) == 60 - dies_at // RECORD.itemsize
    unbroken = ScoreStore(tmp_path / "unbroken")
    unbroken.fill(PAIRS, Teacher(), chunk=8)
    assert path.read_bytes() == (tmp_path / "unbroken" / FILE).read_bytes()
    np.testing.assert_array_equal(store.get(PAIRS), unbroken.get(PAIRS))


def test_a_second_run_waits_and_scores_only_what_is_left(tmp_path):
    said: list[str] = []
    teacher = Teacher()
    second = threading.Thread(target=lambda: ScoreStore(tmp_path, "T").fill(PAIRS, teacher, say=said.append))
    with sole_writer(tmp_path):
        second.start()
        wait_for(lambda: bool(said))
        assert said == ["waiting: another run is scoring with T"]
        assert not teacher.asked
        copy_of_fill(tmp_path, PAIRS[:50])
    second.join(timeout=20)
    assert teacher.asked == [PAIRS[50:]]
    assert said[1:] == ["T: 50 of 60 pairs are scored already"]


def test_a_second_run_leaves_as_soon_as_nothing_is_missing(tmp_path):
    said: list[str] = []
    teacher = Teacher()
    second = threading.Thread(target=lambda: ScoreStore(tmp_path, "T").fill(PAIRS[:9], teacher, say=said.append))
    with sole_writer(tmp_path):
        second.start()
        wait_for(lambda: bool(said))
        copy_of_fill(tmp_path, PAIRS)
        second.join(timeout=20)
        assert not second.is_alive(), "it waits for the folder, though all its scores are there"
    assert not teacher.asked


def test_a_reader_sees_what_a_writer_has_stored_so_far(tmp_path):
    reader, seen = ScoreStore(tmp_path), list[int]()

    def score(pairs, advance):
        seen.append(int((~np.isnan(reader.get(PAIRS))).sum()))
        return score_of(pairs)

    ScoreStore(tmp_path).fill(PAIRS, score, chunk=20)
    assert seen == [0, 20, 40]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.array([1.0, np.nan, np.inf]), "T gave NaN or infinite scores for 2 pairs"),
        (np.ones((3, 1)), r"T gave scores of shape \[3, 1\] for 3 pairs"),
    ],
)
def test_scores_that_are_none_are_refused(tmp_path, scores, message):
    store = ScoreStore(tmp_path, "T")
    with pytest.raises(RunError, match=message):
        store.fill(PAIRS[:3], lambda pairs, advance: scores)
    assert len(store) == 0


def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    store = ScoreStore(tmp_path)
    store.fill(PAIRS[:5], Teacher())
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"scores-1\.bin: the scores cannot be written \(No space left"):
            store.fill(PAIRS, Teacher())
    np.testing.assert_array_equal(store.get(PAIRS[:5]), score_of(PAIRS[:5]))


def test_keys_that_share_their_first_half_are_told_apart(tmp_path, monkeypatch):
    def halved(query: str, document: str) -> bytes:
        return bytes(8) + int(document.split()[-1]).to_bytes(8, "little")

    monkeypatch.setattr("compressor.data.teacher_scores.pair_hash", halved)
    store = ScoreStore(tmp_path)
    store.fill(PAIRS[:40], Teacher())
    np.testing.assert_array_equal(store.get(PAIRS[39::-1]), score_of(PAIRS[39::-1]))
    assert np.isnan(store.get(PAIRS[40:])).all()


@pytest.mark.slow
def test_a_million_pairs_are_found_in_no_time(tmp_path):
    n_pairs = 1_000_000
    pairs = [("a query", str(i)) for i in range(n_pairs)]
    keys = pair_keys(pairs)
    assert len(np.unique(keys)) == n_pairs
    ScoreStore(tmp_path).fill(pairs, lambda some, advance: np.arange(len(some)), chunk=n_pairs)
    store = ScoreStore(tmp_path)
    start = time.monotonic()
    found = store.get(pairs)
    opened_s = time.monotonic() - start
    start = time.monotonic()
    for first in range(0, 100_000, 100):
        store.get(pairs[first : first + 100])
    assert (found == np.arange(n_pairs, dtype=np.float32)).all()
    assert opened_s < 20, "about 1 s on one core"
    assert time.monotonic() - start < 10, "a thousand batches of training; about 0.2 s on one core"


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def copy_of_fill(folder: Path, pairs: list[Pair]) -> None:
    """Append records as the process that holds the folder would."""
    other = folder.parent / f"{folder.name}-other"
    ScoreStore(other).fill(pairs, Teacher())
    (folder / FILE).write_bytes((other / FILE).read_bytes())
