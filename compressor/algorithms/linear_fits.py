"""Least squares out of running sums: what a part of a vector says about the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 1e-10  # a variance below this share of the mean square is rounding
_LEAST_RIDGE = 1e-4  # of the mean variance of what predicts
_PROMISING = 8  # candidates for each that a step takes
_RIDGE_OF_NOISE = 0.1  # times the number of unknowns for each sample
_LEAST_DAMPING = 0.01  # of the mean square of an input


class Moments:
    """Sums over samples of a vector and of its products with itself.

    Sums are those of distances from the mean of the first samples: dimensions with a large constant would drown else.
    """

    def __init__(self) -> None:
        self.n = 0
        self._from = torch.zeros(())
        self._total = torch.zeros(())
        self._products = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Add samples ``[T, d]``."""
        values = values.detach().float().flatten(0, -2)
        if not self.n:
            self._from = values.double().mean(dim=0)
        values = values - self._from.float()
        self.n += len(values)
        self._total = self._total + values.sum(dim=0).double()
        self._products = self._products + (values.T @ values).double()

    @property
    def mean(self) -> Tensor:
        """The mean, float64 ``[d]``."""
        return self._from.float().double() + self._total / max(1, self.n)

    def second(self, *, centered: bool) -> Tensor:
        """Return the mean products ``[d, d]``: of deviations from the mean (the covariance), or of the values."""
        shift = self._total / max(1, self.n)
        covariance = self._products / max(1, self.n) - torch.outer(shift, shift)
        values = covariance + torch.outer(self.mean, self.mean)
        if not centered:
            return values
        varies = covariance.diagonal() > _ROUNDING * values.diagonal()
        return covariance * varies * varies[:, None]


def prediction(moments: Moments, known: Tensor, *, centered: bool) -> tuple[Tensor, Tensor]:
    """Return A and c with ``x ≈ A x[known] + c`` for all of x, by ridge regression; known entries come out unchanged.

    The ridge grows with the number of unknowns for each sample, so that few samples do not make wild predictions.

    Args:
        moments: of x.
        known: int64 ``[k]``.
        centered: whether there may be a constant; else c is zero.

    Returns:
        float32 ``[d, k]`` and ``[d]``.
    """
    second = moments.second(centered=centered)
    among = second[known][:, known]
    noise = max(_LEAST_RIDGE, _RIDGE_OF_NOISE * len(known) / max(1, moments.n))
    level = among.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    ridge = noise * level * torch.eye(len(known), dtype=among.dtype)
    factors = torch.linalg.solve(among + ridge, second[known]).T.contiguous()
    factors[known] = torch.eye(len(known), dtype=factors.dtype)
    mean = moments.mean
    constants = mean - factors @ mean[known] if centered else torch.zeros_like(mean)
    constants[known] = 0
    return factors.float(), constants.float()


