"""Which linears get factors, and of what rank within a budget: what passes that factorize share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from compressor.algorithms.budgets import BudgetError, shared_out
from compressor.passes.contract import PlanError
from compressor.passes.width_budget import PLANNED_TOKENS, Budget
from compressor.ranker.cost import linear_weights
from compressor.ranker.forms import layer_linears, with_forms
from compressor.ranker.spec import DenseForm, LinearSpec, LowRankForm, RankerSpec
from compressor.records import Record

Which = Literal["all", "ffn", "attention"] | Annotated[tuple[str, ...], Field(min_length=1)]

_PATTERNS = {"all": ("layers.*",), "ffn": ("layers.*.ffn.*",), "attention": ("layers.*.attention.*",)}


class RankSettings(Record):
    """Which linears get factors, and of what rank; `compressor.passes.factorize` has the words."""

    budget: Budget | None = None
    rank: PositiveInt | None = None
    linears: Which = "all"
    round_to: PositiveInt = 16

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.budget is None) == (self.rank is None):
            raise ValueError("name a budget, or a rank")
        return self

    @property
    def keeps_all(self) -> bool:
        return self.budget is not None and self.budget.share == 1

    def planned_ranks(self, spec: RankerSpec) -> dict[str, int]:
        """Return about the ranks that the settings leave, before anything is measured: all energies fall off alike.

        Raises:
            PlanError: no linear is named, none would get smaller, or the budget is too small.
        """
        found = self.candidates(spec)
        losses = {name: (1 - np.arange(_full_rank(one) + 1) / _full_rank(one)) ** 2 for name, one in found.items()}
        return self.ranks(spec, losses, PLANNED_TOKENS)

    def ranks(self, spec: RankerSpec, losses: Mapping[str, np.ndarray], n_tokens: int) -> dict[str, int]:
        """Return the rank of each linear that gets factors.

        Args:
            spec: the shape.
            losses: for each candidate, what is lost when the first 0, 1, 2 ... parts of its matrix stay.
            n_tokens: the length of a pair at which multiply-adds are counted.

        Raises:
            PlanError: as of `planned_ranks`.
        """
        candidates = self.candidates(spec)
        if self.rank is not None:
            return {name: self.rank for name, one in candidates.items() if self.rank <= break_even(one)}
        assert self.budget is not None  # noqa: S101  # the record has one or the other
        whole = self.budget.cost(spec, n_tokens)
        names, options, found, costs = list(candidates), [], [], []
        for name, one in candidates.items():
            ranks = list(range(self.round_to, break_even(one) + 1, self.round_to))
            thin = with_forms(spec, {name: LowRankForm(rank=1)})
            saved = linear_weights(one) - (one.inputs + one.outputs)
            uses = (whole - self.budget.cost(thin, n_tokens)) / saved  # tokens that run through it, or 1
            options.append([*ranks, None])
            found.append(np.array([*np.asarray(losses[name], dtype=np.float64)[ranks], 0.0]))
            costs.append(uses * np.array([*((one.inputs + one.outputs) * r for r in ranks), linear_weights(one)]))
        rest = whole - sum(float(cost[-1]) for cost in costs)
        try:
            chosen = shared_out(found, costs, self.budget.share * whole - rest)
        except BudgetError as error:
            least = (error.least + rest) / whole
            fix = "name a larger share, more linears, or a smaller round_to"
            raise self.budget.too_small(least, f"at rank {self.round_to}", f"{n_tokens} tokens", fix=fix) from None
        picked = zip(names, options, chosen, strict=True)
        return {name: rank for name, each, choice in picked if (rank := each[choice]) is not None}

    def candidates(self, spec: RankerSpec) -> dict[str, LinearSpec]:
        """Return the linears whose factors can be smaller than their matrix.

        Raises:
            PlanError: there is none, or the budget is one of latency.
        """
        if self.budget and self.budget.latency is not None:
            raise PlanError(
                "a budget in latency, of which nothing is known before thin products are timed",
                allowed="macs or parameters",
                fix="see what latency a share of macs gives",
                setting="budget",
            )
        named = chosen_linears(spec, self.linears)
        least = self.rank or self.round_to
        paying = {name: one for name, one in named.items() if least <= break_even(one)}
        if not paying:
            limits = sorted({(one.outputs, one.inputs, break_even(one)) for one in named.values()})
            shown = ", ".join(f"{limit} for {rows} × {columns}" for rows, columns, limit in limits)
            raise PlanError(
                f"rank {least}, at which factors are as large as the matrices that they stand for, or larger",
                allowed=f"up to {shown}",
                setting="rank" if self.rank else "round_to",
            )
        return paying


def named_linears(spec: RankerSpec, which: Which, setting: str = "linears") -> dict[str, LinearSpec]:
    """Return the linears of the layers that are meant, whatever their forms.

    Raises:
        PlanError: a pattern names none.
    """
    patterns: Sequence[str] = _PATTERNS[which] if isinstance(which, str) else which
    found = layer_linears(spec)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise PlanError(
                f"{pattern!r}, which names no linear of a layer",
                allowed=", ".join(sorted({name.split(".", 2)[2] for name in found})) + " behind layers.NUMBER.",
                setting=setting,
            )
    return {name: one for name, one in found.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def chosen_linears(spec: RankerSpec, which: Which) -> dict[str, LinearSpec]:
    """Return the linears of the layers that are meant and still one matrix each.

    Raises:
        PlanError: there is none, or a pattern names none.
    """
    named = named_linears(spec, which)
    dense = {name: one for name, one in named.items() if isinstance(one.form, DenseForm)}
    if not dense:
        reason = f"{len(named)} linears, all of them factorized already"
        raise PlanError(reason, allowed="linears of one matrix", fix="name other linears", setting="linears")
    return dense


def low_rank_spec(spec: RankerSpec, ranks: Mapping[str, int]) -> RankerSpec:
    """Return a spec with factors of these ranks in these linears."""
    return with_forms(spec, {name: LowRankForm(rank=rank) for name, rank in ranks.items()})


def break_even(linear: LinearSpec) -> int:
    """Return the largest rank at which two factors have fewer weights than the matrix: in · out / (in + out)."""
    return (linear.inputs * linear.outputs - 1) // (linear.inputs + linear.outputs)


def _full_rank(linear: LinearSpec) -> int:
    return min(linear.inputs, linear.outputs)
