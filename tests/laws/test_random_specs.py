"""What holds for every spec that can be drawn: one meaning in torch, on disk and in both ONNX dialects."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.export import write_graph
from compressor.ranker.cost import parameters
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import RankerSpec
from compressor.ranker.store import load_ranker, save_ranker
from compressor.runtime.session import session_options
from tests.ranker.padded_oracle import oracle
from tests.strategies import FP16, INT8, INT8_TABLES, LAW, Case, cases
from tests.tiny import tokenizer_files

DIALECTS = ("ort", "portable")

# fp32 sums in another order; relative to the largest score of the batch, absolute where scores are small.
FLOAT_TOLERANCE = 1e-4
# A difference in the last bit of a float moves an activation over a rounding step of 1/255 of its range, and that
# moves the activations of the next layer. Rare: hence a tight bound on most examples, and a wide one on all.
INT8_TOLERANCE, INT8_USUAL_TOLERANCE = 0.03, 1e-5


INT8_CASES = cases(INT8, INT8_TABLES)
FP16_CASES = cases(FP16, FP16)
# What a graph rounds in half precision and the simulation does not, or the other way around: steps of 2^-11 of each
# state, over layers whose random norms may blow them up.
FP16_TOLERANCE, FP16_USUAL_TOLERANCE = 0.05, 2e-3


def ranker_of(case: Case) -> Ranker:
    return Ranker(spec=case.spec, weights=case.weights, tokenizer_files=tokenizer_files())


def run_torch(case: Case) -> np.ndarray:
    with torch.inference_mode():
        return ranker_of(case).module(**case.batch).numpy()


def open_graph(case: Case, dialect: str) -> ort.InferenceSession:
    options = session_options(threads=1)
    model = write_graph(case.spec, case.weights, dialect=dialect)  # type: ignore[arg-type]
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_onnx(session: ort.InferenceSession, batch: dict[str, Tensor]) -> np.ndarray:
    wanted = {each.name for each in session.get_inputs()}
    (result,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.items() if name in wanted})
    return result


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest score where that is above one."""
    assert found.shape == expected.shape
    assert np.isfinite(expected).all()
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


@settings(LAW, max_examples=200)
@given(case=cases())
def test_packed_torch_equals_the_padded_oracle(case):
    expected = oracle(case.spec, case.weights, **case.batch).numpy()
    assert difference(run_torch(case), expected) < FLOAT_TOLERANCE
    with torch.inference_mode():
        exits = ranker_of(case).module.trace(**case.batch).exits if case.spec.exit_layers else {}
    for layer, logits in exits.items():
        # The oracle knows no exits: it is given the ranker that ends there, with the exit's weights as its head's.
        layers = case.spec.without_exits().layers[: layer + 1]
        ends = case.spec.changed(layers=layers, head=case.spec.layers[layer].exit)
        body = {name: tensor for name, tensor in case.weights.items() if not name.startswith("head.")}
        weights = {name.replace(f"layers.{layer}.exit.", "head."): tensor for name, tensor in body.items()}
        assert difference(logits.numpy(), oracle(ends, weights, **case.batch).numpy()) < FLOAT_TOLERANCE, layer


@settings(LAW, max_examples=200)
@given(case=cases())
def test_both_dialects_equal_torch(case):
    expected = run_torch(case)
    last_row = {name: tensor[-1:] for name, tensor in case.batch.items()}
    for dialect in DIALECTS:
        session = open_graph(case, dialect)
        assert difference(run_onnx(session, case.batch), expected) < FLOAT_TOLERANCE, dialect
        assert difference(run_onnx(session, last_row), expected[-1:]) < FLOAT_TOLERANCE, f"{dialect}, one row alone"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("drawn", "tolerance", "usual"),
    [(INT8_CASES, INT8_TOLERANCE, INT8_USUAL_TOLERANCE), (FP16_CASES, FP16_TOLERANCE, FP16_USUAL_TOLERANCE)],
    ids=["int8", "fp16"],
)
def test_rounded_graphs_equal_the_simulation(drawn, tolerance, usual, dialect):
    differences = []

    @settings(LAW, max_examples=150)
    @given(case=drawn)
    def examples(case: Case) -> None:
        differences.append(difference(run_onnx(open_graph(case, dialect), case.batch), run_torch(case)))
        assert differences[-1] < tolerance

    examples()
    assert np.quantile(differences, 0.8) < usual, sorted(differences)[-20:]


@settings(LAW, max_examples=100)
@given(case=st.one_of(cases(), INT8_CASES, FP16_CASES))
def test_stored_ranker_comes_back_to_the_bit(case):
    assert RankerSpec.model_validate_json(case.spec.model_dump_json()) == case.spec
    counted = [tensor for name, tensor in case.weights.items() if _is_counted(name, tensor)]
    assert parameters(case.spec) == sum(tensor.numel() for tensor in counted)
    ranker = ranker_of(case)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        save_ranker(ranker, Path(folder) / "ranker")
        again = load_ranker(Path(folder) / "ranker")
        assert again.fingerprint == ranker.fingerprint
        assert torch.equal(again.module(**case.batch), ranker.module(**case.batch))


def _is_counted(name: str, tensor: Tensor) -> bool:
    """Ranges are measured and codes name atoms: neither is a parameter."""
    return tensor.is_floating_point() and not name.endswith(".input_ranges")
