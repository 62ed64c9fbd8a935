"""`quantize`: fewer bits per weight. Declared in the spec, simulated in torch, lowered at export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from compressor.passes.contract import Pass, Promise, Supply, refuse_quantized
from compressor.ranker.cost import linears_of, tables_of
from compressor.ranker.rounding import round_spec
from compressor.ranker.spec import Int8Dynamic, Int8Rows, LinearSpec, RankerSpec, TableSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


@register("quantize")
class Quantize(Pass):
    """Round linear layers, and lookup tables if asked, to 8 bits; the scoring head and exits stay fp32.

    ``scheme``: ``int8_dynamic`` (weights per output channel, activations per call), or ``none``.
    ``embeddings``: round the lookup tables too, one scale per row (bytes, not speed).
    ``reduce_range``: 7-bit weights, for other runtimes on x86 CPUs without VNNI, where 16-bit sums would saturate; ours
    sums wide there.

    A dynamic activation scale spans a whole batch, so a pair's score moves a little with its batch mates; `bench`
    reports by how much.
    """

    scheme: Literal["int8_dynamic", "none"] = "int8_dynamic"
    embeddings: bool = True
    reduce_range: bool = False

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        if self.scheme == "none":
            return spec
        precision = Int8Dynamic(reduce_range=self.reduce_range)
        return round_spec(spec, precision, Int8Rows() if self.embeddings else None)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        return ranker.changed(spec=self.plan(ranker.spec))

    def promises(self, result: Ranker) -> Sequence[Promise]:
        rounded = {name for name, part in _parts(result.spec) if part.precision.kind != "fp32"}

        def check(ranker: Ranker) -> str | None:
            lost = [n for n, part in _parts(ranker.spec) if n in rounded and part.precision.kind == "fp32"]
            return f"back in fp32: {', '.join(lost)}" if lost else None

        return [Promise(text=f"{len(rounded)} matrices stay in 8 bits", check=check)] if rounded else []


def _parts(spec: RankerSpec) -> list[tuple[str, LinearSpec | TableSpec]]:
    return [*linears_of(spec), *tables_of(spec)]
