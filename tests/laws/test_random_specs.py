"""What holds for every spec that can be drawn: one meaning in torch, on disk and in both ONNX dialects."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.export import write_graph
from compressor.export.parity import clear_rows
from compressor.export.shared_query import write_shared_query
from compressor.ranker.cost import parameters
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import RankerSpec
from compressor.ranker.store import load_ranker, save_ranker
from compressor.runtime.session import session_options
from compressor.runtime.shared_query import OnnxSharedQuery
from compressor.runtime.tokenizer import Encoded
from tests.ranker.padded_oracle import oracle
from tests.strategies import FP16, INT8, INT8_TABLES, LAW, Case, cases
from tests.tiny import tokenizer_files

DIALECTS = ("ort", "portable")

# fp32 sums in another order; relative to the largest score of the batch, absolute where scores are small.
FLOAT_TOLERANCE = 1e-4
# A difference in the last bit of a float moves an activation over a rounding step of 1/255 of its range, and that
# moves the activations of the next layer. Rare: hence a tight bound on most examples, and a wide one on all.
INT8_TOLERANCE, INT8_USUAL_TOLERANCE = 0.03, 1e-5
# Where a token rule has to choose between two tokens whose scores are closer, relative to each other, rounding may
# choose. Such rows say nothing about a graph, so that they are not compared.
CLEAR_MARGIN = 1e-3


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


def clear(case: Case) -> np.ndarray:
    """Return the rows of which rounding cannot choose other tokens, bool ``[B]``."""
    batch = {name: tensor.numpy() for name, tensor in case.batch.items()}
    return clear_rows(ranker_of(case), [batch], least=CLEAR_MARGIN)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest score where that is above one."""
    assert found.shape == expected.shape
    assert np.isfinite(expected).all()
    if not len(expected):
        return 0.0
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


@settings(LAW, max_examples=200)
@given(case=cases())
def test_packed_torch_equals_the_padded_oracle(case):
    rows = clear(case)
    expected = oracle(case.spec, case.weights, **case.batch).numpy()
    assert difference(run_torch(case)[rows], expected[rows]) < FLOAT_TOLERANCE
    with torch.inference_mode():
        exits = ranker_of(case).module.trace(**case.batch).exits if case.spec.exit_layers else {}
    for layer, logits in exits.items():
        # The oracle knows no exits: it is given the ranker that ends there, with the exit's weights as its head's.
        *layers, last = case.spec.without_exits().layers[: layer + 1]
        ends = case.spec.changed(layers=(*layers, last.changed(token_rule=None)), head=case.spec.layers[layer].exit)
        body = {name: tensor for name, tensor in case.weights.items() if not name.startswith("head.")}
        weights = {name.replace(f"layers.{layer}.exit.", "head."): tensor for name, tensor in body.items()}
        expected = oracle(ends, weights, **case.batch).numpy()
        assert difference(logits.numpy()[rows], expected[rows]) < FLOAT_TOLERANCE, layer


@settings(LAW, max_examples=200)
@given(case=cases())
def test_both_dialects_equal_torch(case):
    expected, rows = run_torch(case), clear(case)
    last_row = {name: tensor[-1:] for name, tensor in case.batch.items()}
    for dialect in DIALECTS:
        session = open_graph(case, dialect)
        assert difference(run_onnx(session, case.batch)[rows], expected[rows]) < FLOAT_TOLERANCE, dialect
        alone = difference(run_onnx(session, last_row)[rows[-1:]], expected[-1:][rows[-1:]])
        assert alone < FLOAT_TOLERANCE, f"{dialect}, one row alone"


@settings(LAW, max_examples=40)
@given(case=cases())
def test_a_query_that_is_run_apart_changes_no_score(case):
    layers = tuple(layer.changed(token_rule=None) for layer in case.spec.layers)
    assume(case.spec.output_name == "logits" and any(layer.attention for layer in layers))
    case = replace(case, spec=case.spec.changed(layers=layers, isolates_query=True))
    expected, batch = run_torch(case), {name: tensor.numpy() for name, tensor in case.batch.items()}
    input_ids, type_ids = (
        [row[mask == 1] for row, mask in zip(batch[name], batch["attention_mask"], strict=True)]
        for name in ("input_ids", "token_type_ids")
    )
    rows = Encoded(input_ids=input_ids, type_ids=type_ids)
    for dialect in DIALECTS:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("query.onnx", "candidates.onnx")]
            for path, graph in zip(paths, write_shared_query(case.spec, case.weights, dialect), strict=True):  # type: ignore[arg-type]
                path.write_bytes(graph.SerializeToString())
            loaded = OnnxSharedQuery.load(paths, ranker_of(case).tokenizer, threads=1)
            shared = replace(loaded, separator_id=case.spec.separator_id)
            found = shared.run(rows, pad_id=case.spec.pad_id, batch_tokens=1000)
        assert difference(found[:, None], expected) < FLOAT_TOLERANCE, dialect


def test_most_choices_of_random_specs_are_clear():
    """The two laws above compare nearly all rows, and many of them lose tokens."""
    compared: list[bool] = []
    lost: list[bool] = []

    @settings(LAW, max_examples=300)
    @given(case=cases())
    def examples(case: Case) -> None:
        if case.spec.rule_layers:
            compared.extend(clear(case))
            with torch.inference_mode():
                layouts = ranker_of(case).module.trace(**case.batch).layouts
            lost.extend((layouts[0].mask.sum(dim=1) > layouts[-1].mask.sum(dim=1)).tolist())

    examples()
    assert len(compared) > 100
    assert np.mean(compared) > 0.9
    assert np.mean(lost) > 0.5


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
