"""Two reports of the same rows: did quality or speed regress from the old one to the new one?

The gate asks what a ranker lost beside its teacher; this asks what a change of recipe, library or machine did to it.
The statistics are the gate's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.bench.compare_speed import controls, slowdowns
from compressor.bench.comparison import WORDS, Allowed, Change, Comparison, Side, shared_references
from compressor.bench.gate import FIGURE_NAMES, Asked, overall, quality_check
from compressor.bench.report_differences import check_same_data, differences
from compressor.bench.schema import Row
from compressor.bench.significance import Claim, decide
from compressor.errors import Fault, InputError, suggest
from compressor.gate_settings import GateSettings, parse_margin

USUAL_LOSS = "1%"
_COMMAND_LINE = "command line"


def compare_reports(old: Side, new: Side, allowed: Allowed, *, row: str | None = None) -> Comparison:
    """Compare rows of two reports over the same data.

    1. Quality is paired per query: a claim that the mean of (new − old) lies above minus the allowed loss, decided as
       the gate does; all claims of one row are Holm-corrected together.
    2. Speed is the change of a ratio (`compare_speed`): baseline time / row time in interleaved turns, new over old.
       Absolute times of two runs are not compared.

    Args:
        row: the row to compare; None: every ranker that both reports have and that is the teacher of neither.

    Raises:
        InputError: other data, nothing in common, a name that is not in both, or figures that do not fit together.
    """
    shared = check_same_data(old, new)
    rows = _chosen_rows(old, new, row)
    _check_names(old, new, allowed)
    changes = [
        change
        for before, after in rows
        for change in (*_losses(old, new, before, after, allowed, shared), *slowdowns(old, new, after, allowed))
    ]
    if not changes:
        fix = "measure both on judged data, or at the same thread counts"
        raise InputError(Fault(source=new.source, found=f"no figure that {old.source} has too", fix=fix))
    verdict, counts = overall(changes)
    return Comparison(
        verdict=verdict, sentence=f"{WORDS[verdict]}: {counts}.", old=str(old), new=str(new), allowed=allowed,
        changes=changes, differences=[*differences(old.report, new.report, shared), *controls(old, new, allowed)],
    )  # fmt: skip


def _chosen_rows(old: Side, new: Side, name: str | None) -> list[tuple[Row, Row]]:
    """Pair the rows to compare. The same name in another runtime is another row."""
    before = {row.name: row for row in old.report.rows}
    shared = [row for row in new.report.rows if row.name in before and row.engine == before[row.name].engine]
    names = [row.name for row in shared]
    if name is not None and name not in names:
        found, allowed = f"{name!r}, not in both reports", ", ".join(names) or "nothing: no row is in both"
        raise InputError(
            Fault(source=_COMMAND_LINE, where="--row", found=found, allowed=allowed, fix=suggest(name, names))
        )
    teachers = {old.report.teacher, new.report.teacher}
    rankers = [one.name for one in shared if one.kind == "ranker" and one.name not in teachers]
    chosen = [one for one in shared if (one.name == name if name else one.name in rankers)]
    if not chosen:
        found, fix = f"no ranker that {old.source} has too", "name both folders alike, or choose a row by --row"
        raise InputError(Fault(source=new.source, found=found, allowed=", ".join(names), fix=fix))
    return [(before[one.name], one) for one in chosen]


def _check_names(old: Side, new: Side, allowed: Allowed) -> None:
    measures = [name for name in new.report.settings.measures if name in old.report.settings.measures]
    known, faults = [*measures, *FIGURE_NAMES], []
    for name in [name for name in allowed.max_loss if name not in known]:
        found, words = f"{name!r}, not in both reports", ", ".join(known)
        fix = suggest(name, known)
        faults.append(Fault(source=_COMMAND_LINE, where="--max-loss", found=found, allowed=words, fix=fix))
    against = shared_references(old, new)
    if allowed.baseline is not None and allowed.baseline not in against:
        found = f"{allowed.baseline!r}, over which not both reports measured speed-ups"
        words, fix = ", ".join(against), suggest(allowed.baseline, against)
        faults.append(Fault(source=_COMMAND_LINE, where="--baseline", found=found, allowed=words, fix=fix))
    if faults:
        raise InputError(faults)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Paired:
    """A claim about a mean over queries, with the means that it compares."""

    asked: Asked
    data: str
    old: float
    new: float


def _losses(
    old: Side, new: Side, before: Row, after: Row, allowed: Allowed, shared: Sequence[str]
) -> Iterator[Change]:  # fmt: skip
    settings = GateSettings()
    paired = [one for data in shared for one in _paired(old, new, before, after, data, allowed)]
    decisions = decide(
        [one.asked.claim for one in paired], confidence=settings.confidence, min_queries=settings.min_queries
    )  # fmt: skip
    for one, found in zip(paired, decisions, strict=True):
        check = quality_check(after, one.asked, found, settings)
        yield Change(**dict(check), data=one.data, old=one.old, new=one.new)


def _paired(old: Side, new: Side, before: Row, after: Row, data: str, allowed: Allowed) -> Iterator[_Paired]:
    old_values, new_values = _per_query(old, before, data), _per_query(new, after, data)
    both = [name for name in new_values if name in old_values]
    measures = [name for name in both if name not in FIGURE_NAMES]
    usual: Mapping[str, str | float] = dict.fromkeys(measures or {"kendall_tau"} & set(both), USUAL_LOSS)
    for name, margin_text in (allowed.max_loss or usual).items():
        if name not in both:
            continue
        ids = list(new_values[name])
        if set(ids) != set(old_values[name]):
            found = f"{name} of other queries than in {old.source}"
            raise InputError(Fault(source=new.source, where=f"{after.name}, {data}", found=found))
        was, now = (np.array([values[name][query] for query in ids]) for values in (old_values, new_values))
        margin = parse_margin(margin_text)
        limit = margin.absolute(float(was.mean()))
        share = f" ({margin_text} of the old {was.mean():.4f})" if margin.of_teacher else ""
        what = FIGURE_NAMES[name] + " with the teacher" if name in FIGURE_NAMES else name
        asked = Asked(
            name=f"loss of {what} on {data}", kind="loss", claim=Claim(values=now - was, limit=-limit), limit=limit,
            unit=name, sign=-1, allowed=f"{limit:.4f}{share}",
        )  # fmt: skip
        yield _Paired(asked=asked, data=data, old=float(was.mean()), new=float(now.mean()))


def _per_query(side: Side, row: Row, data: str) -> dict[str, dict[str, float]]:
    """Return measure or figure of agreement → query id → value."""
    summary = side.report.data[data]
    figures = [(name, found.per_query, summary.judged_ids) for name, found in row.quality.get(data, {}).items()]
    figures += [(name, found.per_query, summary.agreement_ids) for name, found in row.agreement.get(data, {}).items()
                if name in FIGURE_NAMES]  # fmt: skip
    for name, values, ids in figures:
        if len(values) != len(ids):
            found = f"{len(values)} values of {name} for {len(ids)} queries"
            raise InputError(Fault(source=side.source, where=f"{row.name}, {data}", found=found))
    return {name: dict(zip(ids, values, strict=True)) for name, values, ids in figures if values}
