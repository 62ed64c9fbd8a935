"""OpenVINO in the place of an ONNX Runtime session. The library is imported when a session is opened, never before."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compressor.errors import Fault, InputError
from compressor.runtime.folder import choose_portable_file
from compressor.runtime.graph_interface import read_interface
from compressor.runtime.session import file_faults

if TYPE_CHECKING:
    from compressor.runtime.ranker import OnnxRanker

Precision = Literal["f32", "bf16"]

INSTALL = "pip install 'rankpress[openvino]'"
_TYPES = {"i64": "tensor(int64)", "i32": "tensor(int32)", "f32": "tensor(float)", "f16": "tensor(float16)"}


def why_missing(precision: Precision) -> str:
    """Say why OpenVINO cannot compute in a precision here, and what to do; empty where it can."""
    if importlib.util.find_spec("openvino") is None:
        return f"the package openvino is not installed: {INSTALL}"
    if precision == "bf16":
        import openvino

        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return "OpenVINO has no bf16 on this CPU, which has neither AVX-512 nor AMX with bf16"
    return ""


def load_ranker(folder: Path, file: str | None, threads: int, precision: Precision) -> OnnxRanker:
    """Load a folder whose pairs are scored by OpenVINO: tokenizer, batches and checks are those of `OnnxRanker`.

    Args:
        folder: an exported folder, ours or foreign.
        file: the graph in it, ONNX or OpenVINO's own (``.xml``); None takes the portable one.
        threads: threads of one operator.
        precision: what floats are computed in.

    Raises:
        InputError: OpenVINO is missing or refuses the graph, or the folder lacks something.
    """
    from compressor.runtime.ranker import OnnxRanker
    from compressor.runtime.tokenizer import PairTokenizer

    path = choose_portable_file(folder, file)
    session = OpenVinoSession(path, threads, precision)
    return OnnxRanker(
        folder=folder, onnx_path=path, tokenizer=PairTokenizer.from_folder(folder), session=session,
        interface=read_interface(session, path), threads=threads,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Port:
    """An input or output, described as ONNX Runtime describes it."""

    name: str
    type: str
    shape: list[int | None]


class OpenVinoSession:
    """A compiled model with those methods of ONNX Runtime's session that a ranker calls; for one thread at a time.

    It answers one request as soon as it can, on ``threads`` logical CPUs: by default OpenVINO would leave out the
    second thread of each core, and compute in bf16 where the CPU has that.

    Raises:
        InputError: OpenVINO is not installed, there is no such file, or OpenVINO refuses the graph or the threads.
    """

    def __init__(self, path: Path, threads: int, precision: Precision = "f32") -> None:
        if missing := why_missing(precision):
            raise InputError(Fault(source="openvino", found="no such target", fix=missing))
        if faults := file_faults(path):
            raise InputError(faults)
        import openvino

        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": threads,
            "ENABLE_HYPER_THREADING": True, "INFERENCE_PRECISION_HINT": precision,
        }  # fmt: skip
        try:
            self._model = core.compile_model(core.read_model(path), "CPU", settings)
        except RuntimeError as error:
            found = f"a graph that OpenVINO {openvino.__version__.partition('-')[0]} refuses ({_message(error)})"
            fix = "graphs with ONNX Runtime's own ops need a portable export: export: {portable: true} in the recipe"
            raise InputError(Fault(source=path, found=found, allowed="standard ONNX ops", fix=fix)) from error
        if (given := self._model.get_property("INFERENCE_NUM_THREADS")) != threads:
            found = f"{threads}, of which OpenVINO takes {given}"
            fix = "its ratios to rows of as many threads would mean nothing"
            raise InputError(Fault(source="threads", found=found, allowed=f"at most {given}", fix=fix))
        self._request = self._model.create_infer_request()

    def get_inputs(self) -> list[Port]:
        """Describe the inputs."""
        return [_port(one) for one in self._model.inputs]

    def get_outputs(self) -> list[Port]:
        """Describe the outputs."""
        return [_port(one) for one in self._model.outputs]

    def run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the named outputs. What was returned is good until the next call."""
        results = self._request.infer(dict(feed), share_inputs=True, share_outputs=True)
        return [results[name] for name in names]


def _port(port: Any) -> Port:
    kind = port.get_element_type().get_type_name()
    sizes = [None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()]
    return Port(name=min(port.get_names(), key=len), type=_TYPES.get(kind, kind), shape=sizes)


def _message(error: Exception) -> str:
    """Return what OpenVINO says, without the places in its C++ sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "FrontEnd API"))]
    return " ".join(said[-2:]) or type(error).__name__
