"""`sparsify`: zeros in the matrices of attentions and feed-forwards, which stay zeros from then on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from compressor.algorithms.sparsity_patterns import SparsityPattern
from compressor.algorithms.sparsity_settings import FisherSettings
from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply, refuse_bi_encoder, refuse_quantized
from compressor.passes.kept_layers import CANDIDATES_OF_A_LIST
from compressor.ranker.sparsity import prunable_linears, sparse_linears, sparsified
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker

Method = Literal["magnitude", "wanda", "sparsegpt", "fisher_diagonal", "obert"]
Scope = Literal["per_row", "per_matrix", "global"]

_SCOPES: dict[str, tuple[Scope, ...]] = {  # the first is the default
    "magnitude": ("per_matrix", "per_row", "global"),
    "wanda": ("per_row", "per_matrix"),
    "sparsegpt": ("per_matrix",),
    "fisher_diagonal": ("global", "per_matrix", "per_row"),
    "obert": ("global", "per_matrix", "per_row"),
}
_BY_FISHER = ("fisher_diagonal", "obert")


def _a_pattern(text: str) -> str:
    SparsityPattern.of(text)
    return text


@register("sparsify")
class Sparsify(Pass):
    """Zero weights, and keep them zero through every later pass.

    Dense kernels multiply zeros like other numbers, so nothing gets faster and no file smaller by itself: what gets
    smaller is what `rankpress pack` makes of the folder. Embeddings, heads and factorized matrices stay as they are.

    ``method``: ``magnitude``, the smallest go; ``wanda``, those whose products with the norms of their inputs are
    smallest (arXiv 2306.11695); ``sparsegpt``, column by column, with later columns making up (arXiv 2301.00774);
    ``fisher_diagonal``, those that scores of candidates answer to least; ``obert``, likewise, in blocks of neighbors
    that make up for each other (arXiv 2203.07259), at the cost of gradients of every candidate for every layer.
    ``sparsity``: the share of zeros.
    ``pattern``: ``unstructured``; ``block_4``, four neighbors along the inputs go together; ``2:4``, of every four
    neighbors two stay (any N:M), which is a sparsity by itself.
    ``scope``: where the least are looked for: ``per_row``, ``per_matrix`` or ``global``; by default as the method's
    authors do.
    ``fisher``: how curvature is measured, for the last two.
    ``n_pairs``: calibration pairs, whole lists of 8.
    """

    method: Method = "sparsegpt"
    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    pattern: Annotated[str, AfterValidator(_a_pattern)] = "unstructured"
    scope: Scope | None = None
    fisher: FisherSettings = FisherSettings()
    n_pairs: PositiveInt = 256

    def needs(self) -> frozenset[Need]:
        return frozenset() if self._keeps_all or self.method == "magnitude" else frozenset({"calibration"})

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        self._check_share()
        if self._keeps_all:
            return spec
        self._check_scope()
        if self.method in _BY_FISHER:
            refuse_bi_encoder(spec)
        elif self.fisher != FisherSettings():
            raise PlanError(
                f"settings of fisher with method {self.method}, which measures no curvature",
                allowed=f"method: {' or '.join(_BY_FISHER)}",
                setting="fisher",
            )
        self._check_shape(spec)
        return sparsified(spec)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self._keeps_all:
            return ranker.changed()
        from compressor.algorithms.sparsification import Sparsifier

        pairs = supply.pairs("calibration", self.n_pairs, CANDIDATES_OF_A_LIST) if self.needs() else []
        how = Sparsifier(method=self.method, pattern=self._pattern, scope=self._scope, pairs=pairs, fisher=self.fisher)
        result = ranker.changed(spec=sparsified(ranker.spec), weights=how.weights(ranker, self._share))
        zeros = {name: result.weights[f"{name}.weight"] == 0 for name in sparse_linears(result.spec)}
        total = sum(one.numel() for one in zeros.values())
        supply.note("sparsity", round(sum(int(one.sum()) for one in zeros.values()) / total, 5))
        supply.note("sparsity_by_matrix", {name: round(float(one.float().mean()), 4) for name, one in zeros.items()})
        supply.note("prunable_weights", total)
        return result

    def promises(self, result: Ranker) -> Sequence[Promise]:
        if self._keeps_all:
            return ()
        zeros = {name: result.weights[f"{name}.weight"] == 0 for name in sparse_linears(result.spec)}

        def check(ranker: Ranker) -> str | None:
            declared = sparse_linears(ranker.spec)
            for name, zero in zeros.items():
                weight = ranker.weights.get(f"{name}.weight")
                if weight is None:
                    continue  # a layer that is gone fills no zero
                if name not in declared or weight.shape != zero.shape:
                    return f"{name} of another form or shape"
                if filled := int((weight[zero] != 0).sum()):
                    return f"{filled:,} of {int(zero.sum()):,} zeros of {name} filled"
            return None

        count = sum(int(zero.sum()) for zero in zeros.values())
        return [Promise(text=f"{count:,} weights stay zero", check=check)]

    @property
    def _pattern(self) -> SparsityPattern:
        return SparsityPattern.of(self.pattern)

    @property
    def _share(self) -> float:
        return self._pattern.sparsity or self.sparsity or 0.0

    @property
    def _keeps_all(self) -> bool:
        return self._share == 0

    @property
    def _scope(self) -> Scope:
        return self.scope or _SCOPES[self.method][0]

    def _check_share(self) -> None:
        own = self._pattern.sparsity
        if own is None and self.sparsity is None:
            raise PlanError("no sparsity", allowed="the share of zeros, such as 0.8", setting="sparsity")
        if own is not None and self.sparsity not in (None, own):
            raise PlanError(
                f"sparsity {self.sparsity:g} with pattern {self.pattern}, which is a sparsity of {own:g}",
                fix="take sparsity away",
                setting="sparsity",
            )

    def _check_scope(self) -> None:
        if self.scope is None:
            return
        if self._pattern.kept is not None:
            raise PlanError(
                f"a scope with pattern {self.pattern}, which looks at every {self._pattern.size} weights by themselves",
                fix="take scope away",
                setting="scope",
            )
        if self.scope not in _SCOPES[self.method]:
            raise PlanError(
                f"scope {self.scope} with method {self.method}, whose choices are made within matrices",
                allowed=" or ".join(_SCOPES[self.method]),
                setting="scope",
            )

    def _check_shape(self, spec: RankerSpec) -> None:
        linears = prunable_linears(spec)
        if not linears:
            raise PlanError(
                "no matrix to prune: layers without blocks, or factorized ones",
                fix=f"put {self.verb} before what factorizes",
            )
        size = self._pattern.size
        if self.method == "obert" and self.fisher.block_size % size:
            raise PlanError(
                f"blocks of {self.fisher.block_size} weights with pattern {self.pattern}, which crosses them",
                allowed=f"a multiple of {size}",
                setting="fisher.block_size",
            )
        for name, linear in linears.items():
            if linear.inputs % size:
                raise PlanError(
                    f"{name} with {linear.inputs} inputs, which pattern {self.pattern} does not divide",
                    allowed=f"a multiple of {size}",
                    setting="pattern",
                )
