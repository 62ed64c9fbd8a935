"""quantize with keep_within: what rounding ruins is kept, the limit holds for what comes out, and no more is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compressor.errors import InputError
from compressor.passes import PlanError
from compressor.passes.quantize import Quantize
from compressor.ranker.cost import linears_of, macs, parameters
from compressor.ranker.spec import FeedForwardSpec, LowRankForm, PoolRule
from tests import tiny
from tests.passes.students import supply_for

PAIRS, CANDIDATES = 48, 8
ANY = 1e9  # a limit that holds whatever is rounded
PLANTED = "layers.0.ffn.down"


def run(ranker, data, notes=None, *, scheme="int4_blocks", embeddings=True, keep_fp32=(), **keep):
    settings = {"n_pairs": PAIRS, "candidates": CANDIDATES, **keep}
    step = Quantize.model_validate(
        {"scheme": scheme, "embeddings": embeddings, "keep_fp32": keep_fp32, "keep_within": settings}
    )
    planned, supply = step.plan(ranker.spec), supply_for(step, data, ranker)
    result = step.apply(ranker, supply)
    check_plan(step, planned, result.spec)
    if notes is not None:
        notes.update(supply.notes)
    return result


def check_plan(step, planned, found):
    """A plan says all but which linears are kept."""
    assert (parameters(found), macs(found, 20), len(found.layers)) == (
        parameters(planned), macs(planned, 20), len(planned.layers),
    )  # fmt: skip
    assert found.embeddings == planned.embeddings
    before, after = kinds(planned), kinds(found)
    changed = {name: kind for name, kind in after.items() if kind != before[name]}
    assert set(changed.values()) <= {step.keep_within.precision}
    assert {before[name] for name in changed} <= {step.scheme}


def kinds(spec):
    return {name: linear.precision.kind for name, linear in linears_of(spec)}


def centered_rmse(ranker, exact, data):
    """Return how far scores of all lists move, each list's mean change taken out, without the code under test."""
    pairs = data.pairs()
    texts = data.texts(pairs)
    change = ranker.score(texts) - exact.score(texts)  # in one call: dynamic scales depend on batches
    own = [change[[query == each for query, _ in pairs]] for each in data.candidates]
    return float(np.sqrt(np.mean(np.concatenate([one - one.mean() for one in own]) ** 2)))


@pytest.fixture(scope="module")
def planted():
    """A ranker one of whose matrices has a column so large that 4 bits leave little of its neighbors, and 8 do.

    The neuron that the column reads is always 0, so exact scores are those of a ranker without it.
    """
    ranker = tiny.build_ranker()
    weights = {name: tensor.clone() for name, tensor in ranker.weights.items()}
    weights["layers.0.ffn.up.weight"][5] = 0
    weights["layers.0.ffn.up.bias"][5] = 0
    weights[f"{PLANTED}.weight"][:, 5] = 8
    return ranker.changed(weights=weights)


def test_what_rounding_ruins_is_found_and_alone_is_kept(planted, tiny_data):
    notes: dict[str, Any] = {}
    run(planted, tiny_data, notes, max_score_rmse=ANY, cost="bytes")
    assert notes["kept"] == []
    found = {row["linears"]: row["score_rmse"] for row in notes["sensitivity"]}
    assert max(found, key=found.__getitem__) == PLANTED
    others = float(np.sqrt(sum(value**2 for name, value in found.items() if name != PLANTED)))
    assert found[PLANTED] > 2 * others
    result = run(planted, tiny_data, notes, max_score_rmse=1.5 * others, cost="bytes")
    assert notes["kept"] == [PLANTED]
    assert [row["linears"] for row in notes["sensitivity"] if row["is_kept"]] == [PLANTED]
    assert Counter(kinds(result.spec).values()) == {"int4_blocks": 11, "fp32": 3}
    assert kinds(result.spec)[PLANTED] == "fp32"
    assert notes["predicted"]["score_rmse"] == pytest.approx(others, rel=1e-4)
    assert notes["joint"]["score_rmse"] <= 1.5 * others < notes["all_rounded"]["score_rmse"]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("precision", ["fp32", "int8_blocks", "int8_dynamic"])
