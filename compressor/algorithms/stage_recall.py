"""How many of a ranker's own best a cascade's stages let through, and the smallest shares that let enough through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor.cascade_stages import Cascade, CascadeStage, Place
from compressor.runtime.list_scores import best

LEVEL = 0.05  # of the one-sided bound
_STEP = 100  # shares are sought in hundredths


@dataclass(frozen=True, kw_only=True)
class Recall:
    """What one stage, with those before it, lets through of the best of each list.

    Attributes:
        mean: mean share of a list's best among those that go on.
        bound: the mean is above this with 95 % confidence.
        kept: mean share of the candidates that go on.
    """

    mean: float
    bound: float
    kept: float


def measure_recall(lists: Sequence[np.ndarray], cascade: Cascade, top: int) -> list[Recall]:
    """Measure each stage on lists whose candidates were all scored everywhere.

    Args:
        lists: per list, scores float32 ``[stages + 1, n]`` in first-stage order, the last row the head's.
        cascade: the stages.
        top: how many of a list are its best, by the head.
    """
    passed = [_survivors(scores, cascade) for scores in lists]
    wanted = [set(best(scores[-1], top).tolist()) for scores in lists]
    found = []
    for place in range(len(cascade.stages)):
        hits = np.array(
            [len(one.intersection(alive[place].tolist())) for one, alive in zip(wanted, passed, strict=True)]
        )
        sizes = np.array([len(one) for one in wanted])
        kept = [len(alive[place]) / scores.shape[1] for alive, scores in zip(passed, lists, strict=True)]
        found.append(Recall(mean=float((hits / sizes).mean()), bound=_bound(hits, sizes), kept=float(np.mean(kept))))
    return found


def fewest_items(target: float) -> int:
    """Return how many items, none of them missed, show a recall of ``target``."""
    return math.ceil(math.log(LEVEL) / math.log(target))


def smallest_shares(
    lists: Sequence[np.ndarray],
    places: Sequence[Place],
    given: Sequence[float | None],
    *,
    keep_at_least: int,
    top: int,
    target: float,
) -> list[float]:
    """Return a share for each stage; where none is given, the smallest whose recall is shown to meet the target.

    What may be lost is dealt out evenly to the stages without a share, from the first on. Shares are tried from the
    largest downwards, and the first that fails ends the search: so the bound holds for the last one that passed, though
    many were tried (fixed-sequence testing).

    Args:
        lists, top: as in `measure_recall`, a row for each place.
        places: where the stages stand.
        given: their shares, None where one is sought.
        keep_at_least: as in `Cascade`.
        target: the recall behind the last stage, below 1.
    """
    sought = [place for place, share in enumerate(given) if share is None]
    shares: list[float] = []
    for index, share in enumerate(given):
        if share is None:
            allowed = 1 - (1 - target) * (sought.index(index) + 1) / len(sought)
            share = shares[-1] if shares else 1.0
            least = max((later for later in given[index:] if later), default=1 / _STEP)  # no stage may widen a list
            for hundredths in range(math.ceil(share * _STEP) - 1, math.ceil(least * _STEP) - 1, -1):
                stages = tuple(
                    CascadeStage(behind=place, keep=keep)
                    for place, keep in zip(places, [*shares, hundredths / _STEP], strict=False)
                )
                tried = Cascade(stages=stages, keep_at_least=keep_at_least)
                if measure_recall(lists, tried, top)[-1].bound < allowed:
                    break
                share = hundredths / _STEP
        shares.append(share)
    return shares


def _survivors(scores: np.ndarray, cascade: Cascade) -> list[np.ndarray]:
    """Return who goes on behind each stage."""
    alive, found = np.arange(scores.shape[1]), []
    for place, count in enumerate(cascade.counts(len(alive))):
        alive = alive[best(scores[place, alive], count)]
        found.append(alive)
    return found


def _bound(hits: np.ndarray, sizes: np.ndarray) -> float:
    """Return a lower bound of the mean recall, the lower of two.

    Student's over lists sees that misses come together in few lists; Clopper and Pearson's over items does not become
    certain where nothing was missed.
    """
    from scipy.stats import beta, t

    n_hits, n_items = int(hits.sum()), int(sizes.sum())
    exact = float(beta.ppf(LEVEL, n_hits, n_items - n_hits + 1)) if n_hits else 0.0
    recalls = hits / sizes
    if len(recalls) < 2:
        return exact
    spread = float(recalls.std(ddof=1)) / math.sqrt(len(recalls))
    return max(0.0, min(exact, float(recalls.mean()) - float(t.ppf(1 - LEVEL, len(recalls) - 1)) * spread))
