"""ONNX Runtime sessions with one set of options for every graph, ours or foreign."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from compressor.cpu import SATURATING, cpu_class
from compressor.errors import Fault, InputError, suggest
from compressor.runtime.threads import available_threads

_ERRORS_ONLY = 3
_LFS_POINTER = b"version https://git-lfs"


def open_session(
    onnx_path: Path, threads: int | None = None, providers: Sequence[str] | None = None
) -> ort.InferenceSession:
    """Open an ONNX file.

    Threads of one operator run in parallel, operators one after the other: a ranker's graph is a chain. Idle threads
    spin while a run lasts (on 2 threads that is 10 % faster than sleeping) and sleep as soon as it ends, so that
    a waiting ranker takes no CPU from its neighbors. Memory patterns are off: they are kept per input shape, and ragged
    text has a new shape in every batch. On x86 without VNNI, products of uint8 and int8 would be summed in 16 bits,
    which saturate: the runtime is told to widen them. Its warnings are not printed; its errors are raised.

    Args:
        onnx_path: the file; external data lies beside it.
        threads: threads of one operator; None takes `available_threads`.
        providers: execution providers in order of preference; None takes the CPU.

    Raises:
        InputError: no such file, not an ONNX file, one that this ONNX Runtime cannot run, unknown ``providers``
            or ``threads``, or a provider that does not start.
    """
    faults = _argument_faults(threads, providers) + file_faults(onnx_path)
    if faults:
        raise InputError(faults)
    options = session_options(threads or available_threads())
    try:
        session = ort.InferenceSession(str(onnx_path), options, providers=list(providers or ["CPUExecutionProvider"]))
    except Exception as error:  # the runtime's errors have no common base
        raise InputError(_open_fault(onnx_path, error)) from error
    # A provider that does not start is left out with a warning, and the CPU computes in its place.
    started = session.get_providers()
    if idle := [name for name in providers or () if name not in started]:
        found, fix = f"{idle[0]!r}, which does not start", "check its device, its driver and its libraries"
        raise InputError(Fault(source="providers", found=found, allowed=", ".join(started), fix=fix))
    return session


def session_options(threads: int) -> ort.SessionOptions:
    """Return the options of every session; see `open_session`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Weights become uint8, off by default for its cost in time. ONNX Runtime heeds it on AMX, too, where no sum
    # saturates and products of uint8 by uint8 run at a quarter of the speed.
    wants_wide_sums = cpu_class() in (*SATURATING, "unknown")
    options.add_session_config_entry("session.x64quantprecision", "1" if wants_wide_sums else "0")
    return options


def runtime_message(error: Exception) -> str:
    """Return the sentence in an ONNX Runtime error, without its codes and places in C++ sources."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"\S+\.(cc|h):\d+ \S.*?\)? ", "", text, count=1) if re.match(r"\S+\.(cc|h):\d+", text) else text


def _argument_faults(threads: int | None, providers: Sequence[str] | None) -> list[Fault]:
    faults = []
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        faults.append(Fault(source="threads", found=repr(threads), allowed="a whole number from 1"))
    available = ort.get_available_providers()
    faults += [
        Fault(
            source="providers",
            found=repr(name),
            allowed=", ".join(available),
            fix=suggest(name, available) or "another build of onnxruntime brings other providers",
        )
        for name in providers or ()
        if name not in available
    ]
    return faults


def file_faults(onnx_path: Path) -> list[Fault]:
    """Return why a path cannot be a graph's file, before any runtime looks into it."""
    if not onnx_path.exists():
        return [Fault(source=onnx_path, found="no such file", allowed="an ONNX file")]
    if not onnx_path.is_file():
        return [Fault(source=onnx_path, found="a folder", allowed="an ONNX file")]
    with onnx_path.open("rb") as stream:
        head = stream.read(len(_LFS_POINTER))
    if not head:
        return [Fault(source=onnx_path, found="an empty file", allowed="an ONNX file")]
    if head == _LFS_POINTER:
        return [
            Fault(
                source=onnx_path,
                found="a Git LFS pointer instead of the file itself",
                allowed="an ONNX file",
                fix="fetch it with 'git lfs pull'",
            )
        ]
    return []


def _open_fault(onnx_path: Path, error: Exception) -> Fault:
    if type(error).__name__ == "InvalidProtobuf" or "No graph was found" in str(error):
        return Fault(
            source=onnx_path,
            found="a file that is not ONNX, or is cut short",
            allowed="an ONNX file",
            fix="download or export it again",
        )
    return Fault(
        source=onnx_path,
        found=f"a graph that ONNX Runtime {ort.__version__} refuses ({runtime_message(error)})",
        allowed="graphs that this ONNX Runtime can run",
        fix="check that files with external data lie beside it, or use a newer onnxruntime",
    )
