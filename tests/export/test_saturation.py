"""Products of uint8 and int8 where other runtimes compute them: with ONNX Runtime's own options, not with ours.

A CPU without VNNI adds two such products in 16 bits, ``vpmaddubsw``, which end at 32,767; 255 * 127 + 255 * 127 does
not fit, 255 * 63 + 255 * 63 does.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from compressor.cpu import SATURATING, cpu_class
from compressor.export.encoder import write_graph
from compressor.export.linears import add_bias, linear
from compressor.export.parity import parity_batches, torch_results
from compressor.ranker.linears import Linear
from compressor.ranker.rounding import round_spec
from compressor.ranker.spec import Int8Dynamic, Int8Static, LinearSpec
from compressor.runtime.session import session_options
from tests.export.component import DIALECTS, TOLERANCE, run_component, tensors

INPUTS, OUTPUTS = 64, 24
KINDS = {"dynamic": Int8Dynamic, "static": Int8Static}


def error(dialect, precision, *, ours: bool = False) -> float:
    """Return how far a linear's graph is from its simulation, as a share of the largest result.

    Its inputs are positive and near their largest, its weights large: the sums that need most bits.
    """
    spec = LinearSpec(inputs=INPUTS, outputs=OUTPUTS, precision=precision)
    module = Linear(spec)
    weights = tensors(module, "l")
    # All of a size, and of one sign in three columns out of four.
    signs = torch.where(torch.arange(OUTPUTS)[:, None] % 4 > 0, torch.ones(OUTPUTS, INPUTS), weights["l.weight"].sign())
    weights["l.weight"].copy_(signs * (1 + 0.1 * weights["l.weight"].abs()))
    if isinstance(precision, Int8Static):
        weights["l.input_ranges"].copy_(torch.tensor([[0.0, 1.0]]))
    x = np.random.default_rng(0).uniform(0.9, 1.0, (9, INPUTS)).astype(np.float32)
    options = session_options(threads=1) if ours else ort.SessionOptions()
    found = run_component(
        dialect, {"x": x}, lambda g: add_bias(g, "sum", linear(g, "linear", "l", spec, weights, "x")), options=options
    )
    expected = module(torch.tensor(x)).numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", KINDS)
def test_seven_bits_fit_every_cpu(kind, dialect):
    assert error(dialect, KINDS[kind](reduce_range=True)) < TOLERANCE


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_saturate_by_default_where_the_cpu_has_no_wide_sums(kind, dialect):
    if cpu_class() == "unknown":
        pytest.skip("nobody can tell what this CPU does")
    # The portable form of a static product dequantizes first, and ONNX Runtime leaves it so: a product of floats.
    is_of_whole_numbers = (kind, dialect) != ("static", "portable")
    assert (error(dialect, KINDS[kind]()) > 0.2) == (is_of_whole_numbers and cpu_class() in SATURATING)
    assert error(dialect, KINDS[kind](), ours=True) < TOLERANCE, "our sessions ask for wide sums"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_whole_ranker_of_seven_bits_needs_no_options(dialect, tiny_ranker, tiny_pairs):
    """Large activations, as trained rankers have in a few channels: all of one sign, so that sums are long."""
    weights = {
        name: tensor.abs() if name.endswith(("ffn.down.weight", "ffn.up.weight")) else tensor
        for name, tensor in tiny_ranker.weights.items()
    }
    batches = parity_batches(tiny_ranker, tiny_pairs)
    errors = {}
    for reduced in (False, True):
        spec = round_spec(tiny_ranker.spec, Int8Dynamic(reduce_range=reduced), None)
        ranker = tiny_ranker.changed(spec=spec, weights=weights)
        session = ort.InferenceSession(
            write_graph(spec, ranker.weights, dialect).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        names = [node.name for node in session.get_inputs()]
        found = np.concatenate([session.run(None, {name: batch[name] for name in names})[0] for batch in batches])
        expected = torch_results(ranker, batches)
        errors[reduced] = float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())
    assert errors[True] < 1e-4
    if cpu_class() in SATURATING:
        assert errors[False] > 0.1, "of the scores' spread"
