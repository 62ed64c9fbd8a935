"""Rearranging a mask: units that matter together are not cut together (Kwon et al., arXiv 2204.09656, stage 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def rearranged(gradients: Tensor, kept: Tensor, most_swaps: int | None = None) -> Tensor:
    """Swap kept and cut units of one layer while that lowers the mean square of the summed mask gradients of the cut.

    Importances look at units one by one; what they do together is in the products of their gradients, the block of the
    Fisher information that belongs to the layer. Each swap is the best of all, until none helps.

    Args:
        gradients: ``[n, units]``, a row for each candidate.
        kept: int64, the units that stay.
        most_swaps: by default as many as there are units that are cut.

    Returns:
        The units that stay, ascending, as many as before.
    """
    information = gradients.T @ gradients
    is_kept = torch.zeros(len(information), dtype=torch.bool)
    is_kept[kept] = True
    together = information @ (~is_kept).to(information.dtype)
    own = information.diagonal()
    for _ in range(int((~is_kept).sum()) if most_swaps is None else most_swaps):
        back, out = (~is_kept).nonzero().squeeze(1), is_kept.nonzero().squeeze(1)
        if not len(back) or not len(out):
            break
        # (1 - e_i + e_j)ᵀ F (1 - e_i + e_j) - 1ᵀ F 1, for a cut unit i that comes back and a kept unit j that goes
        change = (own[back] - 2 * together[back])[:, None] + (own[out] + 2 * together[out])[None]
        change = change - 2 * information[back][:, out]
        best = int(change.argmin())
        if change.flatten()[best] >= -1e-9 * own.sum():
            break
        i, j = back[best // len(out)], out[best % len(out)]
        is_kept[i], is_kept[j] = True, False
        together += information[:, j] - information[:, i]
    return is_kept.nonzero().squeeze(1)
