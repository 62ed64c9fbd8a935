from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from compressor.errors import InputError
from compressor.runtime.graph_interface import GraphInterface, read_interface
from compressor.runtime.session import open_session
from tests.runtime.tiny_folder import graph

INT, FLOAT = "tensor(int64)", "tensor(float)"
FREE = ["batch", "sequence"]
USUAL = [("input_ids", INT, FREE), ("attention_mask", INT, FREE)]
LOGITS = ("logits", FLOAT, ["batch", 1])
SUPPORTED = (
    "allowed: one relevance logit per pair ('logits' [batch, 1]) or one vector per text ('embedding' [batch, width]), "
    "as float32 or float16"
)
NO_SCORE = "hidden states alone hold no score: export the ranker with its head, or the encoder with its pooling"
Node = tuple[str, str, list[Any]]


def interface(inputs: list[Node], outputs: list[Node]) -> GraphInterface:
    nodes = [
        [SimpleNamespace(name=name, type=kind, shape=shape) for name, kind, shape in side] for side in (inputs, outputs)
    ]
    session: Any = SimpleNamespace(get_inputs=lambda: nodes[0], get_outputs=lambda: nodes[1])
    return read_interface(session, Path("m.onnx"))


def of_file(tmp_path: Path, model: onnx.ModelProto) -> GraphInterface:
    onnx.save(model, tmp_path / "m.onnx")
    return read_interface(open_session(tmp_path / "m.onnx", threads=1), Path("m.onnx"))


def test_a_real_cross_encoder(tmp_path: Path) -> None:
    found = of_file(tmp_path, graph())
    assert (found.kind, found.output) == ("cross_encoder", "logits")
    assert list(found.inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    assert set(found.inputs.values()) == {np.dtype(np.int64)}


def test_a_real_cross_encoder_with_int32_inputs_and_one_segment(tmp_path: Path) -> None:
    found = of_file(tmp_path, graph(has_types=False, integer=TensorProto.INT32))
    assert found.inputs == {"input_ids": np.dtype(np.int32), "attention_mask": np.dtype(np.int32)}


def test_a_real_bi_encoder(tmp_path: Path) -> None:
    found = of_file(tmp_path, graph(output="embedding"))
    assert (found.kind, found.output) == ("bi_encoder", "embedding")


@pytest.mark.parametrize(
    ("outputs", "kind", "output"),
    [
        ([("score", FLOAT, ["batch", 1])], "cross_encoder", "score"),
        ([("logits", "tensor(float16)", ["batch", 1])], "cross_encoder", "logits"),
        ([("logits", FLOAT, ["batch", "labels"])], "cross_encoder", "logits"),
        ([("hidden_states", FLOAT, ["b", "s", 8]), LOGITS], "cross_encoder", "logits"),
        (
            [("token_embeddings", FLOAT, ["b", "s", 8]), ("sentence_embedding", FLOAT, ["b", 8])],
            "bi_encoder",
            "sentence_embedding",
        ),
        ([("embedding", FLOAT, ["b", None])], "bi_encoder", "embedding"),
    ],
)
def test_foreign_outputs(outputs: list[Node], kind: str, output: str) -> None:
    found = interface(USUAL, outputs)
    assert (found.kind, found.output) == (kind, output)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        (
            USUAL,
            [("logits", FLOAT, ["batch", 2])],
            f"m.onnx: output 'logits': found a head with 2 logits [batch, 2]; {SUPPORTED}; fold the two logits into "
            "their difference (relevant minus irrelevant) before the export",
        ),
        (
            USUAL,
            [("logits", FLOAT, ["batch", 3])],
            f"m.onnx: output 'logits': found a head with 3 logits [batch, 3]; {SUPPORTED}; "
            "export a ranker with num_labels=1",
        ),
        (
            USUAL,
            [("last_hidden_state", FLOAT, ["batch", "sequence", 384])],
            f"m.onnx: output 'last_hidden_state': found hidden states of every token [batch, sequence, 384]; "
            f"{SUPPORTED}; {NO_SCORE}",
        ),
        (
            USUAL,
            [("last_hidden_state", FLOAT, ["b", "s", 8]), ("pooler_output", FLOAT, ["b", 8])],
            f"m.onnx: found the outputs last_hidden_state [b, s, 8], pooler_output [b, 8]; {SUPPORTED}; {NO_SCORE}",
        ),
        (USUAL, [("labels", INT, ["batch", 1])], f"m.onnx: output 'labels': found tensor(int64); {SUPPORTED}"),
        (USUAL, [("scores", FLOAT, ["batch"])], f"m.onnx: output 'scores': found the shape [batch]; {SUPPORTED}"),
        (USUAL, [("pooled", FLOAT, ["b", None])], f"m.onnx: output 'pooled': found the shape [b, ?]; {SUPPORTED}"),
        (
            [*USUAL, ("position_ids", INT, FREE)],
            [LOGITS],
            "m.onnx: input 'position_ids': found an input that rankers of supported families do not have; allowed: "
            "input_ids, attention_mask, token_type_ids; export the ranker so that the graph makes everything else by "
            "itself",
        ),
        (
            [("input_ids", INT, FREE), ("attention_mask", FLOAT, FREE)],
            [LOGITS],
            "m.onnx: input 'attention_mask': found tensor(float); allowed: tensor(int64), tensor(int32)",
        ),
        (
            [("input_ids", INT, ["batch", 128]), ("attention_mask", INT, FREE)],
            [LOGITS],
            "m.onnx: input 'input_ids': found the shape [batch, 128]; allowed: [batch, sequence], both free; "
            "export the graph with dynamic batch and sequence axes",
        ),
        (
            USUAL[:1],
            [LOGITS],
            "m.onnx: found a graph without the input 'attention_mask'; allowed: inputs input_ids, attention_mask, "
            "token_type_ids",
        ),
    ],
)  # fmt: skip
def test_refused(inputs: list[Node], outputs: list[Node], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        interface(inputs, outputs)
    assert str(caught.value) == expected


def test_real_graphs_are_refused(tmp_path: Path) -> None:
    for model, found in (
        (graph(n_logits=2), "a head with 2 logits [batch, 2]"),
        (graph(output="last_hidden_state"), "hidden states of every token [batch, sequence, 8]"),
        (graph(sequence=16), "the shape [batch, 16]"),
    ):
        with pytest.raises(InputError, match="found") as caught:
            of_file(tmp_path, model)
        assert caught.value.faults[0].found == found


def test_all_faults_at_once() -> None:
    with pytest.raises(InputError) as caught:
        interface([("pixels", INT, FREE)], [("logits", FLOAT, ["batch", 5])])
    assert [fault.where for fault in caught.value.faults] == ["input 'pixels'", "", "", "output 'logits'"]
