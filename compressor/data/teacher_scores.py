"""A teacher's scores on disk: computed once, kept for every pass and run, whatever happens while they are made.

A store is one file of equal records, appended to in chunks and read through a memory map. A record is the hash of
(query text, document text), the score and a check sum: a process that is killed leaves whole records and at most one
broken tail, which the next writer cuts off; a record that a power cut left as zeros does not pass its check and counts
as missing. Texts rather than ids are hashed, so that collections that share text share scores.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from compressor.data.cache import cache_folder
from compressor.data.ranking_data import Pair
from compressor.errors import RunError
from compressor.progress import progress
from compressor.storage import HeldError, sole_writer

Scorer = Callable[[Sequence[Pair], Callable[[int], object]], np.ndarray]

FILE = "scores-1.bin"  # the number is that of the record's layout
RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("score", "<f4"), ("check", "<u4")])
# A kill costs at most one chunk (17 s of a 12-layer teacher on a slow core), and sorting by length wins nothing beyond.
CHUNK_PAIRS = 1024
_POLL_S = 0.5


@dataclass
class ScoreStore:
    """Scores of one teacher by pair of texts. One process writes at a time; any number may read meanwhile.

    Attributes:
        folder: where the file lies.
        name: the teacher's name, for progress.
    """

    folder: Path
    name: str = "the teacher"
    _index: _Index = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._index = _Index(np.empty(0, dtype=RECORD))

    @classmethod
    def open(cls, teacher: str, name: str = "the teacher") -> Self:
        """Open the store of a teacher in the cache, shared by all runs of this user.

        Args:
            teacher: the fingerprint of the ranker: equal fingerprints score equally.
            name: how progress calls it.

        Raises:
            InputError: the cache cannot be written to.
        """
        return cls(cache_folder("teacher-scores", teacher), name)

    def __len__(self) -> int:
        """Return the number of stored scores."""
        self._refresh()
        return len(self._index)

    def get(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return the scores of (query, document) texts, float32 ``[n]``; NaN where there is none yet."""
        self._refresh()
        return self._index.find(pair_keys(pairs))

    def fill(
        self,
        pairs: Sequence[Pair],
        score: Scorer,
        *,
        say: Callable[[str], None] | None = None,
        chunk: int = CHUNK_PAIRS,
    ) -> int:
        """Score what is missing of ``pairs``, chunk by chunk, each on disk before the next begins.

        Where another process is scoring with this teacher, wait for it; what it has stored is not scored again, and as
        soon as nothing is missing the wait is over.

        Args:
            pairs: (query, document) texts; equal ones are scored once.
            score: called with missing pairs and with a function to be told how many more are done; returns ``[n]``.
            say: told in one line what is going on.
            chunk: most pairs between two writes.

        Returns:
            The number of pairs that were scored.

        Raises:
            RunError: ``score`` gave NaN or infinite scores; nothing of that chunk is stored.
            InputError: the cache cannot be written to.
        """
        say = say or _silent
        keys = pair_keys(pairs)
        if not len(self._missing(keys)):
            return 0
        with self._sole_writer(keys, say) as holds:
            missing = self._missing(keys) if holds else ()
            if not len(missing):
                return 0
            if len(missing) < len(pairs):
                say(f"{self.name}: {len(pairs) - len(missing)} of {len(pairs)} pairs are scored already")
            with self._appended() as append, progress(f"Scoring with {self.name}", len(missing)) as advance:
                for start in range(0, len(missing), chunk):
                    rows = missing[start : start + chunk]
                    scores = np.asarray(score([pairs[row] for row in rows], advance), dtype=np.float32)
                    self._check(scores, len(rows))
                    append(_records(keys[rows], scores))
            return len(missing)

    def _missing(self, keys: np.ndarray) -> np.ndarray:
        """Return the rows of distinct keys that have no score yet, in their order, int64."""
        self._refresh()
        rows = np.flatnonzero(np.isnan(self._index.find(keys)))
        _, first = np.unique(keys[rows], return_index=True)
        return rows[np.sort(first)]

    def _refresh(self) -> None:
        path = self.folder / FILE
        n_records = path.stat().st_size // RECORD.itemsize if path.is_file() else 0
        if n_records != len(self._index.records):
            self._index = _Index(np.memmap(path, dtype=RECORD, mode="r", shape=(n_records,)))

    @contextmanager
    def _sole_writer(self, keys: np.ndarray, say: Callable[[str], None]) -> Iterator[bool]:
        """Hold the store; yields False where another process has meanwhile stored all that is wanted."""
        with ExitStack() as stack:
            waits = False
            while True:
                try:
                    stack.enter_context(sole_writer(self.folder))
                    break
                except HeldError:
                    if not waits:
                        say(f"waiting: another run is scoring with {self.name}")
                    waits = True
                if not len(self._missing(keys)):
                    yield False
                    return
                time.sleep(_POLL_S)
            yield True

    @contextmanager
    def _appended(self) -> Iterator[Callable[[np.ndarray], None]]:
        path = self.folder / FILE

        def append(records: np.ndarray) -> None:
            try:
                stream.write(records.tobytes())
                stream.flush()
                os.fsync(stream.fileno())
            except OSError as error:
                raise RunError(
                    f"{path}: the scores cannot be written ({error.strerror}); what is there stays"
                ) from None

        with path.open("ab") as stream:
            stream.truncate(stream.tell() // RECORD.itemsize * RECORD.itemsize)  # the tail of a killed writer
            yield append

    def _check(self, scores: np.ndarray, n_pairs: int) -> None:
        if scores.shape != (n_pairs,):
            raise RunError(f"{self.name} gave scores of shape {list(scores.shape)} for {n_pairs} pairs")
        if not np.isfinite(scores).all():
            raise RunError(f"{self.name} gave NaN or infinite scores for {(~np.isfinite(scores)).sum()} pairs")


class _Index:
    """The order of a file's records by key, for look-ups of many keys at once: 16 bytes of memory a record.

    Args:
        records: as they stand in the file; those that do not pass their check are passed over.
    """

    def __init__(self, records: np.ndarray) -> None:
        self.records = records
        whole = np.flatnonzero(records["check"] == _check_sums(records))
        self._order = whole[np.argsort(records["high"][whole], kind="stable")]
        self._high = records["high"][self._order]

    def __len__(self) -> int:
        return len(self._order)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return float32 ``[n]`` for keys ``[n]``, NaN where there is no record."""
        scores = np.full(len(keys), np.nan, dtype=np.float32)
        rows = np.arange(len(keys))
        places = np.searchsorted(self._high, keys["high"])
        while len(rows):  # once for nearly all; a second time where two keys share their first half
            inside = places < len(self._high)
            rows, places = rows[inside], places[inside]
            candidates = self.records[self._order[places]]
            alike = candidates["high"] == keys["high"][rows]
            same = alike & (candidates["low"] == keys["low"][rows])
            scores[rows[same]] = candidates["score"][same]
            rows, places = rows[alike & ~same], places[alike & ~same] + 1
        return scores


def pair_keys(pairs: Sequence[Pair]) -> np.ndarray:
    """Return 16-byte hashes of (query, document) texts as records of ``high`` and ``low``, ``[n]``."""
    hashes = b"".join(pair_hash(query, document) for query, document in pairs)
    return np.frombuffer(hashes, dtype=np.dtype([("high", "<u8"), ("low", "<u8")]))


def pair_hash(query: str, document: str) -> bytes:
    """Return 16 bytes that stand for a pair of texts."""
    text = f"{len(query)} {query}{document}"  # with the length, no other two texts give the same
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _records(keys: np.ndarray, scores: np.ndarray) -> np.ndarray:
    records = np.empty(len(keys), dtype=RECORD)
    records["high"], records["low"], records["score"] = keys["high"], keys["low"], scores
    records["check"] = _check_sums(records)
    return records


def _check_sums(records: np.ndarray) -> np.ndarray:
    """Return uint32 ``[n]`` over key and score; not zero for a record of zeros."""
    mixed: np.ndarray = records["high"] * np.uint64(0x9E3779B97F4A7C15) + records["low"] * np.uint64(0xC2B2AE3D27D4EB4F)
    score_bits = np.ascontiguousarray(records["score"]).view(np.uint32).astype(np.uint64)
    mixed = mixed + (score_bits + np.uint64(1)) * np.uint64(0x165667B19E3779F9)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _silent(text: str) -> None:
    """Say nothing."""
