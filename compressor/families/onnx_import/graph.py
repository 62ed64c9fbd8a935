"""An ONNX graph as data flow: what makes a value, which values are constant, what stands upstream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, numpy_helper

from compressor.errors import Fault, InputError
from compressor.runtime.session import runtime_message
from compressor.storage import inside

# What leaves a value as it is in inference. A cast counts: every recognized constant is turned to float32 anyway.
_TRANSPARENT = {"Identity", "Dropout", "Cast"}


class NotRecognizedError(InputError):
    """The graph is not what the import knows."""

    def __init__(self, source: Path, where: str, found: str, wanted: str) -> None:
        fix = "give the safetensors checkpoint instead, or an ONNX file of a BERT-shaped cross-encoder with one logit"
        super().__init__(Fault(source=source, where=where, found=found, allowed=wanted, fix=fix))


def read_model(path: Path) -> ModelProto:
    """Read an ONNX file with its weights; external data must lie in the file's own folder.

    Raises:
        InputError: the file is missing or broken, or its weights lie elsewhere.
    """
    if not path.is_file():
        raise InputError(Fault(source=path, found="no such file"))
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError class depends on its implementation
        raise InputError(Fault(source=path, found=f"a broken ONNX file ({error})")) from None
    if not model.graph.node:
        raise InputError(Fault(source=path, found="a file without an ONNX graph"))
    for name in sorted(_external_names(model)):
        if not inside(path.parent, name).is_file():
            raise InputError(Fault(source=path, found=f"weights in {name!r}, which does not lie beside the file"))
    onnx.load_external_data_for_model(model, str(path.parent))
    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    return model


def external_files(path: Path) -> set[str]:
    """Return the names of the files beside an ONNX file that hold its weights; empty where it holds them itself."""
    return _external_names(onnx.load(path, load_external_data=False))


def _external_names(model: ModelProto) -> set[str]:
    tensors = [
        *model.graph.initializer,
        *(attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")),
    ]
    return {
        entry.value
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


class Graph:
    """Looks through a model's data flow, from outputs to inputs.

    ``inputs`` are the names that a caller feeds; ``output`` is the one that holds the scores; ``path`` is only for
    messages.
    """

    def __init__(self, model: ModelProto, path: Path) -> None:
        self.model = model
        self.path = path
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in self._stored]
        outputs = [value.name for value in model.graph.output]
        self.output = "logits" if "logits" in outputs else outputs[0]
        self._producers = {name: node for node in model.graph.node for name in node.output if name}
        self._arrays: dict[str, np.ndarray] = {}

    def producer(self, value: str) -> NodeProto | None:
        """Return the node that makes a value, looking through nodes that change nothing; None for inputs, constants."""
        return self._producers.get(self.source(value))

    def source(self, value: str) -> str:
        """Return the value that this one merely repeats."""
        while (node := self._producers.get(value)) is not None and node.op_type in _TRANSPARENT:
            value = node.input[0]
        return value

    def is_constant(self, value: str) -> bool:
        """Whether a value depends on no input."""
        return value in self._constant_names

    def constant(self, value: str) -> np.ndarray | None:
        """Return the array of a constant value, folded where nodes make it, or None."""
        if not value or value not in self._constant_names:
            return None
        if value not in self._arrays:
            self._arrays[value] = self._fold(value)
        return self._arrays[value]

    def scalar(self, value: str) -> float | None:
        """Return the number that a constant of one element holds, or None."""
        array = self.constant(value)
        return float(array.reshape(())) if array is not None and array.size == 1 else None

    def constant_operand(self, node: NodeProto) -> tuple[str, np.ndarray] | None:
        """Split a node of two operands into the computed one and the constant one, in whichever order they stand."""
        left, right = node.input[:2]
        for computed, fixed in ((left, right), (right, left)):
            array = self.constant(fixed)
            if array is not None and not self.is_constant(computed):
                return computed, array
        return None

    def nearest(self, value: str, wanted: Callable[[NodeProto], Any]) -> list[NodeProto]:
        """Return the wanted nodes that feed a value with no other wanted node between, in reading order.

        Shapes are not data: the search does not pass through ``Shape``.
        """
        found: dict[str, NodeProto] = {}
        seen: set[str] = set()
        stack = [value]
        while stack:
            current = stack.pop()
            node = self._producers.get(current)
            if node is None or current in seen or current in self._constant_names:
                continue
            seen.add(current)
            if wanted(node):
                found.setdefault(node.output[0], node)
            elif node.op_type != "Shape":
                stack.extend(reversed(node.input))
        return list(found.values())

    def evaluate(self, values: Sequence[str], feeds: Mapping[str, np.ndarray] | None = None) -> list[np.ndarray]:
        """Compute inner values with ONNX Runtime over the part of the graph that they need."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        part = self.part(values).SerializeToString()
        try:
            session = onnxruntime.InferenceSession(part, options, providers=["CPUExecutionProvider"])
            needed = {item.name for item in session.get_inputs()}
            return session.run(None, {name: array for name, array in (feeds or {}).items() if name in needed})
        except Exception as error:  # the runtime's errors have no common base
            found = f"a part that ONNX Runtime does not compute ({runtime_message(error)})"
            raise NotRecognizedError(self.path, ", ".join(values), found, "operators that it knows") from error

    def part(self, values: Sequence[str]) -> ModelProto:
        """Return the model that computes these values and nothing else."""
        needed = set(values)
        nodes = []
        for node in reversed(self.model.graph.node):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(node.input)
        graph = GraphProto(
            name="part",
            node=nodes[::-1],
            initializer=[tensor for name, tensor in self._stored.items() if name in needed],
            input=[item for item in self.model.graph.input if item.name in needed and item.name not in self._stored],
            output=[onnx.ValueInfoProto(name=value) for value in values],
        )
        return ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import, graph=graph)

    @cached_property
    def _constant_names(self) -> set[str]:
        names = set(self._stored) | {""}
        for node in self.model.graph.node:  # ONNX keeps nodes in topological order
            holds_graph = any(attribute.type == AttributeProto.GRAPH for attribute in node.attribute)
            if not holds_graph and all(name in names for name in node.input):
                names.update(node.output)
        return names

    def _fold(self, value: str) -> np.ndarray:
        if value in self._stored:
            return numpy_helper.to_array(self._stored[value])
        node = self._producers[value]
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            return numpy_helper.to_array(node.attribute[0].t)
        return self.evaluate([value])[0]


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return a node's attribute, or the default where it is absent."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default
