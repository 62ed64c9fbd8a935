"""The CPU at hand: its name, the instruction sets that decide how int8 products run, and the class that they make."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

CpuClass = Literal["amx_int8", "avx512_vnni", "avx_vnni", "avx512", "avx2", "arm_i8mm", "arm_dotprod", "unknown"]
"""CPUs that compute int8 products alike: the best instruction for them that a CPU has."""

SATURATING: tuple[CpuClass, ...] = ("avx512", "avx2")
"""Classes without an instruction that sums products of uint8 and int8 in 32 bits: two are summed in 16, which saturate
(``vpmaddubsw``) unless weights stay within 7 bits."""

# Flags that decide which kernels run; the rest of /proc/cpuinfo says nothing about a ranker.
_FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
# The flags that each class takes, best class first.
_CLASSES: tuple[tuple[CpuClass, frozenset[str]], ...] = (
    ("amx_int8", frozenset({"amx_tile", "amx_int8"})),
    ("avx512_vnni", frozenset({"avx512f", "avx512_vnni"})),
    ("avx_vnni", frozenset({"avx2", "avx_vnni"})),
    ("avx512", frozenset({"avx512f", "avx512bw", "avx512vl"})),
    ("avx2", frozenset({"avx2"})),
    ("arm_i8mm", frozenset({"asimd", "i8mm"})),
    ("arm_dotprod", frozenset({"asimd", "asimddp"})),
)
_CPUINFO = Path("/proc/cpuinfo")


def class_of(flags: Iterable[str]) -> CpuClass:
    """Return the class of a CPU with these flags, as Linux spells them; ``unknown`` where they name none."""
    found = frozenset(flags)
    return next((name for name, needed in _CLASSES if needed <= found), "unknown")


def cpu_class() -> CpuClass:
    """Return the class of this CPU; ``unknown`` where the system does not list its flags (Linux alone does)."""
    return class_of(isa_flags())


def isa_flags() -> tuple[str, ...]:
    """Return the instruction-set extensions that matter to matrix products; empty where the system hides them.

    Where kinds of cores differ, as on some ARM CPUs, those that all of them have: a thread may run on any.
    """
    cores = [set(value.split()) for key in ("flags", "Features") for value in _cpuinfo(key)]
    common = set.intersection(*cores) if cores else set()
    return tuple(flag for flag in _FLAGS if flag in common)


def cpu_model() -> str:
    """Return the CPU's name as the system gives it."""
    for key in ("model name", "Hardware", "cpu model"):
        if found := _cpuinfo(key):
            return found[0]
    return platform.processor() or platform.machine()


def other_class_note(what: str, measured_on: CpuClass) -> str | None:
    """Say that figures come from another class of CPU than this one; None where they do not, or nobody can tell.

    Args:
        what: what was done there, as a sentence begins: "report.json was measured".
        measured_on: the class of the CPU that they were measured on.
    """
    here = cpu_class()
    if here == measured_on or "unknown" in (here, measured_on):
        return None
    rounding = (
        " Sums of int8 products may saturate on one of the two where another runtime than rankpress runs them."
        if (here in SATURATING) != (measured_on in SATURATING)
        else ""
    )
    return (
        f"{what} on a CPU of the class {measured_on}, this one is {here}: speeds, and scores in int8, "
        f"may be others here.{rounding}"
    )


def _cpuinfo(key: str) -> list[str]:
    """Return the values of a key, one per logical CPU that has it."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = (line.partition(":") for line in text.splitlines())
    return [value.strip() for name, _, value in lines if name.strip() == key and value.strip()]
