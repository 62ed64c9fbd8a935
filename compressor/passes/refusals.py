"""Shapes that a pass cannot be applied to, each refused in one sentence: what several passes share."""

from __future__ import annotations

from compressor.passes.contract import PlanError
from compressor.passes.token_rules import verbs_of_rules
from compressor.ranker.spec import DenseSparseForm, RankerSpec


def refuse_bi_encoder(spec: RankerSpec) -> None:
    """Refuse a ranker that gives no scores of pairs.

    Raises:
        PlanError: its head gives a vector for each text.
    """
    from compressor.ranker.spec import ClassifierHead

    if not isinstance(spec.head, ClassifierHead):
        raise PlanError(
            "a bi-encoder, which gives a vector for each text",
            allowed="a cross-encoder, which gives a score for a pair",
            fix="put start_from before it: it gives an encoder a scoring head",
        )


def refuse_quantized(spec: RankerSpec, verb: str) -> None:
    """Refuse to change the shape of a quantized ranker.

    Raises:
        PlanError: some linear or table is not fp32 any more.
    """
    from compressor.ranker.cost import linears_of, tables_of

    kinds = [part.precision.kind for _, part in linears_of(spec)] + [part.precision.kind for _, part in tables_of(spec)]
    rounded = [kind for kind in kinds if kind != "fp32"]
    if rounded:
        raise PlanError(
            f"a quantized ranker ({len(rounded)} rounded matrices)",
            allowed="an fp32 ranker",
            fix=f"put {verb} before quantize: its choices are made with exact scores, and rounding is set up "
            "for the final weights",
        )


def refuse_sparse(spec: RankerSpec, verb: str) -> None:
    """Refuse to reshape or fit anew matrices whose zeros are to stay, or that are stored as atoms and sparse codes.

    Raises:
        PlanError: some matrix is one of these.
    """
    from compressor.ranker.cost import linears_of

    for name, linear in linears_of(spec):
        if isinstance(linear.form, DenseSparseForm):
            raise PlanError(f"{name}, stored as atoms and sparse codes", fix=f"put {verb} before dense_sparse")
    refuse_zeros(spec, verb)


def refuse_zeros(spec: RankerSpec, verb: str) -> None:
    """Refuse to put other matrices where zeros are to stay.

    Raises:
        PlanError: some matrix is declared sparse.
    """
    from compressor.ranker.sparsity import sparse_linears

    if found := sparse_linears(spec):
        raise PlanError(
            f"a ranker with {len(found)} sparse matrices, whose zeros {verb} would move or fill",
            allowed="a ranker before sparsify",
            fix=f"put {verb} before sparsify: shapes first, then zeros",
        )


def refuse_cascade(spec: RankerSpec, what: str) -> None:
    """Refuse to change the layers of a ranker whose lists are cut behind some of them.

    Raises:
        PlanError: it has a cascade; ``what`` says in the fix what to put before it.
    """
    if spec.cascade:
        raise PlanError(
            "a ranker with a cascade, which was set up for the layers that it has",
            allowed="a ranker without a cascade",
            fix=f"put {what} before cascade",
        )


def refuse_token_rules(spec: RankerSpec, verb: str, setting: str = "") -> None:
    """Refuse to choose or fit parts of layers one by one where some let tokens go.

    Raises:
        PlanError: names the first layer with a token rule, and ``setting`` where another value of it would do.
    """
    if spec.rule_layers:
        rules = " and ".join(verbs_of_rules(spec))
        raise PlanError(
            f"a ranker that lets tokens go behind layer {spec.rule_layers[0]}",
            allowed="a ranker all of whose layers see the same tokens",
            fix=f"put {verb} before {rules}: which layers and widths there are comes first, where tokens go second",
            setting=setting,
        )


def refuse_factorized_outputs(spec: RankerSpec, verb: str, setting: str = "") -> None:
    """Refuse to fit output matrices of heads or neurons anew where they are products of two.

    Raises:
        PlanError: names the layer, and ``setting`` where another value of it would do.
    """
    for index, layer in enumerate(spec.layers):
        outputs = [layer.attention and layer.attention.output, layer.ffn and layer.ffn.down]
        if not all(one.is_one_matrix for one in outputs if one):
            raise PlanError(
                f"layer {index} with factorized matrices", fix=f"put {verb} before what factorizes", setting=setting
            )


def refuse_factorized(spec: RankerSpec, verb: str) -> None:
    """Refuse to change whole matrices where layers have factors in their place.

    Raises:
        PlanError: names the first linear.
    """
    from compressor.ranker.forms import layer_linears

    for name, linear in layer_linears(spec).items():
        if not linear.is_one_matrix:
            raise PlanError(f"{name}, of which there are factors alone", fix=f"put {verb} before what factorizes")
