"""Each component of the written graph against its torch twin, in both dialects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.export.attention import attention
from compressor.export.graph import Graph
from compressor.export.heads import head
from compressor.export.layers import feed_forward, layer
from compressor.export.layout import build_layout, first_tokens, keep_rows, keep_tokens, pad, row_means
from compressor.export.linears import add_bias
from compressor.ranker.attention import Attention
from compressor.ranker.heads import build_head
from compressor.ranker.layers import FeedForward, Layer
from compressor.ranker.spec import (
    CausalPattern,
    ClassifierHead,
    DropoutSpec,
    FullPattern,
    Int8Dynamic,
    LinearSpec,
    NormSpec,
    RotarySpec,
    SimilarityHead,
    WindowPattern,
)
from compressor.ranker.tokens import TokenLayout
from tests.export.component import DIALECTS, close, ragged_mask, run_component, tensors, values
from tests.ranker.cases import attention as attention_spec
from tests.ranker.cases import feed_forward as feed_forward_spec
from tests.tiny import WIDTH, tiny_layer

pytestmark = pytest.mark.parametrize("dialect", DIALECTS)

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
        pool="first", dense=LinearSpec(inputs=WIDTH, outputs=24), activation="tanh",
        output=LinearSpec(inputs=24, outputs=1),
    ),
    "normed": ClassifierHead(
        pool="mean", dense=LinearSpec(inputs=WIDTH, outputs=24, bias=False), activation="gelu",
        norm=NormSpec(epsilon=1e-5, bias=False),
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
