"""How long the blocks of a ranker take on this machine, by heads and by neurons: a look-up table out of graphs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnxruntime as ort

from compressor.export.encoder import write_graph
from compressor.progress import progress
from compressor.ranker.cost import QUERY_TOKENS
from compressor.ranker.encoder import random_weights
from compressor.ranker.narrowing import narrowed
from compressor.ranker.rounding import round_spec
from compressor.ranker.spec import Int8Dynamic, Int8Rows, RankerSpec
from compressor.runtime.ranker import BATCH_TOKENS
from compressor.runtime.session import session_options
from compressor.runtime.threads import available_threads

Precision = Literal["fp32", "int8"]
Table = tuple[np.ndarray, np.ndarray]  # numbers of units, ascending from 0, and what a block of so many takes

_PROBED = 3  # equal layers of a graph: one alone takes little beside what is around it
_POINTS = 6  # widths that are timed of each kind; between them times are interpolated
_ROUNDS = 9


@dataclass(frozen=True, kw_only=True)
class BlockTimes:
    """What each block of a ranker takes, in ms a pair; the times of blocks add up.

    Attributes:
        rest_ms: all that is left of the ranker without heads and neurons.
        inner: ``heads`` and ``neurons``: the table of any layer but the last.
        last: those of the last layer, of which only the first token may be asked for.
        n_tokens, threads, precision: what was timed.
    """

    rest_ms: float
    inner: Mapping[str, Table]
    last: Mapping[str, Table]
    n_tokens: int
    threads: int
    precision: Precision

    def of(self, spec: RankerSpec) -> float:
        """Return the time of a pair in ms, of a ranker that differs from the timed one by its widths alone."""
        total = self.rest_ms
        for index, layer in enumerate(spec.layers):
            tables = self.last if index == len(spec.layers) - 1 else self.inner
            total += float(np.interp(layer.heads, *tables["heads"]) + np.interp(layer.ffn_width, *tables["neurons"]))
        return total

    def measured_share(self, whole: RankerSpec, small: RankerSpec) -> float:
        """Time both as they are and return the share of the time that is left: what the sum of blocks foretold."""
        before, after = measure_times([whole, small], self.n_tokens, self.threads, self.precision)
        return after / before

    def as_json(self) -> dict[str, object]:
        """Return the tables for a ranker's history."""

        def shown(tables: Mapping[str, Table]) -> dict[str, dict[str, float]]:
            return {
                name: {str(int(units)): round(float(ms), 5) for units, ms in zip(*table, strict=True)}
                for name, table in tables.items()
            }

        return {
            "tokens": self.n_tokens, "threads": self.threads, "precision": self.precision,
            "rest_ms": round(self.rest_ms, 5), "inner_ms": shown(self.inner), "last_ms": shown(self.last),
        }  # fmt: skip


def measure_block_times(
    spec: RankerSpec, n_tokens: int, *, threads: int | None = None, precision: Precision = "fp32"
) -> BlockTimes:
    """Time graphs of several widths on this machine, interleaved, and take them apart into their blocks.

    Graphs hold random weights, which take as long as others. Where layers differ, the widest stands for all: windows of
    attention, which full batches of short pairs do not tell from full attention, are taken for it.

    Args:
        spec: the whole ranker.
        n_tokens: tokens of a pair.
        threads: of ONNX Runtime; by default all at hand.
        precision: that of the graphs.
    """
    n_layers = len(spec.layers)
    most_heads = max(spec.layers, key=lambda layer: layer.heads)
    most_neurons = max(spec.layers, key=lambda layer: layer.ffn_width)
    inner = most_heads.changed(ffn=most_neurons.ffn, ffn_norm=most_neurons.ffn_norm, exit=None)
    probed = min(_PROBED, n_layers - 1)
    shape = spec.without_exits().changed(layers=(inner,) * probed + (spec.layers[-1].changed(exit=None),))
    none = [0] * (probed + 1)
    specs = {("rest", 0): _with_widths(spec.without_exits().changed(layers=(inner,) * n_layers), [0] * n_layers)}
    specs[("none", 0)] = _with_widths(shape, none)
    for kind, most in (("heads", inner.heads), ("neurons", inner.ffn_width)):
        for units in _points(most) if probed else ():
            specs[(kind, units)] = _with_widths(shape, none, **{kind: [units] * probed + [0]})
    for kind, most in (("last heads", shape.layers[-1].heads), ("last neurons", shape.layers[-1].ffn_width)):
        if most:
            specs[(kind, most)] = _with_widths(shape, none, **{kind.split()[1]: [0] * probed + [most]})
    threads = threads or available_threads()
    times = dict(zip(specs, measure_times(list(specs.values()), n_tokens, threads, precision), strict=True))
    without = times["none", 0]

    def table(kind: str, n_blocks: int) -> Table:
        units = [units for name, units in specs if name == kind]
        found = [(times[kind, each] - without) / n_blocks for each in units]
        # More units never take less: what says so is noise, and a budget could not be shared out by it.
        return np.array([0.0, *units]), np.maximum.accumulate([0.0, *found])

    return BlockTimes(
        rest_ms=times["rest", 0],
        inner={kind: table(kind, probed) for kind in ("heads", "neurons")},
        last={kind: table(f"last {kind}", 1) for kind in ("heads", "neurons")},
        n_tokens=n_tokens, threads=threads, precision=precision,
    )  # fmt: skip


