"""`sparsify`: zeros in the matrices of attentions and feed-forwards, which stay zeros from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from compressor.algorithms.sparsity_patterns import SparsityPattern
from compressor.algorithms.sparsity_settings import FisherSettings, Gradual, MovementSettings
from compressor.passes.contract import Need, PlanError, Promise, Supply
from compressor.passes.distill import Distill
from compressor.passes.kept_layers import CANDIDATES_OF_A_LIST
from compressor.passes.refusals import refuse_bi_encoder, refuse_quantized, refuse_token_rules
from compressor.ranker.sparsity import prunable_linears, sparse_linears, sparsified
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.ranker.ranker import Ranker

Method = Literal["magnitude", "wanda", "sparsegpt", "fisher_diagonal", "obert", "movement"]
Scope = Literal["per_row", "per_matrix", "global"]

_SCOPES: dict[str, tuple[Scope, ...]] = {  # the first is the default
    "magnitude": ("per_matrix", "per_row", "global"),
    "wanda": ("per_row", "per_matrix"),
    "sparsegpt": ("per_matrix",),
    "fisher_diagonal": ("global", "per_matrix", "per_row"),
    "obert": ("global", "per_matrix", "per_row"),
    "movement": ("global", "per_matrix", "per_row"),
}
_BY_FISHER = ("fisher_diagonal", "obert")
_WITHOUT_DATA = ("magnitude", "movement")  # movement trains: all of the ranker runs


def _a_pattern(text: str) -> str:
    SparsityPattern.of(text)
    return text


@register("sparsify")
class Sparsify(Distill):
    """Zero weights, and keep them zero through every later pass.

    Dense kernels multiply zeros like other numbers, so nothing gets faster and no file smaller by itself: what gets
    smaller is what `rankpress pack` makes of the folder. Embeddings, heads and factorized matrices stay as they are.

    ``method``: ``magnitude``, the smallest go; ``wanda``, those whose products with the norms of their inputs are
    smallest (arXiv 2306.11695); ``sparsegpt``, column by column, with later columns making up (arXiv 2301.00774);
    ``fisher_diagonal``, those that scores of candidates answer to least; ``obert``, likewise, in blocks of neighbors
    that make up for each other (arXiv 2203.07259), at the cost of gradients of every candidate for every layer;
    ``movement``, by scores that learn while the ranker is distilled, and grow where weights move away from zero (arXiv
    2005.07683).
    ``sparsity``: the share of zeros.
    ``pattern``: ``unstructured``; ``block_4``, four neighbors along the inputs go together; ``2:4``, of every four
    neighbors two stay (any N:M), which is a sparsity by itself.
    ``scope``: where the least are looked for: ``per_row``, ``per_matrix`` or ``global``; by default as the method's
    authors do.
    ``fisher``: how curvature is measured, for the last two.
    ``n_pairs``: calibration pairs, whole lists of 8.
    ``gradual``: have zeros come in steps while the ranker is distilled, by all settings of `distill`; without it they
    come at once, and nothing is trained. ``movement``: how scores decide, for that method.

    Memory: of one-shot methods, the states of the calibration set and a layer's statistics; of ``obert``, ``4 ·
    block_size`` bytes for each weight of a layer, and the gradients of 32 candidates for its largest matrix; of as many
    layers as fit in half of the memory. Time: of ``magnitude``, seconds; of ``wanda`` and ``sparsegpt``, a few passes
    over the calibration set; of ``fisher_diagonal`` and ``obert``, a forward and backward pass and the sums, times
    ``recomputations``. Where layers do not all fit, up to half as many such passes as there are layers, and of
    ``obert`` twice that when the choice is global. Gradual, that again for each pruning.
    """

    method: Method = "sparsegpt"
    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    pattern: Annotated[str, AfterValidator(_a_pattern)] = "unstructured"
    scope: Scope | None = None
    fisher: FisherSettings = FisherSettings()
    n_pairs: PositiveInt = 256
    gradual: Gradual | None = None
    movement: MovementSettings = MovementSettings()

    def needs(self) -> frozenset[Need]:
        if self._keeps_all:
            return frozenset()
        calibration: frozenset[Need] = frozenset({"calibration"} if self._is_calibrated else ())
        return calibration | super().needs() if self.gradual else calibration

    @property
    def reads_along(self) -> str:
        return super().reads_along if self.gradual and not self._keeps_all else ""

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        self._check_share()
        self._check_training()
        if self._keeps_all:
            return spec
        self._check_scope()
        if self.method not in _WITHOUT_DATA:
            refuse_token_rules(spec, self.verb, "method")
        if self.method in _BY_FISHER:
            refuse_bi_encoder(spec)
        if self.gradual:
            super().plan(spec)
        self._check_shape(spec)
        return sparsified(spec)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self._keeps_all:
            return ranker.changed()
        weights = self._trained(ranker, supply) if self.gradual else self._sparsifier(supply)(ranker, self._share)
        result = ranker.changed(spec=sparsified(ranker.spec), weights=weights)
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

    def _sparsifier(self, supply: Supply) -> Callable[[Ranker, float], dict[str, Tensor]]:
        from compressor.algorithms.sparsification import Sparsifier

        if self.method == "movement":
            raise ValueError("scores of movement have to be trained")
        pairs = supply.pairs("calibration", self.n_pairs, CANDIDATES_OF_A_LIST) if self._is_calibrated else []
        return Sparsifier(
            method=self.method, pattern=self._pattern, scope=self._scope, pairs=pairs, fisher=self.fisher
        ).weights

    def _trained(self, ranker: Ranker, supply: Supply) -> dict[str, Tensor]:
        from compressor.training.sparse_objective import SparseObjective
        from compressor.training.weight_masks import MovementMasks, StepwiseMasks, WeightMasks

        own = {f"{name}.weight": ranker.weights[f"{name}.weight"] for name in prunable_linears(ranker.spec)}
        common = (own, self._share, self._pattern, self.gradual)
        masks: WeightMasks
        if self.method == "movement":
            masks = MovementMasks(self._scope, self.movement, *common)
        else:
            sparsify = self._sparsifier(supply)
            masks = StepwiseMasks(lambda weights, share: sparsify(ranker.changed(weights=weights), share), *common)
        trained = self.learned(ranker, supply, partial(SparseObjective, masks))
        return masks.final(trained.weights)

    @property
    def _is_calibrated(self) -> bool:
        return self.method not in ("magnitude", "movement")

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

    def _check_training(self) -> None:
        if self.method == "movement" and not self.gradual and not self._keeps_all:
            raise PlanError("movement without training", fix="add gradual: {}", setting="gradual")
        unused = [
            name
            for name, field in Distill.model_fields.items()
            if not self.gradual and getattr(self, name) != field.get_default(call_default_factory=True)
        ]
        if unused:
            raise PlanError(
                f"{unused[0]}, a setting of training, where nothing is trained",
                fix="add gradual: {}, or put distill behind",
                setting=unused[0],
            )
        for name, methods in (("fisher", _BY_FISHER), ("movement", ("movement",))):
            if self.method not in methods and getattr(self, name) != type(getattr(self, name))():
                raise PlanError(
                    f"settings of {name} with method {self.method}, which does not use them",
                    allowed=f"method: {' or '.join(methods)}",
                    setting=name,
                )
        if not self.gradual:
            return
        if self.epochs == 0 and not self._keeps_all:
            raise PlanError("no epochs, in which zeros come", fix="take gradual away", setting="epochs")
        for name in ("evaluate_every", "ema"):
            if getattr(self, name) is not None:
                raise PlanError(
                    f"{name}, which would bring weights back from before they were pruned",
                    fix=f"take {name} away; put distill behind, which may have it",
                    setting=name,
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
