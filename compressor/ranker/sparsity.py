"""Which matrices of a ranker may have zeros that stay, and which are declared to. No torch."""

from __future__ import annotations

from compressor.ranker.cost import linears_of
from compressor.ranker.spec import DenseForm, LinearForm, LinearSpec, RankerSpec, SparseForm
from compressor.records import Record


def prunable_linears(spec: RankerSpec) -> dict[str, LinearSpec]:
    """Return the linears of attentions and feed-forwards that are one matrix, by name.

    Embeddings, heads, exits and factorized linears are not among them.
    """
    return {
        name: linear
        for name, linear in linears_of(spec)
        if name.startswith("layers.") and name.split(".")[2] in ("attention", "ffn") and linear.is_one_matrix
    }


def sparse_linears(spec: RankerSpec) -> dict[str, LinearSpec]:
    """Return the linears that are declared sparse, by name."""
    return {name: linear for name, linear in linears_of(spec) if isinstance(linear.form, SparseForm)}


def sparsified(spec: RankerSpec) -> RankerSpec:
    """Return the shape with every prunable linear declared sparse."""
    return _with_form(spec, SparseForm())


def densified(spec: RankerSpec) -> RankerSpec:
    """Return the shape that computes the same and promises no zeros."""
    return _with_form(spec, DenseForm()) if sparse_linears(spec) else spec


def _with_form(spec: RankerSpec, form: LinearForm) -> RankerSpec:
    def changed(block: Record | None) -> Record | None:
        if block is None:
            return None
        linears = {name: part for name, part in block if isinstance(part, LinearSpec) and part.is_one_matrix}
        return block.changed(**{name: part.changed(form=form) for name, part in linears.items()})

    layers = tuple(layer.changed(attention=changed(layer.attention), ffn=changed(layer.ffn)) for layer in spec.layers)
    return spec.changed(layers=layers)
