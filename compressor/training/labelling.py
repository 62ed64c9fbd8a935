"""The scores that a student learns from: of one teacher or of several, asked once and stored, or read from files."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.data.ranking_data import Pair, RankingData
from compressor.data.score_files import read_scores
from compressor.data.teacher_scores import ScoreStore
from compressor.errors import Fault, InputError
from compressor.training.large_labels import large_scores
from compressor.training.scorers import open_scorer, refuse_quantized_teacher
from compressor.training.teachers import OWN, FileTeacher, LargeTeacher, RankerTeacher, Teacher

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker

__all__ = ["FileTeacher", "LargeTeacher", "RankerTeacher", "Teacher", "TeacherScores", "teacher_scores"]


@dataclass(frozen=True, kw_only=True)
class TeacherScores:
    """Scores of pairs, in their order.

    Attributes:
        pairs: (query id, document id).
        values: float32 ``[n]``, raw logits; NaN where a teacher's file has no score of the pair.
        offsets_known: False where a file gives only differences between the documents of a query: then scores of
            different queries cannot be compared, and pointwise losses mean nothing.
        notes: per teacher, what it was asked and what came of it (JSON).
    """

    pairs: Sequence[Pair]
    values: np.ndarray
    offsets_known: bool
    notes: list[dict[str, Any]]

    def of(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return the scores of some of the pairs, float32 ``[n]``; NaN for one that was not asked for, too."""
        rows = np.array([self._rows.get(pair, -1) for pair in pairs], dtype=np.int64)
        return np.where(rows < 0, np.float32(np.nan), self.values[rows])

    @cached_property
    def _rows(self) -> dict[Pair, int]:
        return {pair: row for row, pair in enumerate(self.pairs)}

    @property
    def n_missing(self) -> int:
        """Number of pairs without a score."""
        return int(np.isnan(self.values).sum())


def teacher_scores(
    teachers: Sequence[Teacher],
    data: RankingData,
    pairs: Sequence[Pair],
    *,
    own: Callable[[], Ranker] | None = None,
    standardize: bool = False,
    say: Callable[[str], None] | None = None,
) -> TeacherScores:
    """Return the scores of pairs: one teacher's, or the weighted mean of several.

    Rankers score through their exported graph in fp32 (`compressor.training.scorers`), large ones in transformers
    (`compressor.training.large_labels`); what they scored is kept in the cache, so that a killed run goes on where it
    was and other runs and passes ask again for nothing.

    Args:
        teachers: at least one; paths as `placed` leaves them.
        data: holds the texts.
        pairs: (query id, document id); repeated ones are scored once.
        own: loads the recipe's teacher, for ``ranker: self``.
        standardize: before the mean, bring each teacher to the mean and standard deviation that the first has over
            these pairs, since logits of different teachers have different scales. Standard deviations are those within
            queries where a teacher's offsets are not known.
        say: told in one line what is going on; by default it is printed where progress is, on standard error.

    Raises:
        InputError: no such ranker or file; all faults of a file; a file without a score of these pairs; a quantized
            teacher; one with equal scores everywhere, where scales are to be brought together.
        RunError: a teacher's scores are NaN or infinite.
    """
    if not teachers:
        raise InputError(Fault(source="teachers", found="none", allowed="one teacher or more"))
    say = say or _to_stderr
    found = [_asked(teacher, data, pairs, own, say) for teacher in teachers]
    if len(found) == 1:
        return found[0]
    offsets_known = all(scores.offsets_known for scores in found)
    queries = _numbers([query for query, _ in pairs])
    if not offsets_known:
        found = [replace(scores, values=_centered(scores.values, queries)) for scores in found]
    columns = [scores.values.astype(np.float64) for scores in found]
    # A mean over fewer teachers would be on another scale: what one does not know stays unknown.
    present = np.logical_and.reduce(np.isfinite(np.stack(columns)))
    if not present.any():
        names = ", ".join(teacher.name for teacher in teachers)
        raise InputError(Fault(source="teachers", found=f"no pair that all of {names} have a score of"))
    if standardize:
        columns = _brought_together(columns, present, teachers)
    weights = np.array([teacher.weight for teacher in teachers])
    mean = np.average(np.stack(columns), axis=0, weights=weights)
    notes = [note for scores in found for note in scores.notes]
    values = np.where(present, mean, np.nan).astype(np.float32)
    return TeacherScores(pairs=pairs, values=values, offsets_known=offsets_known, notes=notes)


