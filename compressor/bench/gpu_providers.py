"""ONNX Runtime on NVIDIA GPUs, through its CUDA and TensorRT providers: whether they run here, and ranking on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compressor.runtime.folder import choose_gpu_file, choose_portable_file

if TYPE_CHECKING:
    from compressor.runtime.ranker import OnnxRanker

GpuTarget = Literal["cuda", "tensorrt"]

# In order of preference: what TensorRT does not take, CUDA computes, and the CPU the rest.
PROVIDERS: dict[GpuTarget, tuple[str, ...]] = {
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
_PACKAGES: dict[GpuTarget, str] = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu tensorrt"}
_WANTED: dict[GpuTarget, str] = {
    "cuda": "an NVIDIA GPU with its driver, CUDA and cuDNN",
    "tensorrt": "an NVIDIA GPU with its driver, CUDA, cuDNN and TensorRT",
}
# A graph that gives its input back, float [1], in ONNX: a session of it tells whether a provider starts.
_PROBE = bytes.fromhex(
    "080712003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a0808011204"
    "0a02080142040a00100d"
)


def why_not_there(target: GpuTarget) -> str:
    """Say why a target cannot be run here, and what to do; empty where it can.

    A provider may be in the package and yet not start: without a driver ONNX Runtime quietly takes the CPU.
    """
    import onnxruntime as ort

    from compressor.runtime.session import runtime_message, session_options

    providers = PROVIDERS[target]
    available = ort.get_available_providers()
    if missing := [name for name in providers if name not in available]:
        return (
            f"ONNX Runtime {ort.__version__} here has no {missing[0]}: put onnxruntime-gpu in the place of "
            f"onnxruntime, pip uninstall onnxruntime, then pip install {_PACKAGES[target]}"
        )
    started, reason = list[str](), ""
    try:
        started = ort.InferenceSession(_PROBE, session_options(1), providers=list(providers)).get_providers()
    except Exception as error:  # noqa: BLE001  # the runtime's errors have no common base
        reason = f" ({runtime_message(error)})"
    if idle := [name for name in providers if name not in started]:
        here = f"ONNX Runtime {ort.__version__} here has {idle[0]}, which does not start{reason}"
        return f"{here}: it wants {_WANTED[target]}"
    return ""


def gpu_graph(target: GpuTarget, folder: Path, file: str | None = None) -> Path:
    """Return the graph that a target runs.

    TensorRT takes the one in standard ops; CUDA the one in half precision, where that is what the folder's ranker is
    in, else the main file. Products of int8 have no CUDA kernels: those of an int8 ranker stay on the CPU.

    Raises:
        InputError: as `choose_gpu_file` and `choose_portable_file`.
    """
    return choose_gpu_file(folder, file) if target == "cuda" else choose_portable_file(folder, file)


def load_ranker(folder: Path, file: str | None, threads: int, target: GpuTarget) -> OnnxRanker:
    """Load a folder whose pairs are scored on a GPU.

    Args:
        folder: an exported folder, ours or foreign.
        file: the graph in it; None takes `gpu_graph`'s.
        threads: threads of operators that stay on the CPU.
        target: the provider.

    Raises:
        InputError: the provider is missing or does not start, or the folder lacks something.
    """
    from compressor.runtime.ranker import OnnxRanker

    path = gpu_graph(target, folder, file)
    return OnnxRanker.load(
        folder, file=path.relative_to(folder).as_posix(), threads=threads, providers=PROVIDERS[target]
    )