def test_the_limit_holds_for_what_comes_out(share, precision, planted, tiny_data):
    notes: dict[str, Any] = {}
    worst = centered_rmse(run(planted, tiny_data, max_score_rmse=ANY), planted, tiny_data)
    result = run(planted, tiny_data, notes, max_score_rmse=share * worst, precision=precision)
    found = centered_rmse(result, planted, tiny_data)
    assert notes["all_rounded"]["score_rmse"] == pytest.approx(worst, rel=1e-3)
    assert found <= share * worst * (1 + 1e-4)
    assert notes["joint"]["score_rmse"] == pytest.approx(found, rel=1e-3)  # all of the tiny lists were measured
    assert set(notes["kept"]) == {name for name, kind in kinds(result.spec).items() if kind == precision} - {
        "head.dense", "head.output",
    }  # fmt: skip
    assert 0 < len(notes["kept"]) < 12
    assert 0 < notes["kept_share"]["macs"] < 1
    assert PLANTED in notes["kept"]


def test_a_limit_of_order_is_kept_too(planted, tiny_data):
    notes: dict[str, Any] = {}
    run(planted, tiny_data, notes, max_score_rmse=ANY)
    least = (1 + notes["all_rounded"]["kendall_tau"]) / 2
    assert least < 1
    run(planted, tiny_data, notes, min_kendall_tau=least)
    assert notes["joint"]["kendall_tau"] >= least > notes["all_rounded"]["kendall_tau"]
    most = notes["all_rounded"]["ndcg_loss"] / 2
    run(planted, tiny_data, notes, max_ndcg_loss=most)
    assert notes["joint"]["ndcg_loss"] <= most < notes["all_rounded"]["ndcg_loss"]


def test_where_all_has_to_stay_all_stays_and_is_said(tiny_ranker, tiny_data):
    notes: dict[str, Any] = {}
    result = run(tiny_ranker, tiny_data, notes, max_score_rmse=1e-12, embeddings=False)
    assert result.spec == tiny_ranker.spec
    assert len(notes["kept"]) == 12
    assert notes["kept_share"] == {"macs": 1.0}
    assert notes["joint"] == {"score_rmse": 0.0, "raw_score_rmse": 0.0, "kendall_tau": 1.0, "ndcg_loss": 0.0}
    assert Quantize(scheme="int8_dynamic").promises(result) == []


@pytest.mark.parametrize(
    ("keep", "embeddings", "message"),
    [
        ({"precision": "fp32"}, True, r"of 12 linears in fp32.*lookup tables in int8_rows; allowed: at most 1e-12"),
        ({"precision": "int8_blocks"}, False, r"of 12 linears in int8_blocks.*; allow more or keep in fp32$"),
    ],
)
def test_a_limit_out_of_reach_is_refused_with_what_was_reached(keep, embeddings, message, tiny_ranker, tiny_data):
    with pytest.raises(InputError, match=message) as refused:
        run(tiny_ranker, tiny_data, max_score_rmse=1e-12, embeddings=embeddings, **keep)
    assert "keep_within.max_score_rmse" in str(refused.value)


def test_kept_names_stay_beside_what_is_chosen(planted, tiny_data):
    notes: dict[str, Any] = {}
    names = ["layers.1.*", "layers.0.attention.key"]
    result = run(planted, tiny_data, notes, max_score_rmse=ANY, keep_fp32=names)
    assert [row["linears"] for row in notes["sensitivity"]] == [
        "layers.0.attention.query_value", "layers.0.attention.output", "layers.0.ffn.up", PLANTED,
    ]  # fmt: skip
    assert kinds(result.spec)["layers.1.ffn.down"] == kinds(result.spec)["layers.0.attention.key"] == "fp32"


@pytest.mark.parametrize("scheme", ["int8_static", "int8_dynamic"])
def test_8_bits_are_placed_as_4_are(scheme, tiny_ranker, tiny_data):
    notes: dict[str, Any] = {}
    run(tiny_ranker, tiny_data, notes, scheme=scheme, max_score_rmse=ANY)
    limit = notes["all_rounded"]["score_rmse"] / 2
    result = run(tiny_ranker, tiny_data, notes, scheme=scheme, max_score_rmse=limit, embeddings=False)
    assert notes["joint"]["score_rmse"] <= limit
    left = [name for name, kind in kinds(result.spec).items() if kind == scheme]
    assert 0 < len(left) < 12
    if scheme == "int8_static":
        assert {name.removesuffix(".input_ranges") for name in result.weights if "ranges" in name} == set(left)


