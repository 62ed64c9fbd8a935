"""What an ONNX file says of itself, read without running it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import Fault, InputError
from compressor.runtime.session import file_faults
from compressor.storage import inside

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

STANDARD_DOMAINS = ("", "ai.onnx")
# What a whole build of ONNX Runtime has beside the standard: pip's packages, and those that servers bundle.
RUNTIME_DOMAINS = (
    "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft", "com.microsoft.nchwc",
    "com.microsoft.experimental", "com.ms.internal.nhwc",
)  # fmt: skip
_SUMS_OF_INT8 = (
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "QuantizeLinear",
    "DynamicQuantizeLinear",
)  # fmt: skip
_FINDS_RANGES = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFacts:
    """An input or output.

    Attributes:
        name: as the graph calls it.
        kind: the element type as ONNX spells it: ``int64``, ``float``.
        shape: a number where the size is fixed, a word where it is named, None where it is neither; None in the whole
            where the graph does not say.
    """

    name: str
    kind: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphFacts:
    """An ONNX file.

    Attributes:
        file: its name in the folder.
        size_bytes: of the file and of its external data.
        ir_version: of the file format.
        opsets: domain to version, as imported.
        operators: domain to kinds of operators that are used from it, in order; functions of the file are no domain.
        inputs: without those that are weights.
        outputs: all of them, in order.
        external_files: where weights lie outside of the file, relative to it.
        missing_files: those of them that are not there, or that point out of the folder.
        block_bits: bits of the weights that `MatMulNBits` takes.
    """

    file: str
    size_bytes: int
    ir_version: int
    opsets: dict[str, int]
    operators: dict[str, tuple[str, ...]]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    external_files: tuple[str, ...]
    missing_files: tuple[str, ...]
    block_bits: tuple[int, ...]

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return max((self.opsets[domain] for domain in STANDARD_DOMAINS if domain in self.opsets), default=0)

    @property
    def sums_int8(self) -> bool:
        """Whether products of 8-bit activations and weights are summed."""
        return any(kind in _SUMS_OF_INT8 for kinds in self.operators.values() for kind in kinds)

    @property
    def finds_ranges(self) -> bool:
        """Whether ranges of activations are found for each batch."""
        return any(kind in _FINDS_RANGES for kinds in self.operators.values() for kind in kinds)

    def input(self, name: str) -> TensorFacts | None:
        """Return the input of a name, if there is one."""
        return next((one for one in self.inputs if one.name == name), None)


def read_graph(folder: Path, file: str) -> GraphFacts:
    """Read what a graph asks for; its weights stay unread.

    Raises:
        InputError: the file is missing, empty, a Git LFS pointer, or no ONNX.
    """
    import onnx

    path = folder / file
    if faults := file_faults(path):
        raise InputError(faults)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own, which is no library of ours
        raise InputError(_no_graph(path)) from error
    if not model.graph.node or not model.graph.output:  # bytes that happen to be a message
        raise InputError(_no_graph(path))
    nodes = list(_nodes(model))
    external = sorted({entry.value for tensor in _external(model, nodes) for entry in tensor.external_data
                       if entry.key == "location"})  # fmt: skip
    there = {name: _beside(folder, path, name) for name in external}
    weights = {tensor.name for tensor in model.graph.initializer}
    return GraphFacts(
        file=file,
        size_bytes=path.stat().st_size + sum(found.stat().st_size for found in there.values() if found),
        ir_version=model.ir_version,
        opsets={one.domain: one.version for one in model.opset_import},
        operators=_operators(model, nodes),
        inputs=tuple(_tensor(value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(map(_tensor, model.graph.output)),
        external_files=tuple(external),
        missing_files=tuple(name for name, found in there.items() if found is None),
        block_bits=tuple(sorted({_bits(node) for node in nodes if node.op_type == "MatMulNBits"})),
    )


def _no_graph(path: Path) -> Fault:
    return Fault(
        source=path,
        found="a file that is not ONNX, or is cut short",
        allowed="an ONNX file",
        fix="download or export it again",
    )


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Yield all nodes: the graph's, those of its branches and loops, and those of the file's functions."""
    from onnx import AttributeProto

    waiting: list[Any] = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop(0)
        yield node
        for attribute in node.attribute:
            graphs: list[GraphProto] = list(attribute.graphs)
            if attribute.type == AttributeProto.GRAPH:
                graphs.append(attribute.g)
            waiting += [inner for graph in graphs for inner in graph.node]


def _external(model: ModelProto, nodes: list[NodeProto]) -> Iterator[Any]:
    from onnx import TensorProto

    constants = (attribute.t for node in nodes for attribute in node.attribute if attribute.HasField("t"))
    for tensor in (*model.graph.initializer, *constants):
        if tensor.data_location == TensorProto.EXTERNAL:
            yield tensor


def _beside(folder: Path, path: Path, name: str) -> Path | None:
    try:
        found = inside(folder, (path.parent / name).relative_to(folder).as_posix())
    except (InputError, ValueError):
        return None
    return found if found.is_file() else None


def _operators(model: ModelProto, nodes: list[NodeProto]) -> dict[str, tuple[str, ...]]:
    own = {(function.domain, function.name) for function in model.functions}
    found: dict[str, set[str]] = {}
    for node in nodes:
        if (node.domain, node.op_type) not in own:
            found.setdefault(node.domain, set()).add(node.op_type)
    return {domain: tuple(sorted(kinds)) for domain, kinds in sorted(found.items())}


def _tensor(value: ValueInfoProto) -> TensorFacts:
    from onnx import TensorProto

    tensor = value.type.tensor_type
    shape = tuple(_size(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
    return TensorFacts(name=value.name, kind=TensorProto.DataType.Name(tensor.elem_type).lower(), shape=shape)


def _size(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def _bits(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "bits"), 4)
