"""`dense_sparse`: matrices stored as few atoms and sparse codes, learned together. Saves bytes, not time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from compressor.passes.contract import Need, PlanError, Promise, Supply, at_most_its_parameters
from compressor.passes.distill import Distill
from compressor.passes.rank_budget import Which, chosen_linears
from compressor.passes.refusals import refuse_zeros
from compressor.ranker.forms import with_forms
from compressor.ranker.spec import DenseSparseForm, LinearSpec, RankerSpec
from compressor.registry import register
from compressor.training.settings import Share

if TYPE_CHECKING:
    from compressor.ranker.linears import Linear
    from compressor.ranker.ranker import Ranker
    from compressor.training.stand_ins import StraightThroughLinear

_FLOAT_BYTES = 4


@register("dense_sparse")
class DenseSparse(Distill):
    """Store matrices as a small dense matrix of atoms times a sparse one: each row or column a sum of few atoms.

    All settings of `distill`, and:

    ``share``: of each matrix's bytes that are stored, indices counted.
    ``linears``: ``all`` of the layers, ``ffn``, ``attention``, or patterns of names: ``[layers.*.ffn.up]``.
    ``nonzeros``: of a code, as a share of the atoms. ``blocks``: rows or columns fall into so many parts, each with
    atoms of its own. The longer side of a matrix is coded.
    ``sweeps``: of sparse coding and least squares, with which atoms and codes begin, blind to the task.
    ``frozen_share``: of the training, at its end, over which no code changes its atoms any more. Before, all codes of
    all layers are learned together with the atoms, and a code's largest entries are used, whichever they are at a step.
    With ``epochs: 0`` nothing is learned.

    A size pass: what gets small is ``model.safetensors`` of the stored stage. The ONNX graph has the whole matrices, as
    large and as fast as before, since products with sparse codes are slower than the matrix on CPUs; torch expands
    them, too. Low rank is the same with a code of all atoms. Costs ranking quality. Literature: DSFormer (arXiv
    2312.13211).
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.36
    linears: Which = "all"
    nonzeros: Annotated[float, Field(gt=0, le=1)] = 0.25
    blocks: PositiveInt = 1
    sweeps: NonNegativeInt = 10
    frozen_share: Share = 0.2

    def needs(self) -> frozenset[Need]:
        return frozenset() if self._keeps_all or self.epochs == 0 else super().needs()

    @property
    def reads_along(self) -> str:
        return "" if self._keeps_all else super().reads_along

    def plan(self, spec: RankerSpec) -> RankerSpec:
        super().plan(spec)
        if self._keeps_all:
            return spec
        refuse_zeros(spec, self.verb)
        return with_forms(spec, self._forms(spec))

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self._keeps_all:
            return ranker.changed()
        forms = self._forms(ranker.spec)
        begun = self._begun(ranker, forms, supply)
        if self.epochs == 0:
            return begun
        from compressor.training.stand_ins import StandInObjective

        return self.learned(begun, supply, partial(StandInObjective, self._stand_in, list(forms)))

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return () if self._keeps_all else at_most_its_parameters(result)

    @property
    def _keeps_all(self) -> bool:
        return self.share == 1

    def _forms(self, spec: RankerSpec) -> dict[str, DenseSparseForm]:
        """Return the forms of the linears that are meant.

        Raises:
            PlanError: there is none, one does not fall into blocks, or the share has no room for two atoms.
        """
        return {name: self.form_of(name, one) for name, one in chosen_linears(spec, self.linears).items()}

    def form_of(self, name: str, linear: LinearSpec) -> DenseSparseForm:
        """Return how a linear is stored: as many atoms as its share has room for.

        Raises:
            PlanError: it does not fall into blocks, or there is no room for two atoms.
        """
        by_rows = linear.outputs >= linear.inputs
        vectors, length = (linear.outputs, linear.inputs) if by_rows else (linear.inputs, linear.outputs)
        if length % self.blocks:
            found = f"{self.blocks} blocks for {name}, of which vectors of {length} values are coded"
            raise PlanError(found, allowed=f"a divisor of {length}", setting="blocks")
        whole = linear.inputs * linear.outputs
        codes = self.blocks * vectors
        # No more atoms than with the smallest indices, and with codes rounded down.
        most = (self.share * whole + 0.625 * codes) / (length + 1.25 * codes * self.nonzeros)
        for atoms in range(min(vectors, 2**15, int(most)), 1, -1):
            form = DenseSparseForm(
                codes="rows" if by_rows else "columns", atoms=atoms, nonzeros=max(1, round(self.nonzeros * atoms)),
                blocks=self.blocks,
            )  # fmt: skip
            if form.stored_bytes(linear.inputs, linear.outputs) <= self.share * _FLOAT_BYTES * whole:
                return form
        found = f"{self.share:.3%} of {name}, {linear.outputs} × {linear.inputs}, which has no room for two atoms"
        raise PlanError(found, fix="name a larger share, other linears, or fewer blocks", setting="share")

    def _begun(self, ranker: Ranker, forms: dict[str, DenseSparseForm], supply: Supply) -> Ranker:
        """Return the ranker with atoms and codes that are near its matrices."""
        from compressor.algorithms.sparse_coding import as_atoms_and_codes
        from compressor.progress import progress

        weights = dict(ranker.weights)
        missed = {}
        with progress("Coding matrices", len(forms)) as advance:
            for name, form in forms.items():
                found, missed[name] = as_atoms_and_codes(weights.pop(f"{name}.weight"), form, self.sweeps, supply.seed)
                weights |= {f"{name}.{kind}": tensor for kind, tensor in found.items()}
                advance()
        supply.note("forms", {name: form.model_dump(mode="json") for name, form in forms.items()})
        supply.note("missed_shares", {name: round(share, 5) for name, share in missed.items()})
        return ranker.changed(spec=with_forms(ranker.spec, forms), weights=weights)

    def _stand_in(self, _: str, linear: Linear, n_steps: int) -> StraightThroughLinear:
        from compressor.training.stand_ins import StraightThroughLinear

        return StraightThroughLinear(linear, n_steps, frozen_share=self.frozen_share)
