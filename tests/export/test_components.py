"""Each component of the written graph against its torch twin, in both dialects."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from compressor.export.attention import attention
from compressor.export.graph import Graph
from compressor.export.heads import head
from compressor.export.layers import activate, feed_forward, layer, norm
from compressor.export.layout import build_layout, first_tokens, keep_rows, keep_tokens, pad, row_means
from compressor.export.linears import Product, add_bias, fused_linears, linear, table
from compressor.ranker.attention import Attention
from compressor.ranker.heads import build_head
from compressor.ranker.layers import FeedForward, Layer, build_norm
from compressor.ranker.layers import activate as torch_activate
from compressor.ranker.linears import Linear, Table
from compressor.ranker.spec import (
    Activation,
    CausalPattern,
    ClassifierHead,
    DropoutSpec,
    Float16,
    FullPattern,
    Int4Blocks,
    Int8Blocks,
    Int8Dynamic,
    Int8Rows,
    Int8Static,
    LinearSpec,
    LowRankForm,
    NormSpec,
    RotarySpec,
    SimilarityHead,
    TableSpec,
    WindowPattern,
)
from compressor.ranker.tokens import TokenLayout
from tests.export.component import DIALECTS, TOLERANCE, ragged_mask, run_component, tensors, values
from tests.ranker.cases import attention as attention_spec
from tests.ranker.cases import feed_forward as feed_forward_spec
from tests.tiny import WIDTH, tiny_layer

pytestmark = pytest.mark.parametrize("dialect", DIALECTS)

NORMS = {
    "layer": NormSpec(epsilon=1e-5),
    "layer without bias": NormSpec(epsilon=1e-5, bias=False),
    "rms": NormSpec(kind="rms", epsilon=1e-6, bias=False),
}
LINEARS = {
    "dense": LinearSpec(inputs=WIDTH, outputs=24),
    "without bias": LinearSpec(inputs=WIDTH, outputs=24, bias=False),
    "low rank": LinearSpec(inputs=WIDTH, outputs=24, form=LowRankForm(rank=3)),
    "int8": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Dynamic()),
    "int8 of 7 bits": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Dynamic(reduce_range=True)),
    "int8 low rank": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Dynamic(), form=LowRankForm(rank=3)),
    "static int8": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Static()),
    "static int8 low rank": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Static(), form=LowRankForm(rank=3)),
    "int8 blocks": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Blocks()),
    "int4 blocks": LinearSpec(inputs=WIDTH, outputs=24, precision=Int4Blocks()),
    "int4 blocks low rank": LinearSpec(inputs=WIDTH, outputs=24, precision=Int4Blocks(), form=LowRankForm(rank=3)),
    "fp16": LinearSpec(inputs=WIDTH, outputs=24, precision=Float16()),
}
ATTENTIONS = {
    "full": attention_spec(),
    "one head": attention_spec(heads=1, head_width=WIDTH),
    "narrow heads": attention_spec(heads=3, head_width=2),
    "without bias": attention_spec(bias=False),
    "low rank": attention_spec(rank=3),
    "window": attention_spec(pattern=WindowPattern(reach=2)),
    "causal": attention_spec(pattern=CausalPattern()),
    "rotary": attention_spec(rotary_base=100.0),
    "rotary in a window": attention_spec(rotary_base=10000.0, pattern=WindowPattern(reach=1)),
}
FEED_FORWARDS = {
    "plain": feed_forward_spec(),
    "gated": feed_forward_spec("silu", gated=True),
    "low rank": feed_forward_spec("relu", rank=3),
}


def close(found: np.ndarray, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == tuple(expected.shape)
    np.testing.assert_allclose(found, expected.numpy(), atol=tolerance * max(1.0, float(expected.abs().max())), rtol=0)


def whole(value: str, width: int = WIDTH, bias: torch.Tensor | None = None) -> Product:
    return Product(value=value, columns=width, width=width, bias=bias)


@pytest.mark.parametrize("spec", NORMS.values(), ids=NORMS)
def test_norm(dialect, spec):
    module = build_norm(spec, WIDTH)
    weights = tensors(module, "n")
    x = values(5, WIDTH) * 3 + 1
    close(run_component(dialect, {"x": x}, lambda g: norm(g, "norm", "n", spec, weights, "x")), module(torch.tensor(x)))


def test_absent_norm_is_the_identity(dialect):
    x = values(5, WIDTH)
    found = run_component(dialect, {"x": x}, lambda g: g.node("Identity", [norm(g, "n", "n", None, {}, "x")], "same"))
    assert np.array_equal(found, x)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", get_args(Activation))
def test_activation(dialect, kind, biased):
    x = np.linspace(-9, 9, 7 * WIDTH, dtype=np.float32).reshape(7, WIDTH)
    bias = torch.tensor(values(WIDTH)) if biased else None
    found = run_component(dialect, {"x": x}, lambda g: activate(g, "act", kind, whole("x", bias=bias)))
    close(found, torch_activate(torch.tensor(x) + (0 if bias is None else bias), kind))


@pytest.mark.parametrize("spec", LINEARS.values(), ids=LINEARS)
def test_linear(dialect, spec):
    module = Linear(spec)
    weights = tensors(module, "l")
    x = values(9, WIDTH)
    found = run_component(dialect, {"x": x}, lambda g: add_bias(g, "sum", linear(g, "linear", "l", spec, weights, "x")))
    # ONNX Runtime's CPU computes half precision in fp32 and skips some of the roundings in between: a step of 2^-11.
    close(found, module(torch.tensor(x)), 5e-4 if spec.precision.kind == "fp16" else TOLERANCE)


@pytest.mark.parametrize("spec", [LINEARS[n] for n in ("dense", "int8", "static int8", "int4 blocks")])
def test_linears_of_one_input_share_a_product(dialect, spec):
    modules = {part: Linear(spec) for part in ("query", "value")}
    weights = {
        name: tensor for part, module in modules.items() for name, tensor in tensors(module, f"a.{part}").items()
    }
    x = values(9, WIDTH)
    made = []

    def write(graph):
        made.extend(fused_linears(graph, "a", "a", dict.fromkeys(modules, spec), weights, "x"))
        return graph.node("Identity", [made[0].value], "all")

    found = run_component(dialect, {"x": x}, write)
    assert [(one.first, one.width, one.columns) for one in made] == [(0, 24, 48), (24, 24, 48)]
    for one, module in zip(made, modules.values(), strict=True):
        bias = 0 if one.bias is None else one.bias.numpy()
        close(found[:, one.first : one.first + one.width] + bias, module(torch.tensor(x)))


@pytest.mark.parametrize("first_row", [0, 2])
@pytest.mark.parametrize("precision", [None, Int8Rows(), Float16()], ids=["fp32", "int8", "fp16"])
def test_table(dialect, precision, first_row):
    spec = TableSpec(rows=11, width=6, **({"precision": precision} if precision else {}))
    module = Table(spec)
    weights = tensors(module, "t")
    ids = np.array([0, 3, 8, 3], dtype=np.int64)
    found = run_component(dialect, {"ids": ids}, lambda g: table(g, "table", "t", spec, weights, "ids", first_row))
    close(found, module(torch.tensor(ids + first_row)))


def test_layout_leads_to_the_padded_view_and_back(dialect):
    mask = ragged_mask()
    layout = TokenLayout.of(torch.tensor(mask))
    x = values(int(mask.sum()), 3)
    for name in ("to_packed", "positions", "first"):

        def write(graph: Graph, name: str = name) -> str:
            return graph.node("Identity", [getattr(build_layout(graph, "mask"), name)], "out")

        found = run_component(dialect, {"mask": mask}, write, kind=np.int64)
        assert np.array_equal(found, getattr(layout, name).numpy()), name
    inputs = {"mask": mask, "x": x}
    padded = run_component(dialect, inputs, lambda g: pad(g, build_layout(g, "mask"), "x", "padded"))
    assert np.array_equal(padded[mask == 1], x)
    for row, n_tokens in enumerate(mask.sum(axis=1)):
        assert np.array_equal(padded[row, n_tokens:], np.repeat(padded[row, :1], 9 - n_tokens, axis=0))
    means = run_component(dialect, inputs, lambda g: row_means(g, build_layout(g, "mask"), "x", "means"))
    close(means, layout.row_means(torch.tensor(x)))
    firsts = run_component(dialect, inputs, lambda g: first_tokens(g, build_layout(g, "mask"), "x", "first"))
    assert np.array_equal(firsts, padded[:, 0])


@pytest.mark.parametrize("what", ["tokens", "rows"])
@pytest.mark.parametrize("spec", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention_over_what_is_left_of_tokens_and_rows(dialect, spec, what):
    """Rotary angles and windows go by the places that tokens had."""
    module = Attention(spec, dropout=0.0)
    weights = tensors(module, "a", scale=0.4)
    mask = ragged_mask()
    n_tokens = int(mask.sum())
    x = values(n_tokens, WIDTH)
    before = TokenLayout.of(torch.tensor(mask))
    kept = np.random.default_rng(3).random(n_tokens) < 0.6
    kept[before.first.numpy()] = True
    chosen = {"tokens": kept, "rows": np.array([len(mask) - 1, 0, 2], dtype=np.int64)}[what]
    shrink = {"tokens": (TokenLayout.keep_tokens, keep_tokens), "rows": (TokenLayout.keep_rows, keep_rows)}[what]
    after, index = shrink[0](before, torch.tensor(chosen))

    def write(graph):
        layout, kept = shrink[1](graph, build_layout(graph, "mask"), "chosen", "less")
        left = graph.node("Gather", ["x", kept], "left", axis=0)
        return add_bias(graph, "sum", attention(graph, "a", "a", spec, weights, left, layout, False))

    found = run_component(dialect, {"mask": mask, "x": x, "chosen": chosen}, write)
    assert after.mask.shape[1] == after.mask.sum(dim=1).max()
    assert len(index) == int(after.mask.sum())
    close(found, module(torch.tensor(x)[index], after))


def run_attention(dialect, spec, mask, x, weights, first_only):
    def write(graph):
        layout = build_layout(graph, "mask")
        return add_bias(graph, "sum", attention(graph, "a", "a", spec, weights, "x", layout, first_only))

    return run_component(dialect, {"mask": mask, "x": x}, write)


@pytest.mark.parametrize("first_only", [False, True], ids=["all tokens", "first tokens"])
@pytest.mark.parametrize("spec", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention(dialect, spec, first_only):
    module = Attention(spec, dropout=0.0)
    weights = tensors(module, "a", scale=0.4)
    mask = ragged_mask()
    x = values(int(mask.sum()), WIDTH)
    expected = module(torch.tensor(x), TokenLayout.of(torch.tensor(mask)), first_only)
    close(run_attention(dialect, spec, mask, x, weights, first_only), expected)


@pytest.mark.parametrize("first_only", [False, True], ids=["all tokens", "first tokens"])
@pytest.mark.parametrize(
    "pattern", [FullPattern(), WindowPattern(reach=3), CausalPattern()], ids=["full", "window", "causal"]
)
def test_what_is_hidden_stays_hidden_where_scores_are_extreme(dialect, pattern, first_only):
    spec = attention_spec(pattern=pattern)
    module = Attention(spec, dropout=0.0)
    weights = tensors(module, "a", scale=20.0)  # scores of up to a hundred thousand: every softmax picks one key
    mask = (np.arange(40) < np.array([9, 40, 2])[:, None]).astype(np.int64)
    x = values(51, WIDTH)
    expected = module(torch.tensor(x), TokenLayout.of(torch.tensor(mask)), first_only)
    close(run_attention(dialect, spec, mask, x, weights, first_only), expected, 1e-3)


@pytest.mark.parametrize("scale", [0.02, 0.4, 3.0])
def test_padding_leaves_a_row_as_it_is(dialect, scale):
    spec = attention_spec()
    weights = tensors(Attention(spec, dropout=0.0), "a", scale=scale)
    x = values(9, WIDTH)
    alone = run_attention(dialect, spec, np.ones((1, 9), np.int64), x, weights, False)
    mask = (np.arange(400) < np.array([9, 400])[:, None]).astype(np.int64)
    beside = run_attention(dialect, spec, mask, np.concatenate([x, values(400, WIDTH, seed=1)]), weights, False)
    np.testing.assert_allclose(beside[:9], alone, rtol=0, atol=1e-6 * np.abs(alone).max())


def test_a_row_padded_on_the_left_sees_no_other_row(dialect):
    spec = attention_spec()
    module = Attention(spec, dropout=0.0)
    weights = tensors(module, "a", scale=8.0)
    x = values(9, WIDTH)
    alone = run_attention(dialect, spec, np.ones((1, 9), np.int64), x, weights, False)
    mask = np.stack([np.ones(40), np.arange(40) >= 31]).astype(np.int64)
    others = values(40, WIDTH, seed=1)
    beside = run_attention(dialect, spec, mask, np.concatenate([others, x]), weights, False)
    np.testing.assert_allclose(beside[40:], alone, rtol=1e-5, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("spec", FEED_FORWARDS.values(), ids=FEED_FORWARDS)
def test_feed_forward(dialect, spec):
    module = FeedForward(spec)
    weights = tensors(module, "f")
    x = values(9, WIDTH)
    found = run_component(
        dialect, {"x": x}, lambda g: add_bias(g, "sum", feed_forward(g, "f", "f", spec, weights, "x"))
    )
    close(found, module(torch.tensor(x)))


@pytest.mark.parametrize("first_only", [False, True], ids=["all tokens", "first tokens"])
@pytest.mark.parametrize("placement", ["post", "pre"])
@pytest.mark.parametrize("normed", [True, False], ids=["normed", "without attention norm"])
def test_layer(dialect, placement, normed, first_only):
    rotary = attention_spec(rotary_base=50.0).changed(positions=RotarySpec(base=50.0))
    spec = tiny_layer(norm_placement=placement, attention=rotary)
    spec = spec if normed else spec.changed(attention_norm=None)
    module = Layer(spec, WIDTH, DropoutSpec())
    weights = tensors(module, "layers.1", scale=0.4)
    mask = ragged_mask()
    x = values(int(mask.sum()), WIDTH)
    found = run_component(
        dialect, {"mask": mask, "x": x},
        lambda g: layer(g, 1, spec, weights, "x", build_layout(g, "mask"), first_only),
    )  # fmt: skip
    close(found, module(torch.tensor(x), TokenLayout.of(torch.tensor(mask)), first_only))


HEADS = {
    "pooler": ClassifierHead(
        pool="first", dense=LINEARS["dense"], activation="tanh", output=LinearSpec(inputs=24, outputs=1)
    ),
    "normed": ClassifierHead(
        pool="mean", dense=LINEARS["without bias"], activation="gelu", norm=NORMS["layer without bias"],
        output=LinearSpec(inputs=24, outputs=1),
    ),
    "bare": ClassifierHead(pool="first", output=LinearSpec(inputs=WIDTH, outputs=1)),
    "int8": ClassifierHead(pool="first", output=LinearSpec(inputs=WIDTH, outputs=1, precision=Int8Dynamic())),
    "similarity": SimilarityHead(pool="mean"),
}  # fmt: skip


@pytest.mark.parametrize("spec", HEADS.values(), ids=HEADS)
def test_head(dialect, spec):
    module = build_head(spec, dropout=0.0)
    weights = tensors(module, "head")
    x = values(5, WIDTH)
    close(run_component(dialect, {"x": x}, lambda g: head(g, spec, weights, "x")), module(torch.tensor(x)))


def test_similarity_of_a_zero_vector_is_finite(dialect):
    found = run_component(
        dialect, {"x": np.zeros((2, WIDTH), np.float32)}, lambda g: head(g, SimilarityHead(pool="mean"), {}, "x")
    )
    assert np.array_equal(found, np.zeros((2, WIDTH)))
