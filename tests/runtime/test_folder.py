from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor import cpu
from compressor.errors import InputError
from compressor.runtime.folder import choose_graph, choose_onnx_file, choose_portable_file, main_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m" / "onnx").mkdir(parents=True)
    return tmp_path / "m"


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"x")


def message(folder: Path, file: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        choose_onnx_file(folder, file)
    return str(caught.value)


def test_order_of_choice(folder: Path) -> None:
    put(folder, "model.onnx")
    assert choose_onnx_file(folder) == folder / "model.onnx"
    put(folder, "onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/portable.onnx")
    assert choose_onnx_file(folder) == folder / "onnx/model.onnx"
    (folder / "rankpress.json").write_text("{}")
    assert choose_onnx_file(folder) == folder / "onnx/model.onnx"
    (folder / "rankpress.json").write_text('{"main_file": "onnx/model_quantized.onnx"}')
    assert choose_onnx_file(folder) == folder / "onnx/model_quantized.onnx"
    assert choose_onnx_file(folder, "onnx/portable.onnx") == folder / "onnx/portable.onnx"


def test_order_of_choice_without_fused_ops(folder: Path) -> None:
    put(folder, "onnx/model.onnx", "other.xml")
    assert choose_portable_file(folder) == folder / "onnx/model.onnx", "other tools export standard ops"
    assert choose_portable_file(folder, "other.xml") == folder / "other.xml"
    (folder / "rankpress.json").write_text('{"main_file": "onnx/model.onnx"}')
    assert choose_portable_file(folder, "onnx/model.onnx") == folder / "onnx/model.onnx", "who names it, means it"
    with pytest.raises(InputError, match=r"allowed: onnx/model_portable\.onnx; set export: \{portable: true\}"):
        choose_portable_file(folder)
    put(folder, "onnx/model_portable.onnx")
    assert choose_portable_file(folder) == folder / "onnx/model_portable.onnx"
    with pytest.raises(InputError, match="no such folder"):
        choose_portable_file(folder / "missing")


def test_no_such_folder(tmp_path: Path) -> None:
    assert message(tmp_path / "org/model") == (
        f"{tmp_path}/org/model: found no such folder; allowed: the folder of an exported ranker; "
        "download hub models first"
    )


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    put(folder, "model.onnx")
    assert message(folder / "model.onnx").endswith("name the folder, and the file in it with file=")


def test_no_onnx_file(folder: Path) -> None:
    start = f"{folder}: found no ONNX file; allowed: onnx/model.onnx or model.onnx"
    assert message(folder) == start
    put(folder, "model.safetensors")
    assert message(folder) == (
        f"{start}; this is a torch checkpoint: 'rankpress compress' with an empty 'passes:' exports it as it is"
    )
    put(folder, "onnx/model_O2.onnx", "a.onnx")
    assert message(folder) == f"{start}; choose one with file=: a.onnx, onnx/model_O2.onnx"


def test_the_file_asked_for_is_missing(folder: Path) -> None:
    put(folder, "onnx/model.onnx")
    assert message(folder, "onnx/modle.onnx") == (
        f"{folder}: file: found 'onnx/modle.onnx', which is not in the folder; allowed: onnx/model.onnx; "
        "did you mean 'onnx/model.onnx'?"
    )


@pytest.mark.parametrize("name", ["../other.onnx", "/etc/passwd", "onnx/../../x.onnx"])
def test_names_that_leave_the_folder(folder: Path, name: str) -> None:
    put(folder, "onnx/model.onnx")
    assert message(folder, name) == f"{folder}: found the file name {name!r}; allowed: names inside the folder"
    (folder / "rankpress.json").write_text(json.dumps({"main_file": name}))
    assert "allowed: names inside the folder" in message(folder)


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ('{"main_file": "x.onnx"}', "main_file: found 'x.onnx', which is not in the folder; allowed: onnx/model.onnx"),
        ('{"main_file": 3}', "main_file: found 3; allowed: a file name"),
        ("[]", "found a JSON list; allowed: a JSON object"),
        ("{", "line 1: found broken JSON"),
    ],
)  # fmt: skip
def test_broken_manifest(folder: Path, manifest: str, expected: str) -> None:
    put(folder, "onnx/model.onnx")
    (folder / "rankpress.json").write_text(manifest)
    assert message(folder).startswith(f"{folder}/rankpress.json: {expected}")


