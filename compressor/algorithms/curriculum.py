"""Curricula: easy lists weigh more at first."""

from __future__ import annotations

from torch import Tensor

from compressor.algorithms.score_lists import mean_of, score_lists


def curriculum_weights(targets: Tensor, closeness: Tensor, mask: Tensor, progress: Tensor) -> Tensor:
    """Return each list's weight, ``[L]``: how easy it is at first, 1 at the end of the curriculum.

    A list is easy where the first stage already has it right. Of two items of which one has the greater target, that is
    (closeness of the better - closeness of the worse + 1) / 2; of a list, the mean over such pairs, and 1/2 where it
    has none. With one relevant item this is the reciprocal-rank curriculum of MacAvaney et al. ("Training Curricula for
    Open Domain Answer Re-Ranking", arXiv 2004.14269); a teacher's scores in the place of labels carry it over to lists
    that nobody has judged. Their code weighs a batch by its mean; here, as in their text, each list has its own weight.

    Args:
        targets: labels or teacher scores, ``[L, K]``; NaN where missing.
        closeness: 1 / first-stage rank, 0 where there is none, ``[L, K]``.
        mask: bool ``[L, K]``, true at real items.
        progress: the share of the curriculum that is over, ``[L]``.
    """
    better = score_lists(closeness, targets, mask).better()
    lead = (closeness[:, :, None] - closeness[:, None, :] + 1) / 2
    easiness = mean_of(lead, better).where(better.flatten(1).any(dim=1), 0.5)
    return progress + (1 - progress) * easiness