def measure_times(
    specs: Sequence[RankerSpec], n_tokens: int, threads: int, precision: Precision = "fp32"
) -> list[float]:
    """Return the time of a pair in ms for rankers of these shapes: medians of interleaved rounds on full batches."""
    trials = [(spec, n_tokens) for spec in specs]
    return measure_trials(trials, pairs_of_batch(n_tokens), threads, precision)


def pairs_of_batch(n_tokens: int) -> int:
    """Return how many pairs of so many tokens fill a batch."""
    return max(1, BATCH_TOKENS // n_tokens)


def measure_trials(
    trials: Sequence[tuple[RankerSpec, int]], n_pairs: int, threads: int, precision: Precision = "fp32"
) -> list[float]:
    """Return the time of a pair in ms for each of some shapes on pairs of some number of tokens.

    Args:
        trials: shapes and numbers of tokens; the same shape, which is the same object, is one session.
        n_pairs: of a batch.
        threads: of ONNX Runtime.
        precision: of the graphs.
    """
    draw = np.random.default_rng(0)
    runs: list[list[float]] = [[] for _ in trials]
    sessions: dict[int, ort.InferenceSession] = {}
    with progress(f"Timing {len(trials)} shapes, {threads} thread(s)", len(trials) * (_ROUNDS + 1)) as advance:
        for spec, n_tokens in trials:
            if id(spec) not in sessions:
                sessions[id(spec)] = _session(spec, threads, precision)
            sessions[id(spec)].run(None, _batch(sessions[id(spec)], n_pairs, n_tokens, spec.pad_id + 1))
            advance()
        for _ in range(_ROUNDS):
            for which in draw.permutation(len(trials)):
                spec, n_tokens = trials[which]
                session = sessions[id(spec)]
                batch = _batch(session, n_pairs, n_tokens, spec.pad_id + 1)
                start = time.perf_counter()
                session.run(None, batch)
                runs[which].append(time.perf_counter() - start)
                advance()
    return [float(np.median(times)) * 1e3 / n_pairs for times in runs]


def _points(most: int) -> list[int]:
    return sorted({max(1, round(most * place / _POINTS)) for place in range(1, _POINTS + 1)}) if most else []


def _with_widths(
    spec: RankerSpec, none: Sequence[int], heads: Sequence[int] | None = None, neurons: Sequence[int] | None = None
) -> RankerSpec:
    return narrowed(spec, width=spec.width, heads=heads or none, ffn_widths=neurons or none)


def _session(spec: RankerSpec, threads: int, precision: Precision) -> ort.InferenceSession:
    spec = spec.without_exits()
    tokens = spec.embeddings.tokens.changed(rows=spec.pad_id + 2)  # a lookup takes as long in a small table
    spec = spec.changed(embeddings=spec.embeddings.changed(tokens=tokens))
    if spec.rule_layers:
        spec = spec.changed(separator_id=spec.pad_id + 1)
    if precision == "int8":
        spec = round_spec(spec, Int8Dynamic(), Int8Rows())
    graph = write_graph(spec, random_weights(spec, seed=0)).SerializeToString()
    return ort.InferenceSession(graph, session_options(threads), providers=["CPUExecutionProvider"])


def _batch(session: ort.InferenceSession, n_pairs: int, n_tokens: int, separator: int) -> dict[str, np.ndarray]:
    """Return rows with a query of `QUERY_TOKENS` and a document, as `compressor.ranker.cost.macs` takes them to be."""
    ones = np.ones((n_pairs, n_tokens), dtype=np.int64)
    batch = {node.name: ones if node.name == "attention_mask" else 0 * ones for node in session.get_inputs()}
    batch["input_ids"][:, [min(QUERY_TOKENS + 1, n_tokens - 1), -1]] = separator
    return batch
