"""How a row's speed-up over a baseline changed from one run to another.

A ratio is taken within interleaved turns, where drift of the machine cancels. The interval of its change holds what
queries and rounds of the two runs say; what differs between two runs as a whole (another machine of the same class,
memory laid out otherwise) is not in it. So every other baseline that both runs have is told as a control: nothing was
done to it, and yet its ratio moved.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compressor.bench.comparison import Allowed, Change, Side, shared_references
from compressor.bench.figures import shown_share
from compressor.bench.gate import FEWEST_TIMED_QUERIES, speed_verdict
from compressor.bench.schema import Machine, Row
from compressor.bench.speed_ratios import Speedup, speedup_change, spread_of_rounds
from compressor.errors import Fault, InputError
from compressor.gate_settings import STOCK_ONNX

_ON_GPUS = ("onnx_cuda", "onnx_tensorrt")


def slowdowns(old: Side, new: Side, row: Row, allowed: Allowed) -> Iterator[Change]:
    """Yield how a row's time per query changed beside a baseline's, at every thread count that both reports have.

    Speeds from two classes of CPUs, or two kinds of GPUs, stay undecided: ratios do not carry over.

    Raises:
        InputError: times that are not positive, or not of the same rounds and queries as the baseline's.
    """
    baseline = allowed.baseline or _baseline_of(row, shared_references(old, new))
    if baseline is None or baseline == row.name:
        return
    for threads in _shared_threads(old, new, row.name):
        was, now = (_ratios(side, row.name, baseline, threads) for side in (old, new))
        change = _change(old, new, was, now)
        low, high = 1 / change.high - 1, 1 / change.low - 1
        n = min(was.shape[1], now.shape[1])
        verdict = speed_verdict(change.low, change.high, 1 / (1 + allowed.max_slowdown), n)
        rest = f", interval {shown_share(low)} to {shown_share(high)}; "
        rest += f"allowed is at most {shown_share(allowed.max_slowdown)}"
        if reason := _not_comparable(old.report.machine, new.report.machine, row):
            verdict, rest = "undecided", f", but {reason}"
        elif n < FEWEST_TIMED_QUERIES:
            rest = f", but {n} timed queries are too few to bound it ({FEWEST_TIMED_QUERIES} needed)"
        elif verdict == "undecided":
            rest += "; more rounds or queries, or a quieter machine, would decide"
        value, noise = 1 / change.ratio - 1, max(spread_of_rounds(was), spread_of_rounds(now))
        before, after = float(np.median(was)), float(np.median(now))
        name = f"time beside {baseline}, {threads} thread{'s' * (threads != 1)}"
        yield Change(
            name=name, row=row.name, kind="speedup", verdict=verdict, value=value,
            bound=low if verdict == "fail" else high, limit=allowed.max_slowdown, unit="share", level=0.05, n=n,
            threads=threads, old=before, new=after, interval=(low, high), noise=noise,
            sentence=f"{row.name}: {name}, changed by {shown_share(value)} ({before:.2f}× as fast as it before, "
            f"{after:.2f}× now){rest}. Rounds of one run lie up to {100 * noise:.1f} % apart.",
        )  # fmt: skip


def controls(old: Side, new: Side, allowed: Allowed) -> Iterator[str]:
    """Yield how far the ratios of two baselines moved, to which nothing was done between the runs."""
    shared = shared_references(old, new)
    reference = allowed.baseline or (STOCK_ONNX if STOCK_ONNX in shared else next(iter(shared), None))
    for name in shared:
        if reference is None or name == reference or new.report.row(name).kind != "baseline":
            continue
        for threads in _shared_threads(old, new, name):
            change = _change(old, new, *(_ratios(side, name, reference, threads) for side in (old, new)))
            low, high = (shown_share(1 / bound - 1) for bound in (change.high, change.low))
            yield (
                f"control: the time of {name} beside {reference}, {threads} thread{'s' * (threads != 1)}, changed by "
                f"{shown_share(1 / change.ratio - 1)} ({low} to {high}), though no recipe touches either"
            )


def _baseline_of(row: Row, shared: list[str]) -> str | None:
    """Return the stock export in the row's own runtime, so that no change is one of runtimes alone, or in ONNX's."""
    _, at, target = row.name.rpartition(" @ ")
    preferred = [f"{STOCK_ONNX} @ {target}"] if at else []
    return next((name for name in (*preferred, STOCK_ONNX, *shared) if name in shared), None)


def _shared_threads(old: Side, new: Side, name: str) -> list[int]:
    before = {one.threads for one in old.report.row(name).latency}
    return [one.threads for one in new.report.row(name).latency if one.threads in before]


def _ratios(side: Side, name: str, baseline: str, threads: int) -> np.ndarray:
    """Return baseline time / row time of every turn, float64 [rounds, queries]."""
    times, shapes = [], set()
    for one in (baseline, name):
        found = next((each.samples_ms for each in side.report.row(one).latency if each.threads == threads), [])
        shapes.add(tuple(map(len, found)))
        times.append(found)
    (shape, *others) = shapes
    if others or len(set(shape)) != 1 or 0 in shape or min(min(turn) for found in times for turn in found) <= 0:
        place, said = f"{name}, {baseline}, {threads} threads", "times of other rounds or queries, or not above 0"
        raise InputError(Fault(source=side.source, where=place, found=said))
    baseline_ms, row_ms = map(np.array, times)
    ratios: np.ndarray = baseline_ms / row_ms
    return ratios


def _change(old: Side, new: Side, was: np.ndarray, now: np.ndarray) -> Speedup:
    """Compare ratios; in pairs where both runs drew their queries alike: the fewer are then the first of the more."""
    one, other = old.report, new.report
    alike = list(one.data.items()) == list(other.data.items()) and one.settings.seed == other.settings.seed
    n = min(was.shape[1], now.shape[1]) if alike else None
    return speedup_change(was[:, :n], now[:, :n], same_queries=alike)


def _not_comparable(old: Machine, new: Machine, row: Row) -> str:
    """Say why a row's speed on one machine says nothing of that on the other; empty where it may."""
    if row.engine in _ON_GPUS:
        different = f"the GPU was {', '.join(old.gpus)} and is {', '.join(new.gpus)}" if old.gpus != new.gpus else ""
    else:
        known = "unknown" not in (old.cpu_class, new.cpu_class)
        different = (
            f"the CPU's class was {old.cpu_class} and is {new.cpu_class}"
            if known and old.cpu_class != new.cpu_class
            else ""
        )
    return different and f"{different}: ratios do not carry over"
