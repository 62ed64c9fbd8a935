"""The CPU's class, from what Linux says of it and where nothing is said."""

from __future__ import annotations

import pytest

from compressor import cpu

X86 = "fpu sse4_2 avx f16c fma avx2"
AVX512 = f"{X86} avx512f avx512bw avx512vl avx512dq"
VNNI = f"{AVX512} avx512_vnni"


@pytest.fixture
def cpuinfo(monkeypatch, tmp_path):
    """Put a text in the place of /proc/cpuinfo."""

    def put(text: str | None) -> None:
        path = tmp_path / "cpuinfo"
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(cpu, "_CPUINFO", path)

    return put


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (X86, "avx2"),  # AMD Zen 1 to 3, Intel Haswell to Broadwell
        (f"{X86} avx_vnni", "avx_vnni"),  # Intel Alder Lake
        (AVX512, "avx512"),  # Intel Skylake-X
        (f"{X86} avx512f avx512cd avx512er", "avx2"),  # Intel Knights Landing: no words of bytes
        (VNNI, "avx512_vnni"),  # Intel Cascade Lake, AMD Zen 4
        (f"{VNNI} avx_vnni", "avx512_vnni"),  # AMD Zen 5
        (f"{VNNI} avx_vnni amx_tile amx_int8 amx_bf16", "amx_int8"),  # Intel Sapphire Rapids
        (f"{VNNI} amx_int8", "avx512_vnni"),  # a virtual machine that hides the tiles
        ("fp asimd asimddp asimdhp", "arm_dotprod"),  # Neoverse N1
        ("fp asimd asimddp i8mm sve bf16", "arm_i8mm"),  # Neoverse V1
        ("fp asimd", "unknown"),  # Cortex-A72
        ("fpu sse4_2", "unknown"),
        ("avx512_vnni", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_class_is_the_best_instruction_for_int8(flags, expected):
    assert cpu.class_of(flags.split()) == expected
    assert cpu.class_of(reversed(flags.split())) == expected


def test_an_x86_cpu_is_read_from_linux(cpuinfo):
    core = f"processor\t: %d\nmodel name\t: A CPU: 2 GHz\nflags\t\t: {VNNI} hypervisor\nbugs\t\t:\n\n"
    cpuinfo(core % 0 + core % 1)
    assert cpu.cpu_model() == "A CPU: 2 GHz"
    assert cpu.isa_flags() == ("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni")
    assert cpu.cpu_class() == "avx512_vnni"


def test_what_only_some_cores_have_does_not_count(cpuinfo):
    cpuinfo("Features\t: fp asimd asimddp i8mm\n\nFeatures\t: fp asimd asimddp\n")
    assert cpu.isa_flags() == ("asimd", "asimddp")
    assert cpu.cpu_class() == "arm_dotprod"


@pytest.mark.parametrize("text", [None, "", "processor\t: 0\nflags\n"])
def test_a_system_that_says_nothing_has_an_unknown_class(cpuinfo, text):
    cpuinfo(text)
    assert (cpu.isa_flags(), cpu.cpu_class()) == ((), "unknown")
    assert cpu.cpu_model() == (cpu.platform.processor() or cpu.platform.machine())


def test_figures_of_another_class_are_said_to_be(cpuinfo):
    cpuinfo(f"flags\t: {X86}\n")
    assert cpu.other_class_note("report.json was measured", "avx2") is None
    assert cpu.other_class_note("report.json was measured", "unknown") is None
    start = (
        "report.json was measured on a CPU of the class {}, this one is avx2: speeds, and scores in int8, may be others"
        " here."
    )
    assert cpu.other_class_note("report.json was measured", "avx512") == start.format("avx512")
    note = cpu.other_class_note("report.json was measured", "amx_int8")
    assert note is not None
    assert note.startswith(start.format("amx_int8") + " Sums of int8 products may saturate")
    cpuinfo(None)
    assert cpu.other_class_note("report.json was measured", "amx_int8") is None, "nobody can tell"
