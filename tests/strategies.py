"""Hypothesis strategies: small random specs that mix the features of all families, and ragged batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import torch
from hypothesis import settings
from hypothesis import strategies as st

from compressor.ranker.encoder import random_weights
from compressor.ranker.parts_spec import Precision
from compressor.ranker.sparsity import sparse_linears
from compressor.ranker.spec import (
    Activation,
    AttentionPattern,
    AttentionScorer,
    AttentionSpec,
    CausalPattern,
    ClassifierHead,
    DenseForm,
    DenseSparseForm,
    EmbeddingsSpec,
    Family,
    FeedForwardSpec,
    Float16,
    Float32,
    FullPattern,
    Head,
    Int4Blocks,
    Int8Blocks,
    Int8Dynamic,
    Int8Rows,
    Int8Static,
    KeepShareRule,
    KeepThresholdRule,
    LayerSpec,
    LearnedScorer,
    LinearForm,
    LinearMapSpec,
    LinearSpec,
    LowRankForm,
    MergeRule,
    NormSpec,
    PageRankScorer,
    PoolRule,
    RankerSpec,
    RotarySpec,
    SimilarityHead,
    SparseForm,
    TableSpec,
    TokenRule,
    WindowPattern,
    float_kind,
)

if TYPE_CHECKING:
    from torch import Tensor

Precisions = Sequence[Precision]
INT8: Precisions = [
    Int8Dynamic(), Int8Dynamic(reduce_range=True), Int8Static(), Int8Static(reduce_range=True), Int8Blocks(),
    Int8Blocks(block_size=128), Int4Blocks(), Int4Blocks(block_size=64),
]  # fmt: skip
INT8_TABLES: Precisions = [Int8Rows(), Int4Blocks()]
FP16: Precisions = [Float16()]

LAW = settings(derandomize=True, deadline=None, database=None)
VOCABULARY, MAX_LENGTH = 40, 24

ACTIVATIONS = st.sampled_from(get_args(Activation))
POOLS = st.sampled_from(["first", "mean"])
PATTERNS: st.SearchStrategy[AttentionPattern] = st.one_of(
    st.just(FullPattern()), st.builds(WindowPattern, reach=st.integers(1, 9)), st.just(CausalPattern())
)
# A layer norm's epsilon bounds how much it can blow up rounding, where a random row is nearly constant.
NORMS = st.one_of(
    st.builds(NormSpec, kind=st.just("layer"), epsilon=st.sampled_from([1e-5, 1e-2]), bias=st.booleans()),
    st.builds(NormSpec, kind=st.just("rms"), epsilon=st.sampled_from([1e-6, 1e-5]), bias=st.just(False)),
)
SOME_NORM = st.one_of(NORMS, NORMS, st.none())


class Parts:
    """Draws the parts of one spec, whose linears and tables may have precisions other than fp32."""

    def __init__(self, draw: st.DrawFn, linears: Precisions, tables: Precisions) -> None:
        self.draw = draw
        self.linears = linears
        self.is_half = any(float_kind(precision) != "fp32" for precision in linears)
        self.tables = tables

    def linear(self, inputs: int, outputs: int) -> LinearSpec:
        return LinearSpec(
            inputs=inputs,
            outputs=outputs,
            bias=self.draw(st.booleans()),
            form=self.form(inputs, outputs),
            precision=self.draw(st.sampled_from([Float32(), *self.linears, *self.linears])),
        )

    def form(self, inputs: int, outputs: int) -> LinearForm:
        kinds = ["dense", "dense", "dense", "sparse", "low_rank", "low_rank", "dense_sparse"]
        kind = self.draw(st.sampled_from(kinds))
        if kind == "low_rank":
            return LowRankForm(rank=self.draw(st.integers(1, 6)))
        if kind in ("dense", "sparse"):
            return SparseForm() if kind == "sparse" else DenseForm()
        codes: Literal["rows", "columns"] = self.draw(st.sampled_from(["rows", "columns"]))
        length = inputs if codes == "rows" else outputs
        atoms = self.draw(st.sampled_from([1, 3, 5, 300]))
        return DenseSparseForm(
            codes=codes,
            atoms=atoms,
            nonzeros=self.draw(st.integers(1, min(4, atoms))),
            blocks=self.draw(st.sampled_from([each for each in (1, 2, 3) if length % each == 0])),
        )

    def table(self, rows: int, width: int) -> TableSpec:
        return TableSpec(rows=rows, width=width, precision=self.draw(st.sampled_from([Float32(), *self.tables])))

    def embeddings(self, width: int) -> EmbeddingsSpec:
        inner = self.draw(st.one_of(st.none(), st.sampled_from([5, 8])))
        own = inner or width
        offset = self.draw(st.integers(0, 2))
        has_positions = self.draw(st.booleans())
        segments = self.draw(st.sampled_from([0, 1, 2]))
        return EmbeddingsSpec(
            tokens=self.table(VOCABULARY, own),
            positions=self.table(MAX_LENGTH + offset, own) if has_positions else None,
            position_offset=offset if has_positions else 0,
            segments=self.table(segments, own) if segments else None,
            norm=self.draw(SOME_NORM),
            project=self.linear(own, width) if inner else None,
        )

    def attention(self, width: int) -> AttentionSpec:
        heads = self.draw(st.integers(1, 3))
        base = self.draw(st.one_of(st.none(), st.sampled_from([10.0, 10000.0])))
        head_width = self.draw(st.sampled_from([2, 4, 6]) if base else st.integers(1, 6))
        inner = heads * head_width
        return AttentionSpec(
            heads=heads,
            head_width=head_width,
            pattern=self.draw(PATTERNS),
            positions=RotarySpec(base=base) if base else None,
            query=self.linear(width, inner),
            key=self.linear(width, inner),
            value=self.linear(width, inner),
            output=self.linear(inner, width),
        )

    def feed_forward(self, width: int) -> FeedForwardSpec | LinearMapSpec:
        if self.draw(st.sampled_from([False, False, False, False, True])):
            return LinearMapSpec(down=self.linear(width, width))
        inner = self.draw(st.integers(1, 20))
        return FeedForwardSpec(
            activation=self.draw(ACTIVATIONS),
            up=self.linear(width, inner),
            gate=self.linear(width, inner) if self.draw(st.booleans()) else None,
            down=self.linear(inner, width),
        )

    def token_rule(self, attends: bool) -> TokenRule:
        """Where linears may be rounded nothing is chosen by scores: their rounding would choose."""
        if len(self.linears) > 0 or self.draw(st.booleans()):
            return PoolRule(stride=self.draw(st.integers(2, 5)), queries_only=self.draw(st.booleans()))
        if not attends or self.draw(st.sampled_from([True, False, False])):
            return KeepShareRule(share=self.draw(st.sampled_from([0.1, 0.5, 0.7])), scorer=LearnedScorer())
        if self.draw(st.sampled_from([True, False, False])):
            share, margin = self.draw(st.sampled_from([0.5, 0.8])), self.draw(st.sampled_from([0.0, 0.4, 0.7]))
            return MergeRule(share=share, margin=margin, keep_query_terms=self.draw(st.booleans()))
        scorer = self.draw(st.sampled_from([AttentionScorer(), PageRankScorer(), PageRankScorer(restart=0.5, steps=1)]))
        if self.draw(st.booleans()):
            return KeepThresholdRule(threshold=self.draw(st.sampled_from([0.3, 0.8, 1.0])), share=0.5, scorer=scorer)
        return KeepShareRule(share=self.draw(st.sampled_from([0.1, 0.5, 0.7])), scorer=scorer)

    def layer(self, width: int, may_exit: bool) -> LayerSpec:
        is_post = self.draw(st.booleans())
        attends, feeds = (self.draw(st.sampled_from([True, True, True, True, False])) for _ in range(2))
        return LayerSpec(
            norm_placement="post" if is_post else "pre",
            attention=self.attention(width) if attends else None,
            attention_norm=self.draw(SOME_NORM) if attends or is_post else None,
            ffn=self.feed_forward(width) if feeds else None,
            ffn_norm=self.draw(SOME_NORM) if feeds or is_post else None,
            exit=self.classifier(width) if may_exit and self.draw(st.booleans()) else None,
            token_rule=self.token_rule(attends) if may_exit and not self.is_half and self.draw(st.booleans()) else None,
        )

    def head(self, width: int) -> Head:
        if self.draw(st.sampled_from([True, False, False])):
            return SimilarityHead(pool=self.draw(POOLS))
        return self.classifier(width)

    def classifier(self, width: int) -> ClassifierHead:
        inner = self.draw(st.one_of(st.none(), st.integers(1, 12)))
        return ClassifierHead(
            pool=self.draw(POOLS),
            dense=self.linear(width, inner) if inner else None,
            activation=self.draw(st.one_of(st.none(), ACTIVATIONS)),
            norm=self.draw(SOME_NORM),
            output=LinearSpec(inputs=inner or width, outputs=1),
        )


@st.composite
def specs(draw: st.DrawFn, linears: Precisions = (), tables: Precisions = ()) -> RankerSpec:
    """Draw a spec of one to three layers, no two of which need be alike; a cross-encoder's may have exits and rules."""
    parts = Parts(draw, linears, tables)
    width = draw(st.sampled_from([4, 8, 12]))
    head = parts.head(width)
    n_layers = draw(st.integers(1, 3))
    isolates_query = isinstance(head, ClassifierHead) and draw(st.sampled_from([False, False, True]))
    may_exit = [isinstance(head, ClassifierHead) and index < n_layers - 1 for index in range(n_layers)]
    return RankerSpec(
        family=draw(st.sampled_from(get_args(Family))),
        width=width,
        max_length=MAX_LENGTH,
        pad_id=draw(st.integers(0, 3)),
        separator_id=draw(st.integers(4, VOCABULARY - 1)),
        isolates_query=isolates_query,
        embeddings=parts.embeddings(width),
        layers=_judging_each_other([parts.layer(width, may) for may in may_exit]),
        final_norm=draw(SOME_NORM),
        head=head,
    )


