"""The architecture as data: a `RankerSpec` says everything about a ranker's shape.

Weights are named after the spec (`layers.3.attention.query.weight`): a ranker is its spec plus a flat set of tensors.
Layers need not be alike: each has its own heads, widths, norms, linear forms and precisions.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from compressor.records import Record

Share = Annotated[float, Field(ge=0, lt=1)]


class DenseForm(Record):
    """One matrix, ``[outputs, inputs]``."""

    kind: Literal["dense"] = "dense"


class LowRankForm(Record):
    """Two thin matrices, ``[rank, inputs]`` then ``[outputs, rank]``."""

    kind: Literal["low_rank"] = "low_rank"
    rank: PositiveInt


LinearForm = Annotated[DenseForm | LowRankForm, Field(discriminator="kind")]


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


class EmbeddingsSpec(Record):
    """Token + position + segment embeddings, norm, and an optional projection to the residual width (ELECTRA).

    ``position_offset``: the row of the position table that the first token takes (RoBERTa: pad id + 1).
    """

    tokens: TableSpec
    positions: TableSpec | None = None
    position_offset: NonNegativeInt = 0
    segments: TableSpec | None = None
    norm: NormSpec | None = None
    project: LinearSpec | None = None

    @model_validator(mode="after")
    def _widths_agree(self) -> Self:
        tables = {"positions": self.positions, "segments": self.segments}
        widths = {name: table.width for name, table in tables.items() if table}
        if self.project:
            widths["project"] = self.project.inputs
        wrong = [f"{name} {found}" for name, found in widths.items() if found != self.tokens.width]
        if wrong:
            raise ValueError(f"the token table is {self.tokens.width} wide, but " + ", ".join(wrong))
        return self


class FullPattern(Record):
    """Every token sees every token."""

    kind: Literal["full"] = "full"


class WindowPattern(Record):
    """A token sees tokens at most ``reach`` positions away on either side."""

    kind: Literal["window"] = "window"
    reach: PositiveInt


class CausalPattern(Record):
    """A token sees itself and what stands before it."""

    kind: Literal["causal"] = "causal"


AttentionPattern = Annotated[FullPattern | WindowPattern | CausalPattern, Field(discriminator="kind")]


class RotarySpec(Record):
    """Rotary positions over the whole head width, halves rotated (not interleaved)."""

    kind: Literal["rotary"] = "rotary"
    base: PositiveFloat


class AttentionSpec(Record):
    """Multi-head attention; ``positions`` holds schemes that act inside attention (room for relative bias)."""

    heads: PositiveInt
    head_width: PositiveInt
    pattern: AttentionPattern = FullPattern()
    positions: RotarySpec | None = None
    query: LinearSpec
    key: LinearSpec
    value: LinearSpec
    output: LinearSpec

    @model_validator(mode="after")
    def _widths_agree(self) -> Self:
        width = self.heads * self.head_width
        for name in ("query", "key", "value"):
            if getattr(self, name).outputs != width:
                raise ValueError(f"{name} gives {getattr(self, name).outputs} values, heads × head_width is {width}")
        if self.output.inputs != width:
            raise ValueError(f"output takes {self.output.inputs} values, heads × head_width is {width}")
        if self.positions and self.head_width % 2:
            raise ValueError(f"rotary positions turn pairs of values, head_width {self.head_width} is odd")
        return self


Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]


class FeedForwardSpec(Record):
    """``down(act(up(x)))``, or with a gate ``down(act(gate(x)) * up(x))``."""

    activation: Activation
    up: LinearSpec
    gate: LinearSpec | None = None
    down: LinearSpec

    @property
    def width(self) -> int:
        return self.up.outputs

    @model_validator(mode="after")
    def _widths_agree(self) -> Self:
        if self.down.inputs != self.width or (self.gate and self.gate.outputs != self.width):
            raise ValueError(f"up, gate and down disagree about the width ({self.width})")
        return self


class LayerSpec(Record):
    """One encoder layer. A norm that is absent is the identity (ModernBERT's first attention norm).

    ``token_rule`` and ``exit`` are where token reduction and exit heads will stand; today only None is legal.
    """

    norm_placement: Literal["post", "pre"]
    attention: AttentionSpec
    attention_norm: NormSpec | None
    ffn: FeedForwardSpec
    ffn_norm: NormSpec | None
    token_rule: None = None
    exit: None = None


class ClassifierHead(Record):
    """One logit from a pooled state: dense, activation, norm (each optional), then the output linear."""

    kind: Literal["classifier"] = "classifier"
    pool: Literal["first", "mean"]
    dense: LinearSpec | None = None
    activation: Activation | None = None
    norm: NormSpec | None = None
    output: LinearSpec

    @model_validator(mode="after")
    def _one_logit(self) -> Self:
        if self.output.outputs != 1:
            raise ValueError(f"a ranker's head gives one logit, not {self.output.outputs}")
        if self.dense and self.dense.outputs != self.output.inputs:
            raise ValueError(f"dense gives {self.dense.outputs} values, output takes {self.output.inputs}")
        return self


class SimilarityHead(Record):
    """A bi-encoder's head: a pooled unit vector per text; the score of a pair is the cosine."""

    kind: Literal["similarity"] = "similarity"
    pool: Literal["first", "mean"]


Head = Annotated[ClassifierHead | SimilarityHead, Field(discriminator="kind")]


class DropoutSpec(Record):
    """Dropout shares, in force only while training."""

    hidden: Share = 0.0
    attention: Share = 0.0
    head: Share = 0.0


Family = Literal["bert", "electra", "roberta", "xlm-roberta", "distilbert", "modernbert"]


class RankerSpec(Record):
    """The whole shape of a ranker.

    ``family`` names the stock architecture the ranker came from; ``max_length`` is the longest row in tokens.
    """

    schema_version: Literal[1] = 1
    family: Family
    width: PositiveInt
    max_length: PositiveInt
    pad_id: NonNegativeInt
    embeddings: EmbeddingsSpec
    layers: tuple[LayerSpec, ...] = Field(min_length=1)
    final_norm: NormSpec | None = None
    head: Head
    dropout: DropoutSpec = DropoutSpec()

    @model_validator(mode="after")
    def _widths_agree(self) -> Self:
        wrong = [f"{name} takes or gives {found}" for name, found in self._residual_widths() if found != self.width]
        if wrong:
            raise ValueError(f"the residual width is {self.width}, but " + ", ".join(wrong))
        if self.pad_id >= self.embeddings.tokens.rows:
            raise ValueError(f"pad_id {self.pad_id} is outside the token table of {self.embeddings.tokens.rows} rows")
        positions = self.embeddings.positions
        if positions and positions.rows < self.max_length + self.embeddings.position_offset:
            raise ValueError(f"max_length {self.max_length} does not fit the position table of {positions.rows} rows")
        return self

    def _residual_widths(self) -> list[tuple[str, int]]:
        embedded = self.embeddings.project.outputs if self.embeddings.project else self.embeddings.tokens.width
        widths = [("embeddings", embedded)]
        for i, layer in enumerate(self.layers):
            a, f = layer.attention, layer.ffn
            widths += [(f"layers.{i}.attention.{n}", getattr(a, n).inputs) for n in ("query", "key", "value")]
            widths += [(f"layers.{i}.attention.output", a.output.outputs)]
            widths += [(f"layers.{i}.ffn.up", f.up.inputs), (f"layers.{i}.ffn.down", f.down.outputs)]
            if f.gate:
                widths.append((f"layers.{i}.ffn.gate", f.gate.inputs))
        if isinstance(self.head, ClassifierHead):
            widths.append(("head", (self.head.dense or self.head.output).inputs))
        return widths

    @property
    def reads_first_token_only(self) -> bool:
        """Whether the head reads the first token alone, so that the last layer may be computed for it alone."""
        return self.head.pool == "first"

    @property
    def output_name(self) -> Literal["logits", "embedding"]:
        return "logits" if isinstance(self.head, ClassifierHead) else "embedding"
