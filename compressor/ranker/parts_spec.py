"""What layers and heads are made of: linears in a form and a precision, tables, norms, activations."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from compressor.records import Record

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]


class DenseForm(Record):
    """One matrix, ``[outputs, inputs]``."""

    kind: Literal["dense"] = "dense"


class LowRankForm(Record):
    """Two thin matrices, ``[rank, inputs]`` then ``[outputs, rank]``."""

    kind: Literal["low_rank"] = "low_rank"
    rank: PositiveInt


class SparseForm(Record):
    """One matrix, ``[outputs, inputs]``, whose weights that are zero stay zero, in training too.

    It is stored and multiplied like a dense one: zeros make files smaller that are packed, and nothing faster.
    """

    kind: Literal["sparse"] = "sparse"


LinearForm = Annotated[DenseForm | LowRankForm | SparseForm, Field(discriminator="kind")]


class Float32(Record):
    """IEEE single precision."""

    kind: Literal["fp32"] = "fp32"


class Int8Dynamic(Record):
    """Weights int8, symmetric, one scale per output channel; activations uint8, one scale and zero point per call.

    ``reduce_range`` keeps weights within 7 bits, for CPUs without VNNI whose 16-bit sums saturate.
    """

    kind: Literal["int8_dynamic"] = "int8_dynamic"
    reduce_range: bool = False


class Int8Rows(Record):
    """A lookup table in int8, symmetric, one scale per row."""

    kind: Literal["int8_rows"] = "int8_rows"


LinearPrecision = Annotated[Float32 | Int8Dynamic, Field(discriminator="kind")]
TablePrecision = Annotated[Float32 | Int8Rows, Field(discriminator="kind")]


class LinearSpec(Record):
    """``y = x Wᵀ + b`` with W in some form and precision."""

    inputs: PositiveInt
    outputs: PositiveInt
    bias: bool = True
    form: LinearForm = DenseForm()
    precision: LinearPrecision = Float32()

    @property
    def is_one_matrix(self) -> bool:
        """Whether it is multiplied as one matrix, ``weight``, and not as a product of several."""
        return isinstance(self.form, DenseForm | SparseForm)


class TableSpec(Record):
    """A lookup table ``[rows, width]``."""

    rows: PositiveInt
    width: PositiveInt
    precision: TablePrecision = Float32()


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
