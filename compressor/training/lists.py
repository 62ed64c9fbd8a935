"""Training lists: one query with some of its candidates, drawn anew each epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from compressor.data.ranking_data import RankingData
from compressor.records import Record

FIRST_STAGE, RANDOM = "first_stage", "random"


class ListSettings(Record):
    """How training lists are drawn.

    ``list_size``: candidates of one query that are compared with one another.
    ``sources``: where they come from, as shares: ``first_stage``, ``random`` (any document).
    ``curriculum``: on labels, lists whose positive stands high and whose negatives stand low in the first stage weigh
    more at first (Training Curricula, arXiv 2004.14269): ``reciprocal_rank``. ``curriculum_epochs``: until all weigh
    alike.
    """

    list_size: PositiveInt = 8
    sources: Mapping[str, PositiveFloat] = Field(default_factory=lambda: {FIRST_STAGE: 1.0})
    curriculum: Literal["reciprocal_rank"] | None = None
    curriculum_epochs: PositiveInt = 20

    @field_validator("sources")
    @classmethod
    def _known(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        if not value or not value.keys() <= {FIRST_STAGE, RANDOM}:
            raise ValueError(f"name shares of {FIRST_STAGE} and {RANDOM}")
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingList:
    """Candidates of one query, by their ids.

    Attributes:
        query: the query's id.
        documents: the candidates' ids.
        labels: their grades, 0 where unjudged; None without judgments.
        weight: the list's share in its step's loss.
    """

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...] | None = None
    weight: float = 1.0


def draw_lists(
    data: RankingData, settings: ListSettings, *, epoch: int, seed: int, by_positive: bool = False
) -> list[TrainingList]:
    """Return one epoch's lists; equal arguments give equal lists.

    Every candidate stands in one list, and each list spans all ranks, so that easy and hard candidates meet; a
    candidate that would stand alone is left out. Or, ``by_positive``: one list for each relevant document, filled with
    candidates that are not judged relevant; queries without any give none. ``random`` documents take their share of
    each list's places. Unjudged documents of a judged query count as irrelevant.

    Args:
        data: the queries and their candidates.
        settings: list sizes and sources.
        epoch: from 0; another epoch deals candidates otherwise.
        seed: for all that is drawn.
        by_positive: whether lists are made around relevant documents.
    """
    draw = random.Random(f"{seed} {epoch}")
    every = sorted(data.documents) if RANDOM in settings.sources else []
    n_random = _n_random(settings)
    lists: list[TrainingList] = []
    for query in sorted(data.queries):
        candidates = data.candidates.get(query, [])
        grades = data.qrels.get(query, {})
        positives = [document for document, grade in grades.items() if grade > 0 and document in data.documents]
        if by_positive:
            lists += _labelled(query, candidates, grades, sorted(positives), settings, n_random, every, epoch, draw)
        else:
            lists += _dealt(query, candidates, grades if positives else {}, settings, n_random, every, draw)
    draw.shuffle(lists)
    return lists


def _n_random(settings: ListSettings) -> int:
    share = settings.sources.get(RANDOM, 0.0) / sum(settings.sources.values())
    return round(share * settings.list_size)


def _dealt(
    query: str,
    candidates: list[str],
    grades: Mapping[str, int],
    settings: ListSettings,
    n_random: int,
    every: list[str],
    draw: random.Random,
) -> Iterator[TrainingList]:
    n_places = max(1, settings.list_size - n_random)
    n_lists = -(-len(candidates) // n_places)
    hands: list[list[str]] = [[] for _ in range(n_lists)]
    for start in range(0, len(candidates), max(1, n_lists)):  # one stretch of ranks at a time, one candidate to each
        stretch = candidates[start : start + n_lists]
        for place, document in zip(draw.sample(range(n_lists), len(stretch)), stretch, strict=True):
            hands[place].append(document)
    for hand in hands:
        documents = tuple(hand + _others(every, n_random, set(candidates), draw))
        if len(documents) > 1 or settings.list_size == 1:
            labels = tuple(float(max(0, grades.get(one, 0))) for one in documents) if grades else None
            yield TrainingList(query=query, documents=documents, labels=labels)


def _labelled(
    query: str,
    candidates: list[str],
    grades: Mapping[str, int],
    positives: list[str],
    settings: ListSettings,
    n_random: int,
    every: list[str],
    epoch: int,
    draw: random.Random,
) -> Iterator[TrainingList]:
    known = set(positives)
    negatives = [document for document in candidates if document not in known]
    n_hard = min(len(negatives), max(0, settings.list_size - 1 - n_random))
    ranks = {document: rank for rank, document in enumerate(candidates, start=1)}
    for positive in positives:
        others = draw.sample(negatives, n_hard) + _others(every, n_random, known | set(candidates), draw)
        if not others:
            continue
        weight = 1.0
        if settings.curriculum:
            easiness = [1 / ranks[one] if one in ranks else 0.0 for one in (positive, *others)]
            weight = _curriculum(easiness[0], float(np.mean(easiness[1:])), epoch, settings.curriculum_epochs)
        labels = (float(grades[positive]), *(float(max(0, grades.get(one, 0))) for one in others))
        yield TrainingList(query=query, documents=(positive, *others), labels=labels, weight=weight)


def _others(every: list[str], n_wanted: int, known: set[str], draw: random.Random) -> list[str]:
    found: dict[str, None] = {}
    for _ in range(20 * n_wanted):
        if len(found) == n_wanted:
            break
        document = every[draw.randrange(len(every))]
        if document not in known:
            found[document] = None
    return list(found)


def _curriculum(positive: float, negative: float, epoch: int, n_epochs: int) -> float:
    share = min(1.0, epoch / n_epochs)
    return (positive - negative + 1) / 2 * (1 - share) + share
