"""Training lists: one query with some of its candidates, drawn anew each epoch."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from compressor.data.ranking_data import RankingData
from compressor.data_reference import FIRST_STAGE, RANDOM
from compressor.errors import Fault, InputError, suggest
from compressor.records import Record

Ranked = Mapping[str, Sequence[str]]  # document ids by query id, best first


class ListSettings(Record):
    """How training lists are drawn.

    ``list_size``: candidates of one query that are compared with one another.
    ``sources``: where they come from, as shares: a first stage by its name (``bm25``, ``dense.trec``; negatives of
    several retrievers make a ranker robust: R2anker, arXiv 2206.08063), ``first_stage`` (all of them as one),
    ``random`` (any document). The shares hold over all lists, to one place.
    ``curriculum``: lists whose better documents, by label or else by the teacher, stand above the others in the first
    stage too weigh more at first, each list by itself (Training Curricula, arXiv 2004.14269): ``reciprocal_rank``.
    ``curriculum_share``: the share of the training after which all weigh alike.
    """

    list_size: PositiveInt = 8
    sources: Mapping[str, PositiveFloat] = Field(default_factory=lambda: {FIRST_STAGE: 1.0}, min_length=1)
    curriculum: Literal["reciprocal_rank"] | None = None
    curriculum_share: Annotated[float, Field(gt=0, le=1)] = 0.5

    @field_validator("sources")
    @classmethod
    def _ranks_something(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        if not value.keys() - {RANDOM}:
            raise ValueError(f"name a first stage beside {RANDOM}, or {FIRST_STAGE} for all of them")
        return value

    @property
    def first_stages(self) -> list[str]:
        """The sources that rank documents."""
        return [name for name in self.sources if name != RANDOM]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingList:
    """Candidates of one query, by their ids.

    Attributes:
        query: the query's id.
        documents: the candidates' ids.
        labels: their grades, 0 where unjudged; None without judgments.
        closeness: 1 / first-stage rank of each, 0 for one that no first stage found; empty without a curriculum.
        progress: how much of the curriculum is over when the list's turn comes, from 0 to 1.
    """

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...] | None = None
    closeness: tuple[float, ...] = ()
    progress: float = 1.0


def check_sources(data: RankingData, settings: ListSettings, source: str) -> None:
    """Refuse sources that the data has not.

    Args:
        data: what lists are drawn from.
        settings: names the sources.
        source: whose settings they are, for the fault.

    Raises:
        InputError: names them and those that the data has.
    """
    known = [*data.runs, FIRST_STAGE, RANDOM]
    allowed = f"of {data.name}: {', '.join(known)}"
    faults = [
        Fault(
            source=source,
            where=f"lists.sources.{name}",
            found="no such first stage",
            allowed=allowed,
            fix=suggest(name, known) or f"add it to the candidates of {data.name}",
        )
        for name in settings.first_stages
        if name not in known
    ]
    if not faults and FIRST_STAGE not in settings.sources:
        runs = [data.runs[name] for name in settings.first_stages]
        if n_left := sum(not any(query in run for run in runs) for query in data.queries):
            found = f"{', '.join(settings.first_stages)}, which know nothing of {n_left:,} queries' collections"
            fix = f"name one more, or {FIRST_STAGE}"
            faults.append(Fault(source=source, where="lists.sources", found=found, allowed=allowed, fix=fix))
    if faults:
        raise InputError(faults)


def draw_lists(
    data: RankingData, settings: ListSettings, *, epoch: int, seed: int, by_positive: bool = False
) -> list[TrainingList]:
    """Return one epoch's lists; equal arguments give equal lists.

    Each list spans all ranks, so that easy and hard candidates meet, and no candidate stands in two. With one source
    every candidate stands in one, but for one that would stand alone; with several there are as many lists as the
    first source that runs out can fill, and what the others have left is drawn in other epochs. Or, ``by_positive``:
    one list for each relevant document, filled with candidates that are not judged relevant; queries without any give
    none. Where a query has nothing from a source, the others take its places. Unjudged documents of a judged query
    count as irrelevant.

    Args:
        data: the queries and their candidates.
        settings: list sizes and sources.
        epoch: from 0; another epoch deals candidates otherwise.
        seed: for all that is drawn.
        by_positive: whether lists are made around relevant documents.

    Raises:
        InputError: the data has no such source.
    """
    check_sources(data, settings, "training")
    dealer = _Dealer(data=data, settings=settings, draw=random.Random(f"{seed} {epoch}"))
    lists: list[TrainingList] = []
    for query in sorted(data.queries):
        lists += dealer.around_positives(query) if by_positive else dealer.dealt(query)
    dealer.draw.shuffle(lists)
    return lists


@dataclass(kw_only=True)
class _Dealer:
    data: RankingData
    settings: ListSettings
    draw: random.Random
    _given: dict[tuple[str, ...], Counter[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._every = sorted(self.data.documents) if RANDOM in self.settings.sources else []
        self._stages: dict[str, Ranked] = {
            name: self.data.candidates if name == FIRST_STAGE else self.data.runs[name]
            for name in self.settings.first_stages
        }

    def dealt(self, query: str) -> Iterator[TrainingList]:
        found, grades = self._found(query), self._grades(query)
        names, n_lists = self._names(found), self._n_lists(found)
        places = [self._places(self.settings.list_size, names) for _ in range(n_lists)]
        hands: list[list[str]] = [[] for _ in range(n_lists)]
        taken: set[str] = set()
        wanted = {name: [one[name] for one in places] for name in found}
        # The scarcest first: what two sources share must not be taken from the one that has little else.
        for name in sorted(found, key=lambda name: len(found[name]) - sum(wanted[name])):
            free = [document for document in found[name] if document not in taken]
            for number, document in self._spread(free, wanted[name]):
                hands[number].append(document)
                taken.add(document)
        known = set(self.data.candidates.get(query, ())).union(*found.values())
        for hand, own in zip(hands, places, strict=True):
            together = hand + self._others(own[RANDOM], known)
            if len(together) > 1 or self.settings.list_size == 1:
                labels = tuple(float(max(0, grades.get(one, 0))) for one in together) if grades else None
                yield self._list(query, together, labels)

    def around_positives(self, query: str) -> Iterator[TrainingList]:
        found, grades = self._found(query), self._grades(query)
        positives = {document for document, grade in grades.items() if grade > 0 and document in self.data.documents}
        names = self._names(found)
        known = positives.union(self.data.candidates.get(query, ()), *found.values())
        for positive in sorted(positives):
            places = self._places(self.settings.list_size - 1, names)
            others: list[str] = []
            for name, documents in found.items():
                free = [one for one in documents if one not in positives and one not in others]
                others += self.draw.sample(free, min(places[name], len(free)))
            others += self._others(places[RANDOM], known)
            if others:
                labels = (float(grades[positive]), *(float(max(0, grades.get(one, 0))) for one in others))
                yield self._list(query, [positive, *others], labels)

    def _found(self, query: str) -> dict[str, Sequence[str]]:
        """What each source has for a query, where it has anything."""
        return {name: stage[query] for name, stage in self._stages.items() if stage.get(query)}

    def _grades(self, query: str) -> Mapping[str, int]:
        """The judgments on a query; none where nothing is relevant, for then there is nothing to learn."""
        grades = self.data.qrels.get(query, {})
        is_any = any(grade > 0 and document in self.data.documents for document, grade in grades.items())
        return grades if is_any else {}

    def _names(self, found: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        return tuple(name for name in self.settings.sources if name in found or name == RANDOM)

    def _shares(self, names: Sequence[str]) -> dict[str, float]:
        total = sum(self.settings.sources[name] for name in names)
        return {name: self.settings.sources[name] / total for name in names}

    def _n_lists(self, found: Mapping[str, Sequence[str]]) -> int:
        if not found:
            return 0
        shares = self._shares(self._names(found))
        needed = [(len(documents), shares[name]) for name, documents in found.items()]
        needed.append((len(set().union(*found.values())), 1 - shares.get(RANDOM, 0.0)))
        return min(math.ceil(n / (share * self.settings.list_size) - 1e-9) for n, share in needed)

    def _places(self, n_places: int, names: tuple[str, ...]) -> Counter[str]:
        """Share places out so that of all so far, over all lists with these sources, each source has its share."""
        if len(names) == 1:
            return Counter({names[0]: n_places})
        shares, given = self._shares(names), self._given.setdefault(names, Counter())
        before = given.copy()
        for n_given in range(given.total() + 1, given.total() + n_places + 1):
            given[max(names, key=lambda name: shares[name] * n_given - given[name])] += 1
        return given - before

    def _spread(self, ranked: Sequence[str], wanted: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Deal documents to hands that want so many each, one stretch of ranks at a time, at most one to each hand."""
        total = sum(wanted)
        if len(ranked) > total:
            edges = [len(ranked) * step // total for step in range(total + 1)] if total else [0]
            ranked = [ranked[self.draw.randrange(edges[at], edges[at + 1])] for at in range(total)]
        start = 0
        for n_dealt in range(max(wanted, default=0)):
            hungry = [hand for hand, n in enumerate(wanted) if n > n_dealt]
            stretch = ranked[start : start + len(hungry)]
            yield from zip(self.draw.sample(hungry, len(stretch)), stretch, strict=True)
            start += len(hungry)

    def _others(self, n_wanted: int, known: set[str]) -> list[str]:
        found: dict[str, None] = {}
        for _ in range(20 * n_wanted):
            if len(found) == n_wanted:
                break
            document = self._every[self.draw.randrange(len(self._every))]
            if document not in known:
                found[document] = None
        return list(found)

    def _list(self, query: str, documents: list[str], labels: tuple[float, ...] | None) -> TrainingList:
        closeness: tuple[float, ...] = ()
        if self.settings.curriculum:
            ranks = {document: rank for rank, document in enumerate(self.data.candidates.get(query, ()), start=1)}
            closeness = tuple(1 / ranks[one] if one in ranks else 0.0 for one in documents)
        return TrainingList(query=query, documents=tuple(documents), labels=labels, closeness=closeness)
