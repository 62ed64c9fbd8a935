"""Bytes, parameters and multiply-adds of a row."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.bench.rows import RowSpec, external_data
from compressor.runtime.folder import cascade_of, shared_query_of

_ATTENTION_KEYS = ("num_hidden_layers", "hidden_size")
_OWN_SCOPE = "linear layers and attention, as computed by this graph"
_CASCADE_SCOPE = "linear layers and attention, as computed by the cascade for these lists"
_SHARED_SCOPE = (
    "linear layers and attention of a candidate; its query, run once for a list, is not counted, and taken to be short"
)
_WITH_ATTENTION = "linear layers and attention, every layer at every token"
_LINEAR_ONLY = "linear layers only"
_ONCE_PER_PAIR = ("pooler", "classifier", "score.", "head.")
_ONNX_FLOAT_AND_INT = {1, 2, 3, 10, 11, 16, 21, 22}  # FLOAT, UINT8, INT8, FLOAT16, DOUBLE, BFLOAT16, UINT4, INT4


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a row costs; None where it cannot be told."""

    size_bytes: int | None = None
    packed_bytes: int | None = None
    parameters: int | None = None
    macs_per_pair: float | None = None
    macs_scope: str | None = None


def cost_of(row: RowSpec, weights_path: Path, lengths: np.ndarray, stages: np.ndarray | None = None) -> Cost:
    """Measure a row's file and count its parameters and multiply-adds.

    Own folders are counted from ``spec.json``, foreign graphs from their initializers and checkpoints from their
    tensors' shapes; a foreign graph's attention products are added where ``config.json`` gives the shape.

    Args:
        lengths: tokens of each timed pair, padding not counted, int64 [n].
        stages: how many stages of a cascade each one passed, where the folder has one. The file is then its graphs.
    """
    size = _bytes_with_external_data(weights_path)
    staged = cascade_of(row.folder, weights_path) if row.is_graph and weights_path.is_file() else None
    if staged and stages is not None:
        size = sum(path.stat().st_size for path in staged[1])
        return _own(row.folder / "spec.json", weights_path, size, lengths, stages)
    shared = shared_query_of(row.folder, weights_path) if row.is_graph and weights_path.is_file() else None
    if shared and row.engine == "onnx":
        size = sum(path.stat().st_size for path in shared)
        return _own(row.folder / "spec.json", weights_path, size, lengths, shares_query=True)
    if row.is_graph and (row.folder / "spec.json").is_file():
        return _own(row.folder / "spec.json", weights_path, size, lengths)
    if weights_path.suffix == ".onnx" and weights_path.is_file():
        counted = _graph(weights_path)
    elif weights_path.suffix == ".safetensors" and weights_path.is_file():
        counted = _checkpoint(weights_path)
    else:
        counted = None
    if counted is None or not len(lengths):
        return Cost(size_bytes=size, parameters=counted.parameters if counted else None)
    attention = _attention_macs(row.folder / "config.json", lengths)
    return Cost(
        size_bytes=size,
        parameters=counted.parameters,
        macs_per_pair=counted.per_token * float(lengths.mean()) + counted.per_pair + (attention or 0.0),
        macs_scope=_LINEAR_ONLY if attention is None else _WITH_ATTENTION,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counted:
    parameters: int
    per_token: int
    per_pair: int


def _own(
    spec_path: Path,
    weights_path: Path,
    size: int | None,
    lengths: np.ndarray,
    stages: np.ndarray | None = None,
    shares_query: bool = False,
) -> Cost:
    from compressor.ranker.cost import macs, macs_of_shared_query, macs_of_stages, parameters
    from compressor.ranker.sparsity import sparse_linears
    from compressor.ranker.spec import RankerSpec

    spec = RankerSpec.model_validate_json(spec_path.read_text(encoding="utf-8"))
    if stages is not None:
        by_length = {n: macs_of_stages(spec, n) for n in set(lengths.tolist())}
        passed = [by_length[n][stage] for n, stage in zip(lengths.tolist(), stages.tolist(), strict=True)]
        mean = sum(passed) / len(passed) if passed else None
        return Cost(size_bytes=size, parameters=parameters(spec), macs_per_pair=mean, macs_scope=_CASCADE_SCOPE)
    spec = spec.without_exits()  # a cascade's, of which this graph has none
    different, counts = np.unique(lengths, return_counts=True)
    each = [macs_of_shared_query(spec, n)[1] if shares_query else macs(spec, n) for n in different.tolist()]
    total = sum(one * count for one, count in zip(each, counts.tolist(), strict=True))
    mean = total / len(lengths) if len(lengths) else None
    packed = _packed_bytes(weights_path) if sparse_linears(spec) else None
    return Cost(
        size_bytes=size, packed_bytes=packed, parameters=parameters(spec), macs_per_pair=mean,
        macs_scope=_SHARED_SCOPE if shares_query else _OWN_SCOPE,
    )  # fmt: skip


def _packed_bytes(path: Path) -> int | None:
    try:
        from compressor.export.packing import packed_bytes
    except ImportError:  # measured where nothing can be exported
        return None
    return packed_bytes(path) if path.is_file() else None


def _graph(path: Path) -> _Counted | None:
    """Count a foreign graph: MatMul works per token, Gemm (a linear on one vector per pair) once."""
    try:
        import onnx
    except ImportError:
        return None
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # noqa: BLE001 - what protobuf finds too large, ONNX Runtime may have loaded all the same
        return None
    shapes = {one.name: tuple(one.dims) for one in graph.initializer if one.data_type in _ONNX_FLOAT_AND_INT}
    # Exporters wrap constant weights in a Transpose or a DequantizeLinear; look through both.
    for node in graph.node:
        if node.op_type in ("Transpose", "DequantizeLinear", "Cast", "Identity") and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    per_token = per_pair = 0
    for node in graph.node:
        products = [math.prod(shapes[name]) for name in node.input[:2] if len(shapes.get(name, ())) == 2]
        if products and node.op_type == "Gemm":
            per_pair += products[0]
        elif products and node.op_type in ("MatMul", "MatMulInteger", "FusedMatMul", "QLinearMatMul",
                                           "DynamicQuantizeMatMul", "MatMulNBits"):  # fmt: skip
            per_token += products[0]
    # Scalars and shape constants are no parameters.
    parameters = sum(math.prod(one.dims) for one in graph.initializer
                     if one.data_type in _ONNX_FLOAT_AND_INT and one.dims)  # fmt: skip
    return _Counted(parameters=parameters, per_token=per_token, per_pair=per_pair)


def _checkpoint(path: Path) -> _Counted:
    """Count a safetensors file by the shapes in its header."""
    with path.open("rb") as stream:
        header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    shapes = {name: tuple(one["shape"]) for name, one in header.items() if name != "__metadata__"}
    linear = {name: math.prod(shape) for name, shape in shapes.items()
              if len(shape) == 2 and name.endswith(".weight") and "embedding" not in name}  # fmt: skip
    once = {name for name in linear if any(part in name for part in _ONCE_PER_PAIR)}
    return _Counted(
        parameters=sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith("position_ids")),
        per_token=sum(n for name, n in linear.items() if name not in once),
        per_pair=sum(linear[name] for name in once),
    )


def _attention_macs(config_path: Path, lengths: np.ndarray) -> float | None:
    """Return 2 · layers · width · mean(S²), full attention at every token, or None where the config does not tell."""
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        layers, width = (int(config[key]) for key in _ATTENTION_KEYS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return 2.0 * layers * width * float((lengths.astype(np.float64) ** 2).mean())


def _bytes_with_external_data(weights_path: Path) -> int | None:
    if not weights_path.is_file():
        return None
    return weights_path.stat().st_size + sum(path.stat().st_size for path in external_data(weights_path))
