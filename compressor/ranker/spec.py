"""The architecture as data: a `RankerSpec` says everything about a ranker's shape.

Weights are named after the spec (`layers.3.attention.query.weight`): a ranker is its spec plus a flat set of tensors.
Layers need not be alike: each has its own heads, widths, norms, linear forms and precisions. The parts are defined in
`parts_spec`, `attention_spec`, `ffn_spec`, `head_spec`, `layer_spec` and `token_rule_spec`; all are imported from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from compressor.cascade_stages import Cascade
from compressor.ranker.attention_spec import (
    AttentionPattern,
    AttentionSpec,
    CausalPattern,
    FullPattern,
    RotarySpec,
    WindowPattern,
)
from compressor.ranker.cascade_spec import check_stages
from compressor.ranker.ffn_spec import FeedForwardSpec, LinearMapSpec
from compressor.ranker.head_spec import ClassifierHead, Head, SimilarityHead
from compressor.ranker.layer_spec import LayerSpec, check_token_rules
from compressor.ranker.parts_spec import (
    Activation,
    BFloat16,
    DenseForm,
    DenseSparseForm,
    DropoutSpec,
    Float16,
    Float32,
    FloatKind,
    Int4Blocks,
    Int8Blocks,
    Int8Dynamic,
    Int8Rows,
    Int8Static,
    LinearForm,
    LinearPrecision,
    LinearSpec,
    LowRankForm,
    NormSpec,
    SparseForm,
    TablePrecision,
    TableSpec,
    float_kind,
)
from compressor.ranker.token_rule_spec import (
    AttentionScorer,
    KeepRule,
    KeepShareRule,
    KeepThresholdRule,
    LearnedScorer,
    MergeRule,
    PageRankScorer,
    PoolRule,
    TokenRule,
    TokenScorer,
)
from compressor.records import Record

__all__ = [
    "Activation",
    "AttentionPattern",
    "AttentionScorer",
    "AttentionSpec",
    "BFloat16",
    "CausalPattern",
    "ClassifierHead",
    "DenseForm",
    "DenseSparseForm",
    "DropoutSpec",
    "EmbeddingsSpec",
    "Family",
    "FeedForwardSpec",
    "Float16",
    "Float32",
    "FloatKind",
    "FullPattern",
    "Head",
    "Int4Blocks",
    "Int8Blocks",
    "Int8Dynamic",
    "Int8Rows",
    "Int8Static",
    "KeepRule",
    "KeepShareRule",
    "KeepThresholdRule",
    "LayerSpec",
    "LearnedScorer",
    "LinearForm",
    "LinearMapSpec",
    "LinearPrecision",
    "LinearSpec",
    "LowRankForm",
    "MergeRule",
    "NormSpec",
    "PageRankScorer",
    "PoolRule",
    "RankerSpec",
    "RotarySpec",
    "SimilarityHead",
    "SparseForm",
    "TablePrecision",
    "TableSpec",
    "TokenRule",
    "TokenScorer",
    "WindowPattern",
    "float_kind",
]


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


Family = Literal["bert", "electra", "roberta", "xlm-roberta", "distilbert", "modernbert"]


_LATER = {"cascade": None, "separator_id": None, "isolates_query": False}


class RankerSpec(Record):
    """The whole shape of a ranker.

    ``family`` names the stock architecture the ranker came from; ``max_length`` is the longest row in tokens.
    ``cascade``: where a query's list of candidates shrinks on its way up. Pairs are scored at full depth all the same.
    ``isolates_query``: whether the query's tokens, those behind a row's first one up to its first separator, see each
    other alone in every layer, so that nothing of them depends on the document; all others see everything.
    ``separator_id``: the token between query and document, which token rules and isolated queries go by; a shape that
    is only planned may lack it.
    """

    schema_version: Literal[1] = 1
    cascade: Cascade | None = None
    family: Family
    width: PositiveInt
    max_length: PositiveInt
    pad_id: NonNegativeInt
    separator_id: NonNegativeInt | None = None
    isolates_query: bool = False
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

    @model_validator(mode="after")
    def _exits_stand_before_a_head(self) -> Self:
        if self.exit_layers and not isinstance(self.head, ClassifierHead):
            raise ValueError("an exit gives a logit, a bi-encoder's head a vector: only cross-encoders have exits")
        if self.layers[-1].exit:
            raise ValueError(f"layers.{len(self.layers) - 1} is the last and ends in the head: it has no exit")
        return self

    @model_validator(mode="after")
    def _stages_can_score(self) -> Self:
        if self.cascade:
            check_stages(self.cascade, self.exit_layers, self.tells_query_from_document)
            if self.rule_layers:
                raise ValueError("a cascade of a ranker with token rules: its graphs hand all tokens on")
        return self

    @model_validator(mode="after")
    def _token_rules_make_sense(self) -> Self:
        if self.rule_layers and not isinstance(self.head, ClassifierHead):
            raise ValueError("a bi-encoder's rows hold one text, no query and document: they have no token rules")
        check_token_rules(self.layers)
        return self

    @model_validator(mode="after")
    def _isolated_queries_make_sense(self) -> Self:
        if self.isolates_query and not isinstance(self.head, ClassifierHead):
            raise ValueError("a bi-encoder's rows hold one text: they have no query to isolate from a document")
        if self.isolates_query and self.cascade:
            raise ValueError("a cascade of a ranker that isolates queries: its graphs do not hand on where these end")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what stored rankers did not have from the first, so that their fingerprints stay what they were."""
        written: dict[str, Any] = write(self)
        return {
            name: value for name, value in written.items() if name not in _LATER or getattr(self, name) != _LATER[name]
        }

    def _residual_widths(self) -> list[tuple[str, int]]:
        embedded = self.embeddings.project.outputs if self.embeddings.project else self.embeddings.tokens.width
        widths = [("embeddings", embedded)]
        for i, layer in enumerate(self.layers):
            if a := layer.attention:
                widths += [(f"layers.{i}.attention.{n}", getattr(a, n).inputs) for n in ("query", "key", "value")]
                widths += [(f"layers.{i}.attention.output", a.output.outputs)]
            if f := layer.ffn:
                readers = ("down",) if isinstance(f, LinearMapSpec) else ("up", "gate")
                widths += [(f"layers.{i}.ffn.{n}", part.inputs) for n in readers if (part := getattr(f, n))]
                widths += [(f"layers.{i}.ffn.down", f.down.outputs)]
            if layer.exit:
                widths.append((f"layers.{i}.exit", _head_inputs(layer.exit)))
        if isinstance(self.head, ClassifierHead):
            widths.append(("head", _head_inputs(self.head)))
        return widths

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The layers that have an exit, ascending, counted from 0."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.exit)

    @property
    def rule_layers(self) -> tuple[int, ...]:
        """The layers behind which a token rule stands, ascending, counted from 0."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.token_rule)

    def without_exits(self) -> Self:
        """Return the shape that gives the same scores and has no exits, nor a cascade."""
        return self.changed(layers=self._with_exits(()), cascade=None) if self.exit_layers or self.cascade else self

    def as_served(self) -> Self:
        """Return the shape that an export writes: of exits, those alone that the cascade reads."""
        cascade = self.cascade and self.cascade.without_idle_stages()
        return self.changed(layers=self._with_exits(cascade.exit_layers if cascade else ()), cascade=cascade)

    def _with_exits(self, kept: Sequence[int]) -> tuple[LayerSpec, ...]:
        return tuple(layer if i in kept else layer.changed(exit=None) for i, layer in enumerate(self.layers))

    @property
    def tells_query_from_document(self) -> bool:
        """Whether the tokens of the two are of different segments."""
        return self.embeddings.segments is not None and self.embeddings.segments.rows > 1

    @property
    def first_attention(self) -> AttentionSpec | None:
        """The attention of the first layer that has one."""
        return next((layer.attention for layer in self.layers if layer.attention), None)

    @property
    def first_ffn(self) -> FeedForwardSpec | None:
        """The feed-forward of the first layer that has one with neurons."""
        return next((layer.ffn for layer in self.layers if isinstance(layer.ffn, FeedForwardSpec)), None)

    @property
    def reads_first_token_only(self) -> bool:
        """Whether the head reads the first token alone, so that the last layer may be computed for it alone."""
        return self.head.pool == "first"

    @property
    def output_name(self) -> Literal["logits", "embedding"]:
        return "logits" if isinstance(self.head, ClassifierHead) else "embedding"


def _head_inputs(head: ClassifierHead) -> int:
    return (head.dense or head.output).inputs