BUILDS = [
    {"precision": "int8_reduced_range", "cpus": ["avx2"], "file": "onnx/model_qint8_avx2.onnx"},
    {"precision": "int8", "cpus": ["avx512_vnni", "arm_dotprod"], "file": "onnx/model_quantized.onnx"},
]


@pytest.fixture
def built(folder: Path) -> Path:
    """A folder with a main file and two builds."""
    put(folder, "onnx/model.onnx", *(str(one["file"]) for one in BUILDS))
    (folder / "rankpress.json").write_text(json.dumps({"main_file": "onnx/model.onnx", "builds": BUILDS}))
    return folder


@pytest.mark.parametrize(
    ("flags", "file", "reason"),
    [
        ("avx2 fma", "model_qint8_avx2", "the build for CPUs of the class avx2 (int8_reduced_range)"),
        ("avx2 avx512f avx512_vnni", "model_quantized", "the build for CPUs of the class avx512_vnni (int8)"),
        ("asimd asimddp", "model_quantized", "the build for CPUs of the class arm_dotprod (int8)"),
        ("avx2 avx_vnni", "model", "the main file: no build is for CPUs of the class avx_vnni"),
        ("", "model", "the main file: no build is for CPUs of the class unknown"),
    ],
)
def test_the_build_for_this_cpu(
    built: Path, monkeypatch: pytest.MonkeyPatch, flags: str, file: str, reason: str
) -> None:
    monkeypatch.setattr(cpu, "isa_flags", lambda: tuple(flags.split()))
    chosen = choose_graph(built)
    assert (chosen.path, chosen.reason, chosen.by_cpu) == (built / f"onnx/{file}.onnx", reason, True)
    assert choose_onnx_file(built) == chosen.path
    assert main_file(built) == built / "onnx/model.onnx"
    assert choose_graph(built, on_cpu=False).path == main_file(built)
    asked = choose_graph(built, "onnx/model_quantized.onnx")
    assert (asked.path, asked.reason, asked.by_cpu) == (built / "onnx/model_quantized.onnx", "asked for", False)


def test_a_missing_build_gives_way_to_the_main_file_in_words(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "isa_flags", lambda: ("avx2",))
    (built / "onnx/model_qint8_avx2.onnx").unlink()
    chosen = choose_graph(built)
    assert chosen.path == built / "onnx/model.onnx"
    assert chosen.reason == (
        "the main file: onnx/model_qint8_avx2.onnx, the build for CPUs of the class avx2 (int8_reduced_range), is not "
        "in the folder"
    )
    (built / "onnx/model.onnx").unlink()
    assert "'onnx/model.onnx', which is not in the folder" in message(built)


@pytest.mark.parametrize(
    ("builds", "expected"),
    [
        ([{**BUILDS[0], "file": "../../other.onnx"}], "is no name that consumers look for int8 under"),
        ([{**BUILDS[0], "file": "/etc/passwd"}], "is no name that consumers look for int8 under"),
        ([BUILDS[0], BUILDS[0]], "builds name a file twice"),
        ("int8", "builds: found 'int8'; allowed: a list"),
        ([{"precision": "int8", "cpus": ["z80"]}], "builds.0.cpus.0: found 'z80'; allowed: "),
    ],
)
def test_broken_builds(built: Path, builds: object, expected: str) -> None:
    (built / "rankpress.json").write_text(json.dumps({"builds": builds}))
    text = message(built)
    assert text.startswith(f"{built}/rankpress.json: ")
    assert expected in text


def test_a_build_that_is_a_link_out_of_the_folder_is_refused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "isa_flags", lambda: ("avx2",))
    (built / "onnx/model_qint8_avx2.onnx").unlink()
    (built.parent / "other.onnx").write_bytes(b"x")
    (built / "onnx/model_qint8_avx2.onnx").symlink_to(built.parent / "other.onnx")
    assert message(built).endswith("allowed: names inside the folder")
