"""How long the layers of a ranker take on this machine by the tokens that reach them, and what token rules take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.export.block_times import Precision, Table, measure_times, measure_trials, pairs_of_batch
from compressor.ranker.cost import document_tokens
from compressor.ranker.narrowing import narrowed
from compressor.ranker.spec import LayerSpec, RankerSpec, TokenRule
from compressor.ranker.token_rule_spec import shows_tokens
from compressor.runtime.threads import available_threads

_PROBED = 3  # equal layers of a graph: one alone takes little beside what is around it
_POINTS = 4  # numbers of tokens at which all is timed; between them times are interpolated


@dataclass(frozen=True, kw_only=True)
class TokenTimes:
    """What each part of a ranker takes, in ms a pair, by the tokens that reach it; the times of parts add up.

    Attributes:
        rest_ms: all that is of no layer, at ``n_tokens``.
        layers: the table of each layer; the last one's is that of the first token alone where only it is asked for.
        rules: the table of each rule: its scores, its choice, the new layout, what the layer loses by not having its
            attention fused, and what the next one needs more for windows that see tokens.
        n_tokens, threads, precision: what was timed.
    """

    rest_ms: float
    layers: Sequence[Table]
    rules: Mapping[TokenRule, Table]
    n_tokens: int
    threads: int
    precision: Precision

    def rest(self) -> float:
        """Return what no layer takes."""
        return self.rest_ms

    def layer(self, index: int, n_tokens: int) -> float:
        """Return what a layer takes that so many tokens reach."""
        return float(np.interp(n_tokens, *self.layers[index]))

    def rule(self, index: int, rule: TokenRule, n_tokens: int) -> float:  # behind any layer alike
        """Return what a rule takes that so many tokens reach; one with another number as the one nearest to it."""
        nearest = min(self.rules, key=lambda known: abs(known.n_left(1000) - rule.n_left(1000)))
        return float(np.interp(n_tokens, *self.rules[nearest]))

    def of(self, spec: RankerSpec) -> float:
        """Return the time of a pair in ms, of a ranker that differs from the timed one by its token rules alone."""
        n_tokens, n_document = self.n_tokens, document_tokens(self.n_tokens)
        total = self.rest()
        for index, layer in enumerate(spec.layers):
            total += self.layer(index, n_tokens)
            if rule := layer.token_rule:
                total += self.rule(index, rule, n_tokens)
                gone = n_document - rule.n_left(n_document)
                n_tokens, n_document = n_tokens - gone, n_document - gone
        return total

    def measured_share(self, whole: RankerSpec, small: RankerSpec) -> float:
        """Time both as they are and return the share of the time that is left: what the sum of parts foretold."""
        before, after = measure_times([whole, small], self.n_tokens, self.threads, self.precision)
        return after / before

    def as_json(self) -> dict[str, object]:
        """Return the tables for a ranker's history."""

        def shown(table: Table) -> dict[str, float]:
            return {str(int(n_tokens)): round(float(ms), 5) for n_tokens, ms in zip(*table, strict=True)}

        return {
            "tokens": self.n_tokens, "threads": self.threads, "precision": self.precision,
            "rest_ms": round(self.rest_ms, 5), "layers_ms": [shown(table) for table in self.layers],
            "rules_ms": {f"{rule.n_left(1000) / 1000:g}": shown(table) for rule, table in self.rules.items()},
        }  # fmt: skip


def measure_token_times(
    spec: RankerSpec, n_tokens: int, rules: Sequence[TokenRule], *, threads: int | None = None,
    precision: Precision = "fp32",
) -> TokenTimes:  # fmt: skip
    """Time graphs of one layer's kind at several numbers of tokens, interleaved, and take them apart into their parts.

    Batches have as many pairs at every number of tokens, since rules take tokens of a batch and no pairs. Graphs hold
    random weights, which take as long as others. Layers of one shape are timed once. Rules are timed behind the layer
    with most heads.

    Args:
        spec: a ranker without token rules.
        n_tokens: tokens of a pair.
        rules: that may be chosen, of one kind and one scorer.
        threads: of ONNX Runtime; by default all at hand.
        precision: that of the graphs.
    """
    threads = threads or available_threads()
    spec = spec.without_exits()
    points = _points(n_tokens)
    *inner, last = spec.layers
    shapes = list(dict.fromkeys(layer.model_dump_json() for layer in inner))
    by_shape = {layer.model_dump_json(): layer for layer in inner}
    judged = max(inner, key=lambda layer: layer.heads)

    def of_layers(*layers: LayerSpec) -> RankerSpec:
        return spec.changed(layers=(*layers, last))

    alone = of_layers()
    none = narrowed(alone, width=spec.width, heads=[0], ffn_widths=[0])
    probes = [of_layers(*(by_shape[shape],) * _PROBED) for shape in shapes]
    shown = [(judged,) * shows_tokens(rule) for rule in rules]  # the layer whose windows see tokens
    ruled = [of_layers(judged.changed(token_rule=rule), *above) for rule, above in zip(rules, shown, strict=True)]
    graphs = [none, alone, *probes, *ruled]
    trials = [(graph, point) for graph in graphs for point in points]
    found = measure_trials(trials, pairs_of_batch(n_tokens), threads, precision)
    table = np.array(found).reshape(len(graphs), len(points))  # [graphs, points]
    rest = table[0]

    def tables(times: np.ndarray) -> Table:
        # More tokens never take less: what says so is noise, and a budget could not be shared out by it.
        return np.array(points, dtype=np.float64), np.maximum.accumulate(np.maximum(times, 0.0))

    last_table = tables(table[1] - rest)
    layers = {
        shape: tables((times - table[1]) / _PROBED)
        for shape, times in zip(shapes, table[2 : 2 + len(shapes)], strict=True)
    }
    of_judged = layers[judged.model_dump_json()]

    def of_rule(rule: TokenRule, times: np.ndarray) -> Table:
        documents = [document_tokens(point) for point in points]
        left = [point - n + rule.n_left(n) for point, n in zip(points, documents, strict=True)]
        above = np.interp(left, *of_judged) * shows_tokens(rule)
        return tables(times - rest - np.interp(points, *of_judged) - above - np.interp(left, *last_table))

    return TokenTimes(
        rest_ms=float(rest[-1]),
        layers=[*(layers[layer.model_dump_json()] for layer in inner), last_table],
        rules={rule: of_rule(rule, times) for rule, times in zip(rules, table[2 + len(shapes) :], strict=True)},
        n_tokens=n_tokens, threads=threads, precision=precision,
    )  # fmt: skip


def _points(n_tokens: int) -> list[int]:
    """Return numbers of tokens up to that of a whole pair, from about what is left without a document."""
    least = max(1, min(n_tokens, n_tokens - document_tokens(n_tokens) + 1))
    return sorted({round(point) for point in np.linspace(least, n_tokens, _POINTS)})
