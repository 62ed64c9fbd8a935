"""BERT-shaped rankers from ONNX files, float or dynamic int8, recognized by data flow and checked by running them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto
from pydantic import ValidationError
from torch import Tensor

from compressor.families.onnx_import.bert import BertParts, recognize
from compressor.families.onnx_import.dequantize import dequantized
from compressor.families.onnx_import.graph import Graph, NotRecognizedError, external_files, read_model
from compressor.families.onnx_import.spec_of import Pool, spec_of, weights_of
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import Family, RankerSpec, SimilarityHead
from compressor.runtime.session import open_session, runtime_message

# Of the largest logit or 1. Float32 kernels differ by 1e-5, float16 ones by 1e-3, a wrong part by 1e-2 and more.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-3
_GRAPH_LIMIT_BYTES = 2**31 - 2**24  # a protobuf message ends at 2 GiB; larger graphs keep their weights beside


@dataclass(frozen=True, kw_only=True)
class OnnxSource:
    """A recognized ONNX file.

    Attributes:
        path: the file.
        model: its graph in float.
        output: the name of its scores.
        parts: what the graph holds.
        was_quantized: whether the file's weights were int8.
    """

    path: Path
    model: ModelProto
    output: str
    parts: BertParts
    was_quantized: bool

    def spec(
        self, *, family: Family | None, pad_id: int, max_length: int | None, pool: Pool | None = None
    ) -> RankerSpec:
        """Describe it; see `spec_of`."""
        try:
            return spec_of(self.parts, family=family, pad_id=pad_id, max_length=max_length, pool=pool or "first")
        except ValidationError as error:
            found = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
            raise NotRecognizedError(self.path, "shapes", found, "layers of one width") from None

    def weights(self) -> dict[str, Tensor]:
        """Return its canonical weights, fp32."""
        return weights_of(self.parts)


def read_onnx(path: Path, *, is_encoder: bool = False) -> OnnxSource:
    """Recognize an ONNX file as a BERT-shaped cross-encoder, or as an encoder that gives its last states.

    Raises:
        InputError: the file is broken or its weights lie elsewhere.
        NotRecognizedError: the graph is something else; says where and what.
    """
    stored = read_model(path)
    model = dequantized(stored, path)
    graph = Graph(model, path)
    was_quantized = model is not stored
    parts = recognize(graph, is_encoder=is_encoder)
    return OnnxSource(path=path, model=model, output=graph.output, parts=parts, was_quantized=was_quantized)


def check_scores(source: OnnxSource, spec: RankerSpec, weights: dict[str, Tensor]) -> float:
    """Compare the imported ranker with the float graph in ONNX Runtime on a few random rows.

    Recognition follows the data flow; this proves that nothing on the way (a scale, a mask, an approximation)
    was overlooked.

    Returns:
        The largest difference of a logit, or of an entry of a unit vector.

    Raises:
        NotRecognizedError: they differ.
    """
    inputs = _example(spec)
    expected = _run(source, inputs)
    if isinstance(spec.head, SimilarityHead):
        expected = _unit_vectors(expected, inputs["attention_mask"], spec.head.pool)
    with torch.device("meta"):
        module = Encoder(spec)
    module.load_state_dict(weights, strict=True, assign=True)
    with torch.inference_mode():
        found = module.eval()(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("nan")
    is_half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in source.model.graph.initializer)
    tolerance = _HALF_TOLERANCE if is_half else _TOLERANCE
    if not difference <= tolerance * max(1.0, float(np.abs(expected).max())):
        wanted = "a graph that computes what BERT computes"
        raise NotRecognizedError(source.path, "scores", f"{spec.output_name} that differ by {difference:.2g}", wanted)
    return difference


def _unit_vectors(states: np.ndarray, mask: np.ndarray, pool: Pool) -> np.ndarray:
    """Return what a bi-encoder makes of states ``[B, S, width]``."""
    weights = mask[..., None] / mask.sum(1)[:, None, None]
    pooled = states[:, 0] if pool == "first" else (states * weights).sum(1)
    return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), dtype=np.float32)


def _example(spec: RankerSpec) -> dict[str, np.ndarray]:
    """Return four ragged rows of random tokens, the padding id only where padding is."""
    random = np.random.default_rng(0)
    lengths = np.minimum([17, 9, 4, 12], spec.max_length)[:, None]
    places = np.arange(lengths.max())
    mask = (places < lengths).astype(np.int64)
    ids = random.integers(0, spec.embeddings.tokens.rows - 1, size=mask.shape)
    ids += ids >= spec.pad_id
    segments = (places >= lengths // 2) * mask * (spec.embeddings.segments is not None)
    return {
        "input_ids": np.where(mask == 1, ids, spec.pad_id).astype(np.int64),
        "attention_mask": mask,
        "token_type_ids": segments.astype(np.int64),
    }


def _run(source: OnnxSource, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = source.path
        if source.was_quantized:
            path = Path(folder) / "model.onnx"
            size_bytes = sum(len(tensor.raw_data) for tensor in source.model.graph.initializer)
            onnx.save(source.model, path, save_as_external_data=size_bytes > _GRAPH_LIMIT_BYTES)
        session = open_session(path)
        names = {item.name for item in session.get_inputs()}
        try:
            return session.run([source.output], {name: array for name, array in inputs.items() if name in names})[0]
        except Exception as error:  # the runtime's errors have no common base
            found = f"a graph that does not run on rows of up to 17 tokens ({runtime_message(error)})"
            raise NotRecognizedError(source.path, "inputs", found, "a free batch and sequence axis") from error


__all__ = ["NotRecognizedError", "OnnxSource", "Pool", "check_scores", "external_files", "read_onnx"]
