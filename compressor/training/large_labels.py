"""Scores of large rankers, stored pair by pair; those of a listwise one belong to a pair in its list."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.data import load_data
from compressor.data.cache import cache_folder
from compressor.data.ranking_data import Pair, RankingData
from compressor.data.teacher_scores import Scorer, ScoreStore
from compressor.storage import sha256_json
from compressor.training.teachers import LargeTeacher

if TYPE_CHECKING:
    from compressor.families.first_token import FirstTokenScorer

CHUNK_PAIRS = 256  # between two writes: a large ranker may take a minute for them
_CALIBRATION_PAIRS = 128  # as in the GPTQ paper


def large_scores(
    teacher: LargeTeacher, data: RankingData, pairs: Sequence[Pair], say: Callable[[str], None]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a large ranker's scores of pairs, float32 ``[n]``, and a note; it is loaded where some are not stored yet.

    A listwise ranker ranks, for each query, the documents that are asked for: in the order of the data's candidates,
    then in the order in which they are asked.

    Args:
        teacher: the ranker, its paths as `placed` leaves them.
        data: holds the texts.
        pairs: (query id, document id).
        say: told in one line what is going on.

    Raises:
        InputError: there is no such ranker, or it does not fit its settings.
        RunError: its scores are NaN or infinite.
    """
    from compressor.families.large_teacher import open_large

    found = open_large(teacher)
    note: dict[str, Any] = {"teacher": teacher.large, "precision": teacher.precision}
    if found.needs_quantizing and teacher.calibration:
        calibration = load_data(teacher.calibration)
        sample = calibration.texts(calibration.sample_pairs(_CALIBRATION_PAIRS))
        found = found.quantized(sample, lambda name: cache_folder("large-gptq", name))
    store = ScoreStore.open(found.fingerprint, teacher.name)
    lists = _Lists(data, pairs) if teacher.is_listwise else None
    texts = lists.keyed(data, pairs) if lists else data.texts(pairs)
    values = store.get(texts)
    if np.isnan(values).any():
        opened: Any = found.open()
        score: Scorer = lists.scorer(opened) if lists else opened.score
        start = time.monotonic()
        n_scored = store.fill(texts, score, say=say, chunk=CHUNK_PAIRS)
        seconds = time.monotonic() - start
        note |= {"scored": n_scored, "pairs_per_s": round(n_scored / seconds, 1)}
        values = store.get(texts)
    return values, {**note, "fingerprint": found.fingerprint}


class _Lists:
    """The lists that pairs of ids belong to, in first-stage order, with hashes that their scores are stored under."""

    def __init__(self, data: RankingData, pairs: Sequence[Pair]) -> None:
        asked: dict[str, dict[str, None]] = {}
        for query, document in pairs:
            asked.setdefault(query, {})[document] = None
        self._names: dict[str, str] = {}
        self._lists: dict[str, tuple[str, list[str]]] = {}
        for query, documents in asked.items():
            candidates = [key for key in data.candidates.get(query, ()) if key in documents]
            order = dict.fromkeys([*candidates, *documents])
            texts = list(dict.fromkeys(data.documents[key] for key in order))  # copies of a text share its score
            self._names[query] = sha256_json([data.queries[query], texts])
            self._lists[self._names[query]] = (data.queries[query], texts)

    def keyed(self, data: RankingData, pairs: Sequence[Pair]) -> list[Pair]:
        """Return (hash of the list, document text) for pairs of ids: what a score is stored under."""
        return [(self._names[query], data.documents[document]) for query, document in pairs]

    def scorer(self, ranker: FirstTokenScorer) -> Scorer:
        """Return a function from such keys to scores; a list is ranked once, also where two chunks share it."""
        known: dict[Pair, float] = {}

        def score(keys: Sequence[Pair], advance: Callable[[int], object]) -> np.ndarray:
            new = list(dict.fromkeys(key[0] for key in keys if key not in known))
            for name, values in zip(new, ranker.score_lists([self._lists[name] for name in new]), strict=True):
                known.update({(name, text): float(one) for text, one in zip(self._lists[name][1], values, strict=True)})
            advance(len(keys))
            return np.array([known[key] for key in keys], dtype=np.float32)

        return score
