"""Ranker folders without torch: a graph of a few nodes with fixed weights, and a WordPiece tokenizer of a few words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WIDTH = 8
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = "how do magnets work iron bread is baked in ovens a magnet field attracts the sea and sun moon red blue".split()  # noqa: SIM905
PIECES = ["##s", "##ed"]
VOCABULARY = {token: i for i, token in enumerate([*SPECIALS, *WORDS, *PIECES])}
PAD, UNK, CLS, SEP = range(4)


def tokenizer() -> Tokenizer:
    """A BERT-shaped tokenizer: ``[CLS] query [SEP] document [SEP]``; words it does not know become ``[UNK]``."""
    built = Tokenizer(models.WordPiece(vocab=VOCABULARY, unk_token="[UNK]"))  # noqa: S106
    built.add_special_tokens(SPECIALS)
    built.normalizer = normalizers.BertNormalizer()
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return built


def tokenizer_files(max_length: float = 32, **config: Any) -> dict[str, bytes]:
    """``tokenizer.json`` and ``tokenizer_config.json`` as file contents."""
    settings = {"model_max_length": max_length, "pad_token": "[PAD]", **config}
    return {"tokenizer.json": tokenizer().to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}


def tables(seed: int = 0) -> dict[str, np.ndarray]:
    """The weights of the graph, float32: word, type, mix, head."""
    rng = np.random.default_rng(seed)
    shapes = {"word": (len(VOCABULARY), WIDTH), "type": (2, WIDTH), "mix": (WIDTH, WIDTH), "head": (WIDTH, 1)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def graph(
    *,
    output: str = "logits",
    has_types: bool = True,
    n_logits: int = 1,
    integer: int = TensorProto.INT64,
    weights: dict[str, np.ndarray] | None = None,
    is_wasteful: bool = False,
    sequence: int | str = "sequence",
) -> onnx.ModelProto:
    """Masked mean of ``tanh((word + type) @ mix)``, then a linear head.

    ``output`` may also be ``embedding`` (the mean at unit length) or ``last_hidden_state``.
    """
    arrays = dict(weights or tables())
    arrays["head"] = np.repeat(arrays["head"], n_logits, axis=1)
    initializers = [
        numpy_helper.from_array(value, name) for name, value in arrays.items() if has_types or name != "type"
    ]
    initializers += [numpy_helper.from_array(np.array([axis]), f"axis{axis}") for axis in (1, 2)]
    if is_wasteful:
        initializers.append(numpy_helper.from_array(np.zeros(3, np.float32), "never_used"))
    node = helper.make_node
    nodes = [node("Gather", ["word", "input_ids"], ["words"])]
    if has_types:
        nodes += [node("Gather", ["type", "token_type_ids"], ["types"]), node("Add", ["words", "types"], ["summed"])]
    nodes += [
        node("MatMul", ["summed" if has_types else "words", "mix"], ["mixed"]),
        node("Tanh", ["mixed"], ["last_hidden_state"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "axis2"], ["mask3"]),
        node("Mul", ["last_hidden_state", "mask3"], ["masked"]),
        node("ReduceSum", ["masked", "axis1"], ["total"], keepdims=0),
        node("ReduceSum", ["mask", "axis1"], ["count"], keepdims=1),
        node("Div", ["total", "count"], ["mean"]),
    ]
    shape: list[int | str] = ["batch", n_logits]
    if output == "embedding":
        nodes += [node("ReduceL2", ["mean", "axis1"], ["norm"], keepdims=1), node("Div", ["mean", "norm"], [output])]
        shape = ["batch", WIDTH]
    elif output == "last_hidden_state":
        shape = ["batch", sequence, WIDTH]
    else:
        nodes.append(node("MatMul", ["mean", "head"], [output]))
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if has_types else [])]
    inputs = [helper.make_tensor_value_info(name, integer, ["batch", sequence]) for name in names]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(
        helper.make_graph(nodes, "tiny", inputs, outputs, initializers), opset_imports=opsets, ir_version=9
    )


def write_folder(
    folder: Path, model: onnx.ModelProto | None = None, *, file: str = "onnx/model.onnx", max_length: int = 32
) -> Path:
    """Write a ranker folder and return it."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(graph() if model is None else model, folder / file)
    for name, content in tokenizer_files(max_length).items():
        (folder / name).write_bytes(content)
    return folder


def expected_score(ids: list[int], type_ids: list[int]) -> float:
    """The graph in numpy, for one row."""
    at = tables()
    hidden = np.tanh((at["word"][ids] + at["type"][type_ids]) @ at["mix"])
    return float((hidden.mean(axis=0) @ at["head"])[0])
