"""What differs between two reports beside what was measured, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compressor.bench.comparison import Side
from compressor.bench.figures import shown_mb
from compressor.bench.schema import Report
from compressor.errors import Fault, InputError

_BUSY_SHARE = 0.05  # above that, other work may have moved the ratios, too
_NOTHING = "nothing"


def check_same_data(old: Side, new: Side) -> list[str]:
    """Return the data sets that both reports have.

    Raises:
        InputError: they have none in common, or one of the same name with other queries, documents, judgments or
            candidates: what differs could not be told from what the ranker did.
    """
    before, after = old.report.data, new.report.data
    shared = [name for name in after if name in before]
    faults = []
    if not shared:
        found = f"other data: {', '.join(after)}"
        faults.append(Fault(source=new.source, where="data", found=found, allowed=", ".join(before)))
    for name in shared:
        one, other = before[name], after[name]
        if one.fingerprint != other.fingerprint or set(one.judged_ids) != set(other.judged_ids):
            told = [f"{what} {was} → {now}" for what, was, now in (
                ("fingerprint", one.fingerprint[:12], other.fingerprint[:12]),
                ("first stage", one.first_stage, other.first_stage), ("candidates", one.candidates, other.candidates),
                ("queries", one.n_queries, other.n_queries), ("judged", len(one.judged_ids), len(other.judged_ids)),
            ) if was != now]  # fmt: skip
            fix = f"measure again on the data of {old.source}"
            found = f"other data of this name: {', '.join(told) or 'other queries are judged'}"
            faults.append(Fault(source=new.source, where=f"data.{name}", found=found, fix=fix))
    if faults:
        raise InputError(faults)
    return shared


def differences(old: Report, new: Report, shared: Sequence[str]) -> list[str]:
    """Say what differs: machine, versions, settings, data and rows that only one report has, files, the teacher.

    Args:
        shared: the data sets that both reports have.
    """
    return [*_of_machines(old, new), *_of_settings(old, new), *_of_contents(old, new), *_of_teachers(old, new, shared)]


def _of_machines(old: Report, new: Report) -> Iterator[str]:
    one, other = old.machine, new.machine
    for what, was, now in (
        ("CPU", one.cpu, other.cpu),
        ("CPU class", one.cpu_class, other.cpu_class),
        ("architecture", one.architecture, other.architecture),
        ("logical CPUs", one.logical_cpus, other.logical_cpus),
        ("available threads", one.available_threads, other.available_threads),
        ("CPU quota", one.cpu_quota, other.cpu_quota),
        ("GPUs", ", ".join(one.gpus), ", ".join(other.gpus)),
    ):
        yield from _changed(what, was, now)
    yield from _of_mappings("version of ", one.versions, other.versions)
    for word, report in (("old", old), ("new", new)):
        if (share := report.workload.busy_share or 0) > _BUSY_SHARE:
            yield f"the machine of the {word} report was busy: other work took {100 * share:.0f} % of its CPU time"


def _of_settings(old: Report, new: Report) -> Iterator[str]:
    yield from _of_mappings("bench.", old.settings.model_dump(mode="json"), new.settings.model_dump(mode="json"))
    yield from _changed("timed queries", old.workload.n_queries, new.workload.n_queries)
    yield from _changed("rounds", old.workload.rounds, new.workload.rounds)
    yield from _changed("tokens per pair, mean", old.workload.mean_tokens, new.workload.mean_tokens)


def _of_contents(old: Report, new: Report) -> Iterator[str]:
    before, after = {row.name: row for row in old.rows}, {row.name: row for row in new.rows}
    for word, names, others in (("old", before, after), ("new", after, before)):
        if alone := [name for name in names if name not in others]:
            yield f"rows of the {word} report alone: {', '.join(alone)}"
    for word, data, other_data in (("old", old.data, new.data), ("new", new.data, old.data)):
        if alone := [name for name in data if name not in other_data]:
            yield f"data of the {word} report alone: {', '.join(alone)}"
    for name in (name for name in after if name in before):
        one, other = before[name], after[name]
        yield from _changed(f"{name}: runtime", one.engine, other.engine)
        yield from _changed(f"{name}: file", one.file, other.file)
        yield from _changed(f"{name}: size", f"{shown_mb(one.size_bytes)} MB", f"{shown_mb(other.size_bytes)} MB")
        yield from _changed(f"{name}: parameters", one.parameters, other.parameters)


def _of_teachers(old: Report, new: Report, shared: Sequence[str]) -> Iterator[str]:
    """Say that losses and agreement of the two reports refer to different teachers."""
    if old.teacher != new.teacher:
        yield from _changed("teacher", old.teacher, new.teacher)
        return
    one, other = old.row(old.teacher), new.row(new.teacher)
    for data in shared:
        for measure, found in other.quality.get(data, {}).items():
            before = one.quality.get(data, {}).get(measure)
            if before and before.per_query != found.per_query:
                yield f"the teacher ranks otherwise: {measure} on {data} was {before.mean:.4f}, is {found.mean:.4f}"


def _of_mappings(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        yield from _changed(f"{what}{name}", old.get(name), new.get(name))


def _changed(what: str, old: Any, new: Any) -> Iterator[str]:
    if old != new:
        was, now = (_NOTHING if value in (None, "", []) else value for value in (old, new))
        yield f"{what}: {was} → {now}"
