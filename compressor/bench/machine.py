"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compressor.bench.schema import Machine
from compressor.cpu import class_of, cpu_model, isa_flags, other_class_note
from compressor.memory import memory_bytes
from compressor.runtime.folder import MANIFEST
from compressor.storage import read_json

_GPUS = Path("/proc/driver/nvidia/gpus")
_PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "tensorrt", "openvino", "nncf", "numpy", "tokenizers", "torch", "transformers",
    "ir-measures", "onnx",
)  # fmt: skip


def describe_machine() -> Machine:
    """Describe CPU, memory, system and library versions; never imports the libraries."""
    from compressor import __version__
    from compressor.runtime.threads import available_threads

    versions = {"python": platform.python_version(), "rankpress": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return Machine(
        cpu=cpu_model(),
        isa=list(isa_flags()),
        logical_cpus=os.cpu_count() or 1,
        available_threads=available_threads(),
        cpu_quota=_cpu_quota(),
        gpus=list(gpu_models()),
        memory_bytes=memory_bytes(),
        os=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        versions=versions,
    )


def gpu_models() -> tuple[str, ...]:
    """Return the names of this machine's NVIDIA GPUs, as their driver gives them on Linux."""
    return tuple(
        line.partition(":")[2].strip()
        for path in sorted(_GPUS.glob("*/information"))
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith("Model:")
    )


def note_of_other_cpu(folder: Path) -> str | None:
    """Say that a folder's own figures, in its card and manifest, come from another class of CPU than this one.

    None where they do not, or the folder tells nothing: those of other tools, and those whose CPU nobody knows.
    """
    path = folder / MANIFEST
    manifest = read_json(path) if path.is_file() else None
    for done, keys in (
        ("was measured", ("report", "machine", "isa")),
        ("was compared with torch", ("exported_on", "cpu_flags")),
    ):
        flags = manifest
        for key in keys:
            flags = flags.get(key) if isinstance(flags, dict) else None
        if isinstance(flags, list):
            return other_class_note(f"{folder.resolve().name}: the ranker in it {done}", class_of(map(str, flags)))
    return None


def cpu_seconds() -> tuple[float, float] | None:
    """Return the busy and the total CPU seconds of the whole machine since it started, or None without psutil."""
    try:
        import psutil
    except ImportError:
        return None
    times = psutil.cpu_times()
    total = float(sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))
    return total - float(times.idle) - float(getattr(times, "iowait", 0.0)), total


def _cpu_quota() -> float | None:
    """Return the container's CPU limit in CPUs (cgroup v2, then v1), or None where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        return None if limit < 0 else limit / int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
