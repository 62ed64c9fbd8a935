"""What layers and heads are made of: linears in a form and a precision, tables, norms, activations."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from compressor.records import Record

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]
Share = Annotated[float, Field(ge=0, lt=1)]


class DenseForm(Record):
    """One matrix, ``[outputs, inputs]``."""

    kind: Literal["dense"] = "dense"


class LowRankForm(Record):
    """Two thin matrices, ``[rank, inputs]`` then ``[outputs, rank]``."""

    kind: Literal["low_rank"] = "low_rank"
    rank: PositiveInt


class DenseSparseForm(Record):
    """A small dense matrix of atoms times a sparse one with as many non-zeros for each of its vectors.

    The vectors that are coded are the matrix's ``rows``, each a sum of few atoms as long as it is, or its ``columns``.
    With ``blocks``, vectors are cut into so many parts of equal length, each with atoms and codes of its own. What is
    stored: ``atoms`` ``[blocks, atoms, length / blocks]`` and, for each vector, ``values`` and ``indices``
    ``[blocks, vectors, nonzeros]`` (DSFormer, arXiv 2312.13211).
    """

    kind: Literal["dense_sparse"] = "dense_sparse"
    codes: Literal["rows", "columns"]
    atoms: Annotated[int, Field(gt=0, le=2**15)]
    nonzeros: PositiveInt
    blocks: PositiveInt = 1

    @model_validator(mode="after")
    def _atoms_are_enough(self) -> Self:
        if self.nonzeros > self.atoms:
            raise ValueError(f"{self.nonzeros} non-zeros out of {self.atoms} atoms")
        return self

    @property
    def index_bytes(self) -> Literal[1, 2]:
        return 1 if self.atoms <= 2**8 else 2

    def vectors(self, inputs: int, outputs: int) -> tuple[int, int]:
        """Return how many vectors of a matrix ``[outputs, inputs]`` are coded, and their length."""
        return (outputs, inputs) if self.codes == "rows" else (inputs, outputs)

    def weights(self, inputs: int, outputs: int) -> int:
        """Return how many floats are stored of a matrix ``[outputs, inputs]``, atoms and values."""
        n_vectors, length = self.vectors(inputs, outputs)
        return self.atoms * length + self.blocks * n_vectors * self.nonzeros

    def stored_bytes(self, inputs: int, outputs: int) -> int:
        """Return the bytes of what is stored of a matrix ``[outputs, inputs]`` in fp32, indices among them."""
        n_codes = self.blocks * self.vectors(inputs, outputs)[0] * self.nonzeros
        return 4 * self.weights(inputs, outputs) + self.index_bytes * n_codes


class SparseForm(Record):
    """One matrix, ``[outputs, inputs]``, whose weights that are zero stay zero, in training too.

    It is stored and multiplied like a dense one: zeros make files smaller that are packed, and nothing faster.
    """

    kind: Literal["sparse"] = "sparse"


LinearForm = Annotated[DenseForm | LowRankForm | SparseForm | DenseSparseForm, Field(discriminator="kind")]


class Precision(Record):
    """The numbers that a linear or a table computes with.

    ``is_batch_invariant``: whether a row's result depends on that row alone, up to the order of sums.
    """

    is_batch_invariant: ClassVar[bool] = True


class Float32(Precision):
    """IEEE single precision."""

    kind: Literal["fp32"] = "fp32"


class Float16(Precision):
    """IEEE half precision, 11 bits up to 65,504, for GPUs: weights, inputs and outputs.

    A layer with such a linear computes all of itself in it, `LayerSpec.states`.
    """

    kind: Literal["fp16"] = "fp16"


class BFloat16(Precision):
    """Half precision of 8 bits with the range of single precision, for GPUs; otherwise as `Float16`."""

    kind: Literal["bf16"] = "bf16"


class Int8Dynamic(Precision):
    """Weights int8, symmetric, one scale per output channel; activations uint8, one scale and zero point per call.

    ``reduce_range`` keeps weights within 7 bits, for CPUs without VNNI whose 16-bit sums saturate.
    """

    is_batch_invariant: ClassVar[bool] = False

    kind: Literal["int8_dynamic"] = "int8_dynamic"
    reduce_range: bool = False


class Int8Static(Precision):
    """Weights as in `Int8Dynamic`; activations uint8 with a scale and zero point that were fixed beforehand.

    The range that they cover is a tensor among the weights, ``input_ranges`` ``[products, 2]``: the lowest and the
    highest number of each matrix product's input; a low-rank linear has two products.
    """

    kind: Literal["int8_static"] = "int8_static"
    reduce_range: bool = False


BlockSize = Literal[32, 64, 128]


class Int8Blocks(Precision):
    """Weights int8, symmetric, one scale for every ``block_size`` inputs of an output channel.

    Activations int8, symmetric, one scale for every ``block_size`` numbers of a token.
    """

    bits: ClassVar[int] = 8

    kind: Literal["int8_blocks"] = "int8_blocks"
    block_size: BlockSize = 32


class Int4Blocks(Precision):
    """As `Int8Blocks`, with weights in 4 bits; activations stay in 8. Of a lookup table, its rows by blocks."""

    bits: ClassVar[int] = 4

    kind: Literal["int4_blocks"] = "int4_blocks"
    block_size: BlockSize = 32


class Int8Rows(Precision):
    """A lookup table in int8, symmetric, one scale per row."""

    kind: Literal["int8_rows"] = "int8_rows"


LinearPrecision = Annotated[
    Float32 | Float16 | BFloat16 | Int8Dynamic | Int8Static | Int8Blocks | Int4Blocks, Field(discriminator="kind")
]
TablePrecision = Annotated[Float32 | Float16 | BFloat16 | Int8Rows | Int4Blocks, Field(discriminator="kind")]
FloatKind = Literal["fp32", "fp16", "bf16"]


def float_kind(precision: Precision) -> FloatKind:
    """Return the floats that a precision takes and gives."""
    if isinstance(precision, Float16):
        return "fp16"
    return "bf16" if isinstance(precision, BFloat16) else "fp32"


class LinearSpec(Record):
    """``y = x Wᵀ + b`` with W in some form and precision."""

    inputs: PositiveInt
    outputs: PositiveInt
    bias: bool = True
    form: LinearForm = DenseForm()
    precision: LinearPrecision = Float32()

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if isinstance(self.form, DenseSparseForm):
            length = self.form.vectors(self.inputs, self.outputs)[1]
            if length % self.form.blocks:
                raise ValueError(
                    f"{self.form.codes} of {length} values do not fall into {self.form.blocks} equal blocks"
                )
        return self

    @property
    def is_one_matrix(self) -> bool:
        """Whether it is multiplied as one matrix, ``weight``, and not as a product of several."""
        return isinstance(self.form, DenseForm | SparseForm)


class TableSpec(Record):
    """A lookup table ``[rows, width]``."""

    rows: PositiveInt
    width: PositiveInt
    precision: TablePrecision = Float32()


class DropoutSpec(Record):
    """Dropout shares, in force only while training."""

    hidden: Share = 0.0
    attention: Share = 0.0
    head: Share = 0.0


class NormSpec(Record):
    """Layer norm (mean and variance) or RMS norm (variance alone)."""

    kind: Literal["layer", "rms"] = "layer"
    epsilon: PositiveFloat
    bias: bool = True

    @model_validator(mode="after")
    def _rms_has_no_bias(self) -> Self:
        if self.kind == "rms" and self.bias:
            raise ValueError("an RMS norm has no bias")
        return self
