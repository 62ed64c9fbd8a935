"""Embeddings are made once, chunk by chunk; what a kill or a power cut breaks is made again, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from compressor.data.embeddings import embeddings
from compressor.errors import RunError
from compressor.storage import sole_writer

TEXTS = [f"text number {n}" for n in range(10)]


class Encoder:
    """Embeds a text by its length and number; remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts, advance):
        self.asked += texts
        advance(len(texts))
        return np.array([[len(text), TEXTS.index(text), 1] for text in texts], dtype=np.float64)


def made(encoder, texts=TEXTS, name="a", chunk=4):
    return embeddings(texts, encoder, encoder=name, name="it", chunk=chunk)


def test_chunks_hold_all_texts_in_order_and_are_made_once(cache):
    encoder = Encoder()
    first = made(encoder)
    assert [len(chunk) for chunk in first] == [4, 4, 2]
    assert {chunk.dtype for chunk in first} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(np.concatenate(first)[:, 1], range(10))
    again = made(lambda *_: pytest.fail("embedded again"))
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(first))
    assert encoder.asked == TEXTS
    assert len(list((cache / "embeddings").iterdir())) == 1


@pytest.mark.parametrize("changes", [{"name": "b"}, {"texts": TEXTS[::-1]}, {"texts": TEXTS[:9]}, {"chunk": 5}])
def test_other_texts_or_encoders_have_their_own(changes):
    made(Encoder())
    other = Encoder()
    made(other, **changes)
    assert sorted(other.asked) == sorted(changes.get("texts", TEXTS))


def test_what_an_interrupted_run_has_finished_is_not_made_again():
    def interrupted(texts, advance):
        if "text number 8" in texts:
            raise KeyboardInterrupt
        return Encoder()(texts, advance)

    with pytest.raises(KeyboardInterrupt):
        made(interrupted)
    rest = Encoder()
    made(rest)
    assert rest.asked == TEXTS[8:]


KILLED = """
import os, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from compressor.data import embeddings as module
fsync, count = os.fsync, 0

def counted(handle):
    global count
    fsync(handle)
    count += 1
    if count == 2:
        os.kill(os.getpid(), 9)  # the second chunk is on disk, and has no name yet

os.fsync = counted
texts = [f"text number {n}" for n in range(10)]
module.embeddings(texts, lambda some, advance: np.ones((len(some), 3)), encoder="a", name="it", chunk=4)
"""


def test_a_killed_run_leaves_whole_chunks(repository, cache):
    result = subprocess.run([sys.executable, "-c", KILLED, str(repository)], check=False, capture_output=True)
    assert result.returncode == -signal.SIGKILL
    (folder,) = (cache / "embeddings").iterdir()
    assert len(list(folder.glob(".chunk*"))) == 1
    rest = Encoder()
    found = made(rest)
    assert rest.asked == TEXTS[4:]
    assert [len(chunk) for chunk in found] == [4, 4, 2]
    assert not list(folder.glob(".*"))


def test_a_broken_chunk_is_made_again(cache):
    made(Encoder())
    (path,) = (cache / "embeddings").rglob("chunk-00001.npy")
    for content in (b"", path.read_bytes()[:-5], b"\0" * path.stat().st_size):
        path.write_bytes(content)
        rest = Encoder()
        found = made(rest)
        assert rest.asked == TEXTS[4:8]
        np.testing.assert_array_equal(found[1][:, 1], range(4, 8))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.full((4, 3), np.nan), "Embedding texts with it: NaN or infinite numbers for 4 texts"),
        (np.ones((3, 3)), r"shape \[3, 3\] for 4 texts"),
        (np.ones(4), r"shape \[4\] for 4 texts"),
    ],
)
def test_broken_vectors_are_not_stored(cache, result, message):
    with pytest.raises(RunError, match=message):
        made(lambda texts, advance: result)
    assert not list((cache / "embeddings").rglob("*.npy"))


def test_two_processes_make_them_once(cache):
    made(Encoder())
    (folder,) = (cache / "embeddings").iterdir()
    (folder / "chunk-00002.npy").unlink()
    other = Encoder()
    with sole_writer(folder):
        waiting = threading.Thread(target=made, args=(other,))
        waiting.start()
        waiting.join(timeout=0.3)
        assert waiting.is_alive()
        assert not other.asked
    waiting.join(timeout=20)
    assert other.asked == TEXTS[8:]
