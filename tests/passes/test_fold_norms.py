"""fold_norms: scores stay whatever the norms were, and shapes in which they would not are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.algorithms.norm_folding import amplification, mean_of_centered
from compressor.errors import InputError
from compressor.passes import PlanError
from compressor.passes.fold_norms import FoldNorms
from compressor.passes.linearize_layers import LinearizeLayers
from compressor.ranker.cost import parameters
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import ClassifierHead, NormSpec, RankerSpec, SimilarityHead, TableSpec
from tests import tiny
from tests.passes.students import applied
from tests.ranker.cases import SPECS, attention, feed_forward, linear, with_exits

ATOL = 1e-4  # rounding of weights, and fp32 sums in another order
NORM = NormSpec(epsilon=1e-5)
PLAIN = NormSpec(epsilon=1e-5, bias=False)
WAYS: list[dict[str, Any]] = [
    {},
    {"gains": "keep"},
    {"norms": "keep"},
]


def pre_norm(norm: NormSpec = NORM, **changes: Any) -> RankerSpec:
    """Return a pre-norm ranker whose embeddings have positions and no norm."""
    layer = tiny.tiny_layer(norm_placement="pre", attention_norm=norm, ffn_norm=norm)
    spec = tiny.tiny_spec(layers=(layer, layer), final_norm=norm)
    return spec.changed(embeddings=spec.embeddings.changed(norm=None)).changed(**changes)


def modernbert(norm: NormSpec, **changes: Any) -> RankerSpec:
    """Return ModernBERT with a norm of another kind wherever it has one."""
    spec = SPECS["modernbert"]
    layers = tuple(
        layer.changed(attention_norm=layer.attention_norm and norm, ffn_norm=norm, **changes) for layer in spec.layers
    )
    return spec.changed(embeddings=spec.embeddings.changed(norm=norm), layers=layers, final_norm=norm)


def _projected() -> RankerSpec:
    return pre_norm(embeddings=SPECS["electra"].embeddings)


def _headed(**changes: Any) -> RankerSpec:
    return pre_norm(head=ClassifierHead(pool="mean", output=linear(16, 1)).changed(**changes))


FOLDED = {
    "modernbert": SPECS["modernbert"],
    "modernbert_with_biases": modernbert(NORM),
    "modernbert_low_rank": modernbert(NORM, ffn=feed_forward(rank=5, gated=True)).changed(final_norm=PLAIN),
    "modernbert_low_rank_attention": modernbert(NORM, attention=attention(rank=3, bias=False)),
    "pre_norm": pre_norm(),
    "pre_norm_without_biases": pre_norm(PLAIN),
    "projected_embeddings": _projected(),
    "head_without_dense": _headed(),
    "exits": with_exits(pre_norm(), SPECS["exits"].layers[0].exit),
    "mean_exit": with_exits(pre_norm(), SPECS["exits"].layers[1].exit),
    "normed_exit": with_exits(
        pre_norm(), ClassifierHead(pool="first", activation="gelu", norm=NORM, output=linear(16, 1))
    ),
    "bi_encoder": pre_norm(head=SimilarityHead(pool="mean")),
    "bi_encoder_without_biases": pre_norm(PLAIN, head=SimilarityHead(pool="first")),
}


def folded(spec: RankerSpec, data: Any = None, **settings: Any):
    ranker = tiny.build_ranker(spec, seed=4)
    return ranker, applied(FoldNorms(**settings), ranker, data)


def moved(ranker, result, data) -> float:
    pairs = data.texts(data.pairs())
    return float(np.abs(ranker.score(pairs) - result.score(pairs)).max())


@pytest.mark.parametrize("settings", WAYS, ids=str)
@pytest.mark.parametrize("name", FOLDED)
def test_scores_and_exits_stay(name, settings, tiny_data):
    ranker, result = folded(FOLDED[name], **settings)
    assert moved(ranker, result, tiny_data) < ATOL
    assert result.fingerprint != ranker.fingerprint
    batch = tiny.batch_of(ranker.spec, [7, 12, 3])
    if ranker.spec.exit_layers:
        with torch.no_grad():
            before, after = ranker.module.trace(**batch).exits, result.module.trace(**batch).exits
        assert all(torch.allclose(before[layer], after[layer], atol=ATOL) for layer in before)


@pytest.mark.parametrize("name", FOLDED)
def test_nothing_but_rounding_is_left(name):
    """In double precision the two differ by the rounding of the folded weights to fp32 alone."""
    ranker, result = folded(FOLDED[name])
    batch = tiny.batch_of(ranker.spec, [7, 12, 3])
    scores = []
    for each in (ranker, result):
        module = Encoder(each.spec).double().eval()
        module.load_state_dict({name: tensor.double() for name, tensor in each.weights.items()})
        with torch.no_grad():
            scores.append(module(**batch))
    spread = max(1.0, float(scores[0].abs().max()))
    assert float((scores[0] - scores[1]).abs().max()) < 3e-6 * spread


@pytest.mark.parametrize("name", FOLDED)
def test_the_stream_has_mean_zero_and_norms_have_gain_one(name):
    _, result = folded(FOLDED[name])
    trace = result.module.trace(**tiny.batch_of(result.spec, [7, 12, 3]))
    assert all(float(state.mean(dim=-1).abs().max()) < 1e-5 for state in trace.states)
    for layer in range(len(result.spec.layers)):
        norm = f"layers.{layer}.ffn_norm"
        assert torch.equal(result.weights[f"{norm}.weight"], torch.ones(16))
        assert f"{norm}.bias" not in result.weights


def test_a_last_norm_stays_where_its_bias_has_nowhere_to_go():
    notes: dict[str, Any] = {}
    spec = FOLDED["bi_encoder"]
    result = applied(FoldNorms(), tiny.build_ranker(spec), None, notes)
    assert result.spec.final_norm == NORM
    assert notes == {"rms_norms": 4, "layer_norms": 1}
    _, result = folded(FOLDED["bi_encoder_without_biases"])
    assert result.spec.final_norm == NormSpec(kind="rms", epsilon=1e-5, bias=False)
    assert not torch.equal(result.weights["final_norm.weight"], torch.ones(16))


def test_a_norm_of_token_rows_goes_into_the_table():
    ranker, result = folded(SPECS["modernbert"])
    assert result.spec.embeddings.norm is None
    assert parameters(ranker.spec) - parameters(result.spec) == 16
    with torch.no_grad():
        rows = ranker.module.embeddings.norm(ranker.module.embeddings.tokens.weight)
    centered = rows - rows.mean(dim=1, keepdim=True)
    torch.testing.assert_close(result.weights["embeddings.tokens.weight"], centered)


def test_layer_norms_that_stay_leave_the_embeddings_alone():
    ranker, result = folded(SPECS["modernbert"], norms="keep")
    assert result.spec == ranker.spec
    same = {name for name, tensor in ranker.weights.items() if torch.equal(tensor, result.weights[name])}
    assert {name for name in ranker.weights if name.startswith("embeddings.")} <= same
    assert "layers.1.attention.query.weight" not in same


def test_rms_norms_alone_give_their_gains():
    spec = SPECS["rms_norm"]
    assert spec.embeddings.norm
    ranker, result = folded(spec)
    assert result.spec == ranker.spec
    assert torch.equal(result.weights["layers.0.ffn_norm.weight"], torch.ones(16))


def test_linear_maps_are_folded(tiny_data):
    ranker = tiny.build_ranker(SPECS["modernbert"], seed=4)
    linear = applied(LinearizeLayers(replace=[0, 1]), ranker, tiny_data)
    assert moved(linear, applied(FoldNorms(), linear), tiny_data) < ATOL


def test_folding_twice_is_folding_once(tiny_data):
    _, once = folded(FOLDED["modernbert_with_biases"])
    twice = applied(FoldNorms(), once)
    assert twice.fingerprint == once.fingerprint


@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_the_mean_of_a_layer_norm_is_known_from_the_rest(zeros):
    generator = torch.Generator().manual_seed(1)
    gain, bias = 1 + 0.3 * torch.randn(12, generator=generator), torch.randn(12, generator=generator)
    gain[:zeros] = 0
    found = torch.nn.functional.layer_norm(
        torch.randn(50, 12, generator=generator, dtype=torch.float64), (12,), gain.double(), bias.double()
    )
    factors, constant = mean_of_centered(gain, bias)
    mean = found.mean(dim=1)
    torch.testing.assert_close(constant - (found - mean[:, None]) @ factors, mean)


def test_gains_that_hide_the_mean_are_refused():
    spec = SPECS["modernbert"]
    ranker = tiny.build_ranker(spec)
    gain = torch.ones(16)
    gain[8:] = -1
    gain[0] = 1.0001
    assert amplification(gain) > 1000
    ranker = ranker.changed(weights={**ranker.weights, "embeddings.norm.weight": gain})
    with pytest.raises(InputError, match="would make rounding") as caught:
        applied(FoldNorms(), ranker)
    assert "norms: keep" in str(caught.value)
    applied(FoldNorms(norms="keep"), ranker)


_MODERN = SPECS["modernbert"]
_RMS = NormSpec(kind="rms", epsilon=1e-6, bias=False)
REFUSED: dict[str, tuple[RankerSpec, str]] = {
    "post_norm": (SPECS["bert"], "layer 0, whose norms stand behind its blocks"),
    "one_post_norm": (SPECS["uneven_layers"], "layer 0, whose norms stand behind its blocks"),
    "normed_sum": (SPECS["pre_norm"], "a norm over the sum of several embeddings"),
    "no_final_norm": (pre_norm(final_norm=None), "the head reads the stream without a norm"),
    "raw_attention": (
        _MODERN.changed(layers=(_MODERN.layers[0],) * 2),
        r"layers\.1\.attention reads the stream without a norm",
    ),
    "raw_attention_of_plain_embeddings": (
        _MODERN.changed(embeddings=_MODERN.embeddings.changed(norm=None)),
        r"layers\.0\.attention reads the stream without a norm",
    ),
    "raw_attention_of_rms_embeddings": (
        _MODERN.changed(embeddings=_MODERN.embeddings.changed(norm=_RMS)),
        r"layers\.0\.attention reads the stream without a norm",
    ),
    "rms_beside_layer_norms": (pre_norm(final_norm=_RMS), "final_norm, an RMS norm beside layer norms"),
    "positions": (
        _MODERN.changed(embeddings=_MODERN.embeddings.changed(positions=TableSpec(rows=40, width=16))),
        "a norm over the sum of several embeddings",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_shapes_that_need_the_mean_are_refused(name):
    spec, reason = REFUSED[name]
    with pytest.raises(PlanError, match=reason) as caught:
        FoldNorms().plan(spec)
    assert caught.value.allowed
    assert FoldNorms(norms="keep", gains="keep").plan(spec) == spec