def roots_of_inverse(second: Tensor, n_samples: int) -> Tensor:
    """Return the upper Cholesky factor of the inverse of damped second moments, float64 ``[inputs, inputs]``.

    Damping grows with the number of inputs for each sample: where the last layer reads first tokens alone, samples are
    fewer than inputs, and what they do not span must not be made use of.

    Args:
        second: float64 ``[inputs, inputs]``, mean products.
        n_samples: of which they are the mean.
    """
    n_inputs = len(second)
    damping = max(_LEAST_DAMPING, _RIDGE_OF_NOISE * n_inputs / max(1, n_samples))
    level = second.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damped = second + damping * level * torch.eye(n_inputs, dtype=second.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


@dataclass(frozen=True, kw_only=True)
class Telling:
    """Groups of entries in the order in which they were chosen.

    Attributes:
        order: int64 ``[chosen]``.
        left: float32 ``[chosen + 1]``: what linear maps make of the vector, its variance that none, the first, the
            first two ... of the groups leave open; a mean over sites, each in shares of its whole, or, with one site,
            absolute.
    """

    order: Tensor
    left: Tensor


def most_telling(seconds: Sequence[Tensor], readers: Sequence[Tensor], count: int, group: int = 1) -> Tensor:
    """Choose the entries from which what linear maps make of a vector is best predicted; see `in_telling_order`.

    Returns:
        int64 ``[count]``, ascending groups.
    """
    return in_telling_order(seconds, readers, count, group).order.sort().values


def in_telling_order(
    seconds: Sequence[Tensor], readers: Sequence[Tensor], count: int, group: int = 1, at_once: int = 1
) -> Telling:
    """Choose entries greedily.

    A step takes the groups that explain the largest shares of the maps' outputs that those before it leave open, the
    mean share over sites. For one site that reads all alike this is pivoted Cholesky, column subset selection.

    Args:
        seconds: for each site, the second moments of the vector there, ``[d, d]``.
        readers: for each site, the matrix ``[outputs, d]`` that reads it.
        count: how many groups to choose.
        group: entries that are chosen together, side by side: a head's width.
        at_once: groups that a step takes, chosen one by one among the most promising; more is faster and less exact.
    """
    left = torch.stack([second.float() for second in seconds])  # [sites, d, d]
    is_tall = len(readers) > 1 or readers[0].shape[0] > readers[0].shape[1]
    maps = torch.stack([_root(reader.float()) if is_tall else reader.float() for reader in readers])
    seen = maps @ left  # [sites, outputs, d]
    tiny = torch.finfo(torch.float32).tiny
    totals = _open(seen, maps).clamp(min=tiny)
    n_groups = left.shape[1] // group
    places = torch.arange(n_groups * group).view(n_groups, group)
    floor = (1e-6 * left.diagonal(dim1=1, dim2=2).mean(dim=1)).clamp(min=tiny)[:, None, None]
    is_free = torch.ones(n_groups, dtype=torch.bool)
    order: list[int] = []
    open_shares = [totals]
    while len(order) < count:
        gains = (_gains(left, seen, places, floor) / totals[:, None]).mean(dim=0).masked_fill(~is_free, -1)
        n_taken = min(at_once, count - len(order))
        promising = gains.topk(min(_PROMISING * n_taken, int(is_free.sum())) if n_taken > 1 else 1).indices
        if n_taken > 1:
            some = places[promising].flatten()
            among = left[:, some][:, :, some], seen[:, :, some]
            promising = promising[_one_by_one(*among, n_taken, group, floor, totals)]
        best = promising
        is_free[best] = False
        before = _open(seen, maps)
        chosen = places[best].flatten()
        within = left[:, chosen][:, :, chosen] + floor * torch.eye(len(chosen))
        taken = torch.linalg.solve(within, left[:, chosen])  # [sites, chosen, d]
        seen.baddbmm_(seen[:, :, chosen], taken, alpha=-1)
        left.baddbmm_(left[:, :, chosen], taken, alpha=-1)
        after = _open(seen, maps)
        order += best.tolist()
        steps = torch.arange(1, n_taken + 1)[:, None] / n_taken
        open_shares += list((before + steps * (after - before)).clamp(min=0))
    found = torch.stack(open_shares)
    return Telling(order=torch.tensor(order), left=found[:, 0] if len(seconds) == 1 else (found / totals).mean(dim=1))


def _one_by_one(left: Tensor, seen: Tensor, count: int, group: int, floor: Tensor, totals: Tensor) -> Tensor:
    """Choose among a few groups, looking anew after each; returns their places."""
    places = torch.arange(left.shape[1]).view(-1, group)
    left, seen = left.clone(), seen.clone()
    is_free = torch.ones(len(places), dtype=torch.bool)
    order = []
    for _ in range(count):
        gains = (_gains(left, seen, places, floor) / totals[:, None]).mean(dim=0).masked_fill(~is_free, -1)
        best = int(gains.argmax())
        order.append(best)
        is_free[best] = False
        chosen = places[best]
        taken = torch.linalg.solve(left[:, chosen][:, :, chosen] + floor * torch.eye(group), left[:, chosen])
        seen -= seen[:, :, chosen] @ taken
        left -= left[:, :, chosen] @ taken
    return torch.tensor(order)


def _open(seen: Tensor, maps: Tensor) -> Tensor:
    return (seen * maps).sum(dim=(1, 2))


def _gains(left: Tensor, seen: Tensor, places: Tensor, floor: Tensor) -> Tensor:
    """Return by how much each group would lower the open variance of each site, ``[sites, groups]``."""
    if places.shape[1] == 1:
        return seen.square().sum(dim=1) / (left.diagonal(dim1=1, dim2=2) + floor[:, 0])
    within = left[:, places[:, :, None], places[:, None, :]] + floor[..., None] * torch.eye(places.shape[1])
    effects = seen[:, :, places]  # [sites, outputs, groups, group]
    products = torch.einsum("sogi,sogj->sgij", effects, effects)
    return torch.linalg.solve(within, products).diagonal(dim1=2, dim2=3).sum(dim=2)


def _root(reader: Tensor) -> Tensor:
    """Return ``[d, d]`` whose products of columns are those of the reader."""
    values, vectors = torch.linalg.eigh(reader.T @ reader)
    return values.clamp(min=0).sqrt()[:, None] * vectors.T
