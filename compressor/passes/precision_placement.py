"""Which linears stay in a higher precision so that scores move no further than allowed, at the least cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from compressor.algorithms.score_shifts import digits
from compressor.errors import Fault, InputError
from compressor.gate_settings import PositiveFloat
from compressor.passes.contract import Supply
from compressor.ranker.cost import linear_weights, linears_of, macs_by_linear
from compressor.ranker.spec import Float32, Int4Blocks, Int8Blocks, Int8Dynamic, LinearPrecision
from compressor.records import Record

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.algorithms.kept_precisions import RoundedBut
    from compressor.algorithms.score_shifts import ScoreShift
    from compressor.algorithms.sensitivity import Rounding
    from compressor.ranker.ranker import Ranker
    from compressor.ranker.spec import TablePrecision

_HIGHER: dict[str, tuple[str, ...]] = {
    "int4_blocks": ("fp32", "int8_blocks", "int8_dynamic"),
    "int8_dynamic": ("fp32", "int8_blocks"),
    "int8_static": ("fp32", "int8_blocks"),
    "int8_blocks": ("fp32",),
}
_BITS = {"fp32": 32, "int8_dynamic": 8, "int8_static": 8, "int8_blocks": 8, "int4_blocks": 4}
_SCALE_BITS = 32  # one scale for each block
_ANEW = 1  # added to the seed: other lists, of which some queries may have been seen


class KeepWithin(Record):
    """How far scores may move, and what the linears that stay better compute in. Limits are means over lists.

    Every linear (those that read one input together) is rounded alone, and the squared change of scores within lists is
    measured. Those whose change per unit of cost is largest are kept, as few as meet the limits when all is rounded as
    it will be: that is measured too, since small errors only about add up. It takes about half as many runs over the
    pairs as there are linears.

    ``max_score_rmse``: root mean square change in logits, each list's mean change taken out.
    ``min_kendall_tau``: τ-b of the order before and after. ``max_ndcg_loss``: of an nDCG@10 whose gains are the places
    of the order before. One limit or more.
    ``precision``: of what is kept: ``fp32``, ``int8_blocks`` or ``int8_dynamic`` (with which scores depend on batch
    mates), above the scheme's own.
    ``cost``: of which as little as possible is kept: ``macs``, for speed, or ``bytes``.
    ``n_pairs``, ``candidates``: calibration pairs, and how many of them a query has. No judgments are needed.

    What is kept was chosen on these lists; the notes say how it does on lists drawn anew, too.
    """

    max_score_rmse: PositiveFloat | None = None
    min_kendall_tau: Annotated[float, Field(gt=0, le=1)] | None = None
    max_ndcg_loss: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["fp32", "int8_blocks", "int8_dynamic"] = "fp32"
    cost: Literal["macs", "bytes"] = "macs"
    n_pairs: PositiveInt = 256
    candidates: Annotated[int, Field(ge=2)] = 16

    @model_validator(mode="after")
    def _limited(self) -> Self:
        if self.max_score_rmse is None and self.min_kendall_tau is None and self.max_ndcg_loss is None:
            raise ValueError("name a limit: max_score_rmse, min_kendall_tau or max_ndcg_loss")
        return self

    def placed(
        self, ranker: Ranker, precisions: Mapping[str, LinearPrecision], table: TablePrecision | None,
        ranges: Mapping[str, Tensor], supply: Supply,
    ) -> dict[str, LinearPrecision]:  # fmt: skip
        """Return the precision of each linear that will not be fp32, and note what it was chosen by.

        Args:
            ranker: in fp32.
            precisions: by name, what may be rounded and how.
            table: the precision of lookup tables; None leaves them.
            ranges: of inputs, for linears in ``int8_static``.
            supply: calibration data and the store of measurements.

        Raises:
            InputError: the lists are too short to have an order, or no choice is within the limits.
        """
        from compressor.algorithms.kept_precisions import RoundedBut, fewest_kept, worth_keeping
        from compressor.algorithms.score_shifts import list_places
        from compressor.algorithms.sensitivity import by_shared_input

        pairs = supply.pairs("calibration", self.n_pairs, per_query=self.candidates)
        data = supply.data("calibration")
        if not list_places([query for query, _ in pairs]):
            found, fix = "no query with two candidates, which have an order", "name other data.calibration"
            raise InputError(Fault(source=data.name, found=found, fix=fix))
        groups = by_shared_input(list(precisions))
        mix = RoundedBut(
            ranker=ranker, table=table, ranges=ranges,
            low={group: {name: precisions[name] for name in names} for group, names in groups.items()},
            high={group: {name: self._higher(precisions[name]) for name in names} for group, names in groups.items()},
        )  # fmt: skip
        low, high = self._sensitivities(mix, pairs, supply.scratch)
        gains = {group: low[group].squared - (high[group].squared if high else 0.0) for group in groups}
        costs = self._costs(ranker, pairs, mix)
        order = worth_keeping(gains, costs)
        exact = ranker.score(pairs)
        joint = cache(lambda n_kept: mix.shift(order[:n_kept], pairs, exact))
        n_kept = fewest_kept(len(order), lambda number: not self._broken(joint(number)))
        if n_kept is None:
            helpful = sum(len(groups[group]) for group in order)
            raise self._out_of_reach(joint(len(order)), f"{helpful} of {len(precisions)} linears", table)
        kept = order[:n_kept]
        better = {group: high[group].squared if high else 0.0 for group in kept}
        predicted = sum(better.get(group, low[group].squared) for group in groups) ** 0.5
        supply.note("sensitivity", [_row(group, low, high, group in kept) for group in groups])
        supply.note("kept", [name for group, names in groups.items() if group in kept for name in names])
        supply.note("kept_precision", self.precision)
        share = sum(costs[group] for group in kept) / sum(costs.values())
        supply.note("kept_share", {self.cost: round(share, 4)})
        supply.note("all_rounded", joint(0).as_json())
        supply.note("predicted", {"score_rmse": digits(predicted)})
        supply.note("joint", joint(n_kept).as_json())
        anew = data.texts(data.sample_pairs(self.n_pairs, supply.seed + _ANEW, self.candidates))
        supply.note("drawn_anew", mix.shift(kept, anew, ranker.score(anew)).as_json())
        return mix.precisions(kept)

    def _sensitivities(
        self, mix: RoundedBut, pairs: Sequence[tuple[str, str]], scratch: Path
    ) -> tuple[dict[str, ScoreShift], dict[str, ScoreShift]]:
        """Return what each group alone does in the scheme, and, where it is not fp32, in the higher precision."""
        from compressor.algorithms.sensitivity import measure_sensitivity

        def measured(trials: Mapping[str, Rounding]) -> dict[str, ScoreShift]:
            kind = next(precision.kind for rounding in trials.values() for precision in rounding.values())
            return measure_sensitivity(
                mix.ranker, pairs, trials, mix.ranges,
                store=scratch / f"sensitivity-{kind}.json", text=f"Rounding one by one to {kind}",
            )  # fmt: skip

        return measured(mix.low), {} if self.precision == "fp32" else measured(mix.high)

    def _higher(self, precision: LinearPrecision) -> LinearPrecision:
        """Return what a linear of the scheme computes in when it is kept."""
        match self.precision:
            case "fp32":
                return Float32()
            case "int8_dynamic":
                return Int8Dynamic()
            case "int8_blocks":
                return (
                    Int8Blocks(block_size=precision.block_size) if isinstance(precision, Int4Blocks) else Int8Blocks()
                )

    def _costs(self, ranker: Ranker, pairs: Sequence[tuple[str, str]], mix: RoundedBut) -> dict[str, float]:
        """Return what keeping each group costs: its multiply-adds in a pair of mean length, or the bytes it adds."""
        if self.cost == "macs":
            n_tokens = max(1, round(float(ranker.tokenizer.encode_pairs(pairs).lengths.mean())))
            macs = macs_by_linear(ranker.spec, n_tokens)
            return {group: float(sum(macs[name] for name in rounding)) for group, rounding in mix.low.items()}
        weights = {name: linear_weights(linear) for name, linear in linears_of(ranker.spec)}
        return {
            group: sum(
                weights[name] * (_bits(mix.high[group][name]) - _bits(precision)) / 8
                for name, precision in rounding.items()
            )
            for group, rounding in mix.low.items()
        }

    def _broken(self, shift: ScoreShift) -> list[tuple[str, float, str]]:
        """Return the limits that do not hold: their name, what was found, and what is allowed."""
        limits = [
            ("max_score_rmse", shift.score_rmse, self.max_score_rmse, "at most"),
            ("min_kendall_tau", shift.kendall_tau, self.min_kendall_tau, "at least"),
            ("max_ndcg_loss", shift.ndcg_loss, self.max_ndcg_loss, "at most"),
        ]
        return [
            (name, found, f"{word} {limit:g}")
            for name, found, limit, word in limits
            if limit is not None and (found < limit if word == "at least" else found > limit)
        ]

    def _out_of_reach(self, shift: ScoreShift, linears: str, table: TablePrecision | None) -> InputError:
        """Return what is to be said when all that helps is kept and a limit is still broken."""
        kept = f"{linears} in {self.precision}, all that gain by it"
        tables = f", and lookup tables in {table.kind}" if table else ""
        fixes = ["allow more"]
        fixes += ["keep in fp32"] if self.precision != "fp32" else []
        fixes += ["leave tables as they are (embeddings: false)"] if table else []
        faults = [
            Fault(
                source="quantize",
                where=f"keep_within.{name}",
                found=f"{found:.4g} with {kept}{tables}",
                allowed=allowed,
                fix=" or ".join(fixes),
            )
            for name, found, allowed in self._broken(shift)
        ]
        return InputError(faults)


def refuse_unfit(keep: KeepWithin, scheme: str) -> None:
    """Refuse a scheme above which there is nothing to choose, or whose precision is no lower than what is kept.

    Raises:
        ValueError: names the precisions that can be kept.
    """
    if scheme not in _HIGHER:
        raise ValueError(f"keep_within chooses linears of {', '.join(_HIGHER)}, not of {scheme}: use keep_fp32")
    if keep.precision not in _HIGHER[scheme]:
        raise ValueError(f"keep_within.precision of {scheme} is {' or '.join(_HIGHER[scheme])}, not {keep.precision}")


def _bits(precision: LinearPrecision) -> float:
    """Return the bits that a weight takes, with its part in the scale of its block."""
    scale = _SCALE_BITS / precision.block_size if isinstance(precision, Int8Blocks | Int4Blocks) else 0
    return _BITS[precision.kind] + scale


def _row(group: str, low: Mapping[str, ScoreShift], high: Mapping[str, ScoreShift], is_kept: bool) -> dict[str, Any]:
    """Return what the report plots of one group of linears."""
    better = {"score_rmse_when_kept": digits(high[group].score_rmse)} if high else {}
    return {"linears": group, **low[group].as_json(), **better, "is_kept": is_kept}
