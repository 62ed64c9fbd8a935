"""Quality per query, by ir-measures, from runs without ties.

Tools disagree about tied scores (by document id ascending, descending, averaged, worst case), and some compare scores
in single precision only. So ties are broken here, once: by first-stage rank, then by document id, best first. What
reaches the measure is the rank alone, written as strictly falling whole numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.errors import Fault, InputError, suggest

if TYPE_CHECKING:
    from compressor.data.ranking_data import RankingData

Scores = Mapping[str, np.ndarray]
"""Query id → float32 [k], one score per candidate in first-stage order; k may be less than the data holds."""

_NEED_PERL = {"ERR", "nERR_IA", "NERR8", "NERR10", "NERR11", "alpha_nDCG", "alpha_DCG", "nNRBP", "NRBP", "StRecall"}
_USUAL = ("nDCG@10", "RR@10", "AP", "R@100", "P@10", "Success@10", "Judged@10", "Rprec", "Bpref", "nDCG", "RR")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Measures of one run over one data set.

    Attributes:
        query_ids: the judged queries, in the order of the data.
        per_query: measure → float64 [n judged queries], 0 where the run lacks the query.
        tie_rate: share of candidates whose score another candidate of the same query has too, mean over queries.
    """

    query_ids: tuple[str, ...]
    per_query: dict[str, np.ndarray]
    tie_rate: float


def parse_measures(names: Sequence[str], *, source: str = "measures") -> dict[str, Any]:
    """Return the ir-measures object of every name.

    Raises:
        InputError: for all names at once that are no measure or that cannot be computed here.
    """
    try:
        import ir_measures
    except ImportError:
        raise InputError(
            Fault(source=source, found="no ir-measures", fix="install the extra: pip install rankpress[bench]")
        ) from None

    parsed: dict[str, Any] = {}
    faults = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
        except (NameError, ValueError, TypeError) as error:
            known = list(_USUAL) + list(ir_measures.measures.registry)
            fix = suggest(name, known) or f"such as {', '.join(_USUAL[:4])}"
            faults.append(Fault(source=source, where=name, found=f"no measure ({error})", fix=fix))
            continue
        if measure.NAME in _NEED_PERL or measure.NAME.removesuffix("_IA") in _NEED_PERL:
            found = f"{name}, which ir-measures computes only with perl or for diversity judgments"
            faults.append(Fault(source=source, where=name, found=found, allowed=f"such as {', '.join(_USUAL[:4])}"))
        parsed[name] = measure
    if faults:
        raise InputError(faults)
    return parsed


def evaluate(data: RankingData, scores: Scores, measures: Sequence[str]) -> Quality:
    """Compute measures per judged query; a judged query without candidates counts 0.

    Raises:
        InputError: an unknown measure.
    """
    parsed = parse_measures(measures)
    judged = [query for query in data.queries if data.qrels.get(query)]
    run = {query: strict_run(data.candidates[query], scores[query]) for query in judged if query in scores}
    row_of = {query: row for row, query in enumerate(judged)}
    per_query = {name: np.zeros(len(judged)) for name in parsed}
    name_of = {measure: name for name, measure in parsed.items()}
    if judged:
        import ir_measures

        # A run that is wholly empty upsets some providers; every value is then 0 anyway.
        qrels = {query: dict(data.qrels[query]) for query in judged}
        for value in ir_measures.iter_calc(list(name_of), qrels, run) if run else ():
            per_query[name_of[value.measure]][row_of[value.query_id]] = value.value
    for name, measure in parsed.items():  # two names of one measure (MRR@10, RR@10) share its values
        per_query[name] = per_query[name_of[measure]]
    return Quality(query_ids=tuple(judged), per_query=per_query, tie_rate=tie_rate(scores))


def best_first(scores: np.ndarray) -> np.ndarray:
    """Return the order of candidates, int64 [k], best first; candidates stand in first-stage order, which breaks ties.

    The first stage has already broken its own ties by document id, so that no two candidates share a rank.
    """
    return np.argsort(-np.asarray(scores, dtype=np.float32), kind="stable")


def strict_run(candidates: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """Return document id → a score that falls by 1 from rank to rank: distinct in any precision."""
    order = best_first(scores)
    return {candidates[row]: float(len(order) - rank) for rank, row in enumerate(order)}


def tie_rate(scores: Scores) -> float:
    """Return the share of candidates that share their score with another of the same query, mean over queries."""
    shares = []
    for values in scores.values():
        if len(values):
            _, counts = np.unique(np.asarray(values, dtype=np.float32), return_counts=True)
            shares.append(float(counts[counts > 1].sum()) / len(values))
    return float(np.mean(shares)) if shares else 0.0
