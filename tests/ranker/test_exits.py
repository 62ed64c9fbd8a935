"""Exits: what they score, that nobody else notices them, and how a ranker loses them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from compressor.errors import InputError, RunError
from compressor.ranker.cost import linears_of, macs, parameters
from compressor.ranker.encoder import random_weights
from compressor.ranker.rounding import round_spec
from compressor.ranker.spec import Int8Dynamic, Int8Rows
from compressor.ranker.store import load_ranker, save_ranker
from tests.ranker.cases import SPECS
from tests.ranker.padded_oracle import oracle
from tests.tiny import batch_of, build_ranker, lively_weights, module_of

WITH_EXITS = [name for name, spec in SPECS.items() if spec.exit_layers]
LENGTHS = [1, 7, 40, 23, 2]
ORACLE_TOLERANCE = 1e-5  # fp32 against float64, as in test_encoder


@pytest.fixture(params=WITH_EXITS)
def spec(request):
    return SPECS[request.param]


def test_the_cases_have_exits_of_both_pools_and_behind_a_final_norm():
    heads = [(spec.final_norm is not None, layer.exit.pool) for name in WITH_EXITS
             for spec in [SPECS[name]] for layer in spec.layers if layer.exit]  # fmt: skip
    assert set(heads) == {(False, "first"), (False, "mean"), (True, "first"), (True, "mean")}


@torch.inference_mode()
def test_an_exit_scores_as_a_padded_ranker_that_ends_there(spec):
    weights, batch = lively_weights(spec), batch_of(spec, LENGTHS)
    found = module_of(spec).trace(**batch).exits
    assert tuple(found) == spec.exit_layers
    for layer, logits in found.items():
        # The oracle knows nothing of exits: it is given a ranker whose head is this exit.
        *layers, last = spec.without_exits().layers[: layer + 1]
        ends = spec.changed(layers=(*layers, last.changed(token_rule=None)), head=spec.layers[layer].exit)
        place = f"layers.{layer}.exit."
        head = {n.replace(place, "head."): t for n, t in weights.items() if n.startswith(place)}
        expected = oracle(ends, {**{n: t for n, t in weights.items() if not n.startswith("head.")}, **head}, **batch)
        assert expected.std() > 0.01
        torch.testing.assert_close(logits.double(), expected, rtol=ORACLE_TOLERANCE, atol=ORACLE_TOLERANCE)


@torch.inference_mode()
def test_scores_are_those_without_exits_to_the_bit_and_no_exit_is_run(spec):
    ranker, batch = build_ranker(spec), batch_of(spec, LENGTHS)
    plain = ranker.without_exits()
    for layer in spec.exit_layers:
        ranker.module.layers[layer].exit.register_forward_hook(lambda *_: pytest.fail("an exit was run"))
    assert torch.equal(ranker.module(**batch), plain.module(**batch))
    with pytest.raises(pytest.fail.Exception, match="an exit was run"):
        ranker.module.trace(**batch)


def test_without_exits_drops_their_weights_alone(spec):
    ranker = build_ranker(spec)
    plain = ranker.without_exits()
    assert plain.spec.exit_layers == ()
    gone = ranker.weights.keys() - plain.weights.keys()
    assert gone == {name for name in ranker.weights if re.match(r"layers\.\d+\.exit\.", name)}
    assert gone
    assert plain.without_exits() is plain


def test_exits_cost_parameters_and_no_multiply_adds(spec):
    plain = spec.without_exits()
    sizes = {name: tensor.numel() for name, tensor in random_weights(spec, 0).items() if ".exit." in name}
    assert parameters(spec) - parameters(plain) == sum(sizes.values()) > 0
    assert macs(spec, 30) == macs(plain, 30)
    outputs = [name for name, _ in linears_of(spec) if name.endswith(".exit.output")]
    assert outputs == [f"layers.{layer}.exit.output" for layer in spec.exit_layers]


def test_rounding_leaves_exits_as_they_are(spec):
    rounded = round_spec(spec, Int8Dynamic(), Int8Rows())
    assert [layer.exit for layer in rounded.layers] == [layer.exit for layer in spec.layers]
    kinds = {name: linear.precision.kind for name, linear in linears_of(rounded)}
    assert {kind for name, kind in kinds.items() if ".exit." in name} == {"fp32"}
    assert kinds["layers.0.ffn.up"] == "int8_dynamic"


@torch.inference_mode()
def test_exits_come_back_from_disk_to_the_bit(spec, tmp_path):
    ranker, batch = build_ranker(spec), batch_of(spec, LENGTHS)
    save_ranker(ranker, tmp_path / "ranker")
    again = load_ranker(tmp_path / "ranker")
    assert again.spec == spec
    found, expected = again.module.trace(**batch).exits, ranker.module.trace(**batch).exits
    assert all(torch.equal(found[layer], logits) for layer, logits in expected.items())


def test_weights_of_exits_are_filled_strictly(tmp_path):
    ranker = build_ranker(SPECS["exits"])
    missing = {name: tensor for name, tensor in ranker.weights.items() if name != "layers.1.exit.dense.weight"}
    with pytest.raises(RunError, match=r"layers\.1\.exit\.dense\.weight: missing, expected \[5, 16\]"):
        ranker.changed(weights=missing)
    save_ranker(ranker, tmp_path / "ranker")
    (tmp_path / "ranker" / "spec.json").write_text(ranker.spec.without_exits().model_dump_json())
    with pytest.raises(InputError, match=r"layers\.0\.exit\.output\.weight: not in the spec"):
        load_ranker(tmp_path / "ranker")


def test_exits_are_part_of_the_fingerprint_and_not_of_the_scores(tiny_pairs):
    ranker = build_ranker(SPECS["exits"])
    name = "layers.0.exit.output.weight"
    other = ranker.changed(weights={**ranker.weights, name: ranker.weights[name] + 1})
    assert other.fingerprint != ranker.fingerprint
    assert other.without_exits().fingerprint == ranker.without_exits().fingerprint
    np.testing.assert_array_equal(other.score(tiny_pairs), ranker.score(tiny_pairs))