def _judging_each_other(layers: list[LayerSpec]) -> tuple[LayerSpec, ...]:
    """Return layers whose windows see each other where a rule behind the next layer judges them by that."""
    for index, (below, above) in enumerate(pairwise(layers)):
        if isinstance(below.token_rule, PoolRule) and above.token_rule and above.token_rule.reads_attention:
            layers[index] = below.changed(token_rule=below.token_rule.changed(queries_only=False))
    return tuple(layers)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A ranker's shape, and what the random numbers of its weights and of one batch are made from."""

    spec: RankerSpec
    seed: int
    lengths: tuple[int, ...]
    columns: int

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Weights that keep activations near size one: matrices shrink with their width, no vector is all 0 or 1."""
        generator = torch.Generator().manual_seed(self.seed)
        weights = random_weights(self.spec, self.seed, scale=1.0)
        for name, tensor in weights.items():
            if name.endswith(".input_ranges"):
                continue
            if tensor.dim() == 1:
                weights[name] = tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
            elif name.endswith(".atoms"):
                weights[name] = tensor / tensor.shape[2] ** 0.5  # as one row of a matrix; what codes add is of size one
            elif tensor.is_floating_point() and (not name.startswith("embeddings.") or "project" in name):
                weights[name] = tensor / tensor.shape[1] ** 0.5
        for name in sparse_linears(self.spec):  # the smaller half goes
            weight = weights[f"{name}.weight"]
            weights[f"{name}.weight"] = weight * (weight.abs() > weight.abs().median())
        return weights

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        """Rows of the given lengths, padded on the right."""
        generator = torch.Generator().manual_seed(self.seed)
        mask = (torch.arange(self.columns) < torch.tensor(self.lengths)[:, None]).long()
        ids = torch.randint(0, self.spec.embeddings.tokens.rows, mask.shape, generator=generator)
        if self.spec.separator_id is not None:  # most rows have a document; a few have a second separator by chance
            places = [int(torch.randint(0, length, (), generator=generator)) for length in self.lengths]
            ids[range(len(places)), [place // 2 for place in places]] = self.spec.separator_id
        n_segments = self.spec.embeddings.segments.rows if self.spec.embeddings.segments else 1
        segments = torch.randint(0, n_segments, mask.shape, generator=generator)
        return {
            "input_ids": torch.where(mask.bool(), ids, self.spec.pad_id),
            "attention_mask": mask,
            "token_type_ids": segments * mask,
        }


@st.composite
def cases(draw: st.DrawFn, linears: Precisions = (), tables: Precisions = ()) -> Case:
    """Draw a spec, weights, and one to five rows of up to ``max_length`` tokens, sometimes padded beyond them all."""
    spec = draw(specs(linears, tables))
    lengths = draw(st.lists(st.integers(1, spec.max_length), min_size=1, max_size=5))
    columns = draw(st.sampled_from([max(lengths), spec.max_length]))
    return Case(spec=spec, seed=draw(st.integers(0, 2**16)), lengths=tuple(lengths), columns=columns)
