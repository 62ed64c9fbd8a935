"""An ONNX graph under construction: nodes with stable names, and every weight stored once.

Two dialects of the same graph. *ort* uses ONNX Runtime's fused `com.microsoft` ops; *portable* uses standard ops of
one opset alone, for OpenVINO, TensorRT and other runtimes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from compressor.ranker.spec import FloatKind

Dialect = Literal["ort", "portable"]

# ONNX Runtime 1.18 must load the file: it knows opset 21 and IR 10; opset 17 is the first with LayerNormalization.
OPSET, IR_VERSION = 17, 8
FUSED = "com.microsoft"
_FLOATS: dict[FloatKind, int] = {
    "fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16,
}  # fmt: skip
_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Graph:
    """Collects nodes and weights; values are named after the node that makes them.

    Attributes:
        fused: whether ONNX Runtime's own ops may be used.
        floats: what floats are computed in where nodes are being added, see `computing_in`.
        max_length: longest row in tokens, the size of tables over positions.
    """

    def __init__(self, dialect: Dialect, max_length: int) -> None:
        self.fused = dialect == "ort"
        self.max_length = max_length
        self.floats: FloatKind = "fp32"
        self._model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="rankpress")
        self._model.opset_import.append(helper.make_opsetid("", OPSET))
        if self.fused:
            self._model.opset_import.append(helper.make_opsetid(FUSED, 1))
        self._values: set[str] = set()
        self._weights: set[str] = set()
        self._stored: dict[tuple[int, tuple[int, ...], bytes], str] = {}  # content to name of the weight

    @contextmanager
    def computing_in(self, floats: FloatKind) -> Iterator[None]:
        """Store all float weights and constants of the block in a float kind; who adds nodes casts their inputs."""
        before, self.floats = self.floats, floats
        try:
            yield
        finally:
            self.floats = before

    def cast(self, value: str, name: str, before: FloatKind, after: FloatKind) -> str:
        """Return a float value in another float kind; one that has it already is left alone."""
        return value if before == after else self.node("Cast", [value], name, to=_FLOATS[after])

    def node(self, op: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one result; returns the result's name, which is the node's."""
        return self.nodes(op, inputs, [name], name=name, domain=domain, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], *, name: str, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several results, named by the caller; returns their names."""
        for output in outputs:
            if output in self._values:
                raise ValueError(f"the graph has two values named {output!r}")
            self._values.add(output)
        node = helper.make_node(op, list(inputs), list(outputs), name=name, domain=domain, **attributes)
        self._model.graph.node.append(node)
        return list(outputs)

    def has(self, name: str) -> bool:
        """Whether a value of this name was made."""
        return name in self._values

    def once(self, name: str, make: Callable[[str], str]) -> str:
        """Return the value of this name; ``make(name)`` writes it the first time."""
        return name if name in self._values else make(name)

    def weight(self, name: str, values: np.ndarray, *, shared: bool = True) -> str:
        """Store a tensor and return its name; a tensor with the same content is stored once, under its first name.

        Floats are stored in what is computed in where they are asked for. Without ``shared``, a tensor
        is stored anew.
        """
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        if kind == TensorProto.FLOAT and self.floats != "fp32":
            name, kind = f"{name}.{self.floats}", _FLOATS[self.floats]
            values = _half(values, self.floats)
        values = np.asarray(values, order="C")
        key = (kind, values.shape, hashlib.blake2b(values.data, digest_size=16).digest())
        if shared and key in self._stored:
            return self._stored[key]
        if name in self._weights:
            raise ValueError(f"the graph has two weights named {name!r}")
        self._model.graph.initializer.add(name=name, data_type=kind, dims=values.shape, raw_data=values.tobytes())
        self._weights.add(name)
        if shared:
            self._stored[key] = name
        return name

    def ints(self, *values: int) -> str:
        """Return a constant int64 ``[n]``."""
        return self.weight("ints." + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def int_scalar(self, value: int) -> str:
        """Return a constant int64 scalar."""
        return self.weight(f"int.{value}", np.array(value, dtype=np.int64))

    def float_scalar(self, value: float) -> str:
        """Return a constant float scalar."""
        return self.weight(f"float.{value!r}", np.array(value, dtype=np.float32))

    def reshape(self, value: str, name: str, *shape: int) -> str:
        """Reshape to constant dimensions; 0 keeps the input's, -1 is what is left."""
        return self.node("Reshape", [value, self.ints(*shape)], name)

    def split(self, value: str, name: str, parts: dict[str, int]) -> list[str]:
        """Split the last axis into named parts of given widths."""
        outputs = [f"{name}.{part}" for part in parts]
        return self.nodes("Split", [value, self.ints(*parts.values())], outputs, name=name, axis=-1)

    def finish(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], name: str
    ) -> onnx.ModelProto:
        """Return the model; the graph takes no more nodes."""
        self._model.graph.name = name
        self._model.graph.input.extend(inputs)
        self._model.graph.output.extend(outputs)
        return self._model


def _half(values: np.ndarray, floats: FloatKind) -> np.ndarray:
    """Return the bit patterns of floats in half precision; what is too large becomes the largest number."""
    largest = torch.finfo(_HALF[floats]).max
    rounded = torch.from_numpy(values.copy()).clamp(-largest, largest).to(_HALF[floats])
    return rounded.view(torch.int16).numpy()