def _asked(
    teacher: Teacher,
    data: RankingData,
    pairs: Sequence[Pair],
    own: Callable[[], Ranker] | None,
    say: Callable[[str], None],
) -> TeacherScores:
    if isinstance(teacher, FileTeacher):
        return _from_file(teacher, data, pairs, say)
    if isinstance(teacher, LargeTeacher):
        values, note = large_scores(teacher, data, pairs, say)
        return TeacherScores(pairs=pairs, values=values, offsets_known=teacher.offsets_known, notes=[note])
    return _from_ranker(teacher, data, pairs, own, say)


def _from_file(
    teacher: FileTeacher, data: RankingData, pairs: Sequence[Pair], say: Callable[[str], None]
) -> TeacherScores:
    form = None if teacher.format == "auto" else teacher.format
    found = read_scores(Path(teacher.scores), data, pairs, form)
    if found.n_missing:
        say(f"{teacher.name}: {found.n_missing} of {len(pairs)} pairs have no score and are left out")
    note = {"teacher": teacher.scores, "format": found.format, "missing": found.n_missing, **found.notes}
    return TeacherScores(pairs=pairs, values=found.values, offsets_known=found.offsets_known, notes=[note])


def _from_ranker(
    teacher: RankerTeacher,
    data: RankingData,
    pairs: Sequence[Pair],
    own: Callable[[], Ranker] | None,
    say: Callable[[str], None],
) -> TeacherScores:
    ranker, texts = _loaded(teacher, own), data.texts(pairs)
    refuse_quantized_teacher(ranker, teacher.name)
    store = ScoreStore.open(ranker.fingerprint, teacher.name)
    note: dict[str, Any] = {"teacher": teacher.ranker, "fingerprint": ranker.fingerprint}
    values = store.get(texts)
    if np.isnan(values).any():
        score, note["scored_by"] = open_scorer(ranker, teacher.name)
        start = time.monotonic()
        n_scored = store.fill(texts, score, say=say)
        seconds = time.monotonic() - start
        note |= {"scored": n_scored, "pairs_per_s": round(n_scored / seconds, 1)}
        values = store.get(texts)
    return TeacherScores(pairs=pairs, values=values, offsets_known=True, notes=[note])


def _loaded(teacher: RankerTeacher, own: Callable[[], Ranker] | None) -> Ranker:
    from compressor.families import load_teacher

    if teacher.ranker != OWN:
        return load_teacher(teacher.ranker, Path())
    if own is None:
        raise InputError(Fault(source="teachers", found="'self' where no recipe names a teacher"))
    return own()


def _brought_together(columns: list[np.ndarray], present: np.ndarray, teachers: Sequence[Teacher]) -> list[np.ndarray]:
    means = [float(column[present].mean()) for column in columns]
    spreads = [float(column[present].std()) for column in columns]
    for teacher, spread in zip(teachers, spreads, strict=True):
        if spread == 0:
            fix = "take it away, or do not standardize"
            raise InputError(Fault(source=teacher.name, found="equal scores of all pairs", fix=fix))
    return [
        (column - mean) / spread * spreads[0] + means[0]
        for column, mean, spread in zip(columns, means, spreads, strict=True)
    ]


def _numbers(names: Sequence[str]) -> np.ndarray:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def _centered(values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Subtract from each score the mean of its query's; NaN stays."""
    present = ~np.isnan(values)
    sums = np.bincount(queries[present], values[present].astype(np.float64), minlength=queries.max(initial=0) + 1)
    counts = np.bincount(queries[present], minlength=len(sums))
    return (values - (sums / np.maximum(counts, 1))[queries]).astype(np.float32)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