def test_judgments_are_not_needed_and_the_exact_ranker_is_left_alone(planted, tiny_data):
    before = planted.changed().fingerprint
    unjudged = replace(tiny_data, qrels={})
    first, second = (run(planted, data, max_score_rmse=0.2) for data in (tiny_data, unjudged))
    assert first.fingerprint == second.fingerprint
    assert planted.changed().fingerprint == before


def test_measurements_are_kept_in_the_scratch_folder(tiny_ranker, tiny_data):
    step = Quantize.model_validate(
        {"scheme": "int4_blocks", "keep_within": {"max_score_rmse": ANY, "precision": "int8_blocks", "n_pairs": 16}}
    )
    supply = supply_for(step, tiny_data, tiny_ranker)
    step.apply(tiny_ranker, supply)
    assert {path.name for path in supply.scratch.iterdir()} == {
        "sensitivity-int4_blocks.json", "sensitivity-int8_blocks.json",
    }  # fmt: skip


def test_factors_are_placed_as_matrices_are(tiny_data):
    layer = tiny.tiny_layer()
    assert isinstance(layer.ffn, FeedForwardSpec)
    thin = layer.changed(ffn=layer.ffn.changed(up=layer.ffn.up.changed(form=LowRankForm(rank=4))))
    ranker = tiny.build_ranker(tiny.tiny_spec(layers=(thin, layer)))
    notes: dict[str, Any] = {}
    run(ranker, tiny_data, notes, scheme="int8_static", max_score_rmse=1e-12, embeddings=False)
    assert "layers.0.ffn.up" in notes["kept"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "int4_blocks", "keep_within": {}}, "name a limit: max_score_rmse, min_kendall_tau or max_ndcg_los"),
        ({"scheme": "fp16", "keep_within": {"max_score_rmse": 1}}, "chooses linears of int4_blocks, .* not of fp16"),
        ({"scheme": "none", "keep_within": {"max_score_rmse": 1}}, "not of none"),
        (
            {"scheme": "int8_blocks", "keep_within": {"max_score_rmse": 1, "precision": "int8_dynamic"}},
            "keep_within.precision of int8_blocks is fp32, not int8_dynamic",
        ),
        ({"scheme": "int4_blocks", "keep_within": {"max_score_rmse": 0}}, "greater than 0"),
        ({"scheme": "int4_blocks", "keep_within": {"min_kendall_tau": 1.5}}, "less than or equal to 1"),
        (
            {"scheme": "int4_blocks", "keep_within": {"max_score_rmse": 1, "candidates": 1}},
            "greater than or equal to 2",
        ),
        ({"scheme": "int4_blocks", "keep_within": {"max_rmse": 1}}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Quantize.model_validate(settings)


def test_what_cannot_be_measured_is_refused(tiny_ranker, tiny_data):
    one_each = replace(tiny_data, candidates={query: found[:1] for query, found in tiny_data.candidates.items()})
    with pytest.raises(InputError, match="no query with two candidates"):
        run(tiny_ranker, one_each, max_score_rmse=1)
    layers = (tiny.tiny_layer(token_rule=PoolRule(stride=2)), tiny.tiny_layer())
    step = Quantize.model_validate({"scheme": "int4_blocks", "keep_within": {"max_score_rmse": 1}})
    with pytest.raises(PlanError, match="lets tokens go behind layer 0") as refused:
        step.plan(tiny.tiny_spec(layers=layers))
    assert refused.value.setting == "keep_within"


def test_only_with_a_limit_is_calibration_needed():
    assert Quantize(scheme="int4_blocks").needs() == frozenset()
    limited = Quantize.model_validate({"scheme": "int4_blocks", "keep_within": {"min_kendall_tau": 0.9}})
    assert limited.needs() == {"calibration"}
