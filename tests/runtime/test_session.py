from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from compressor.errors import InputError
from compressor.runtime.session import open_session, runtime_message, session_options
from compressor.runtime.threads import available_threads
from tests.runtime.tiny_folder import graph


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(graph(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def message(path: Path, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        open_session(path, **settings)  # type: ignore[arg-type]
    return str(caught.value)


def test_options(path: Path) -> None:
    options = open_session(path, threads=3).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert open_session(path).get_session_options().intra_op_num_threads == available_threads()
    assert open_session(path, providers=["CPUExecutionProvider"]).get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("cpu", "asked"), [("avx2", "1"), ("avx512", "1"), ("unknown", "1"), ("avx512_vnni", "0"), ("amx_int8", "0")]
)
def test_wide_sums_are_asked_for_where_sums_may_saturate(cpu: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere they are exact already, and ONNX Runtime would give up AMX for them."""
    monkeypatch.setattr("compressor.runtime.session.cpu_class", lambda: cpu)
    assert session_options(threads=1).get_session_config_entry("session.x64quantprecision") == asked


def test_integer_products_do_not_saturate(tmp_path: Path) -> None:
    """Sums of 8-bit products need more than 16 bits; by default, CPUs without VNNI give them no more."""
    weights = np.where(np.arange(64 * 4).reshape(64, 4) % 2, np.int8(127), np.int8(-127))
    values = np.full((1, 64), np.uint8(255))  # any two products are beyond 16 bits
    node = onnx.helper.make_node("MatMulInteger", ["values", "weights"], ["sums"])
    made = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("values", onnx.TensorProto.UINT8, [1, 64])],
        [onnx.helper.make_tensor_value_info("sums", onnx.TensorProto.INT32, [1, 4])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "product.onnx")
    (sums,) = open_session(tmp_path / "product.onnx").run(None, {"values": values})
    np.testing.assert_array_equal(sums, values.astype(np.int32) @ weights.astype(np.int32))


def test_warnings_of_the_runtime_stay_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(graph(is_wasteful=True), tmp_path / "wasteful.onnx")
    ort.InferenceSession(str(tmp_path / "wasteful.onnx"), providers=["CPUExecutionProvider"])
    assert "never_used" in capfd.readouterr().err  # the runtime has something to say about this graph
    session = open_session(tmp_path / "wasteful.onnx")
    ones = np.ones((1, 2), dtype=np.int64)
    session.run(["logits"], {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones})
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_no_such_file(tmp_path: Path) -> None:
    assert message(tmp_path / "no.onnx") == f"{tmp_path}/no.onnx: found no such file; allowed: an ONNX file"


def test_a_folder(tmp_path: Path) -> None:
    assert message(tmp_path) == f"{tmp_path}: found a folder; allowed: an ONNX file"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "found an empty file; allowed: an ONNX file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
            "found a Git LFS pointer instead of the file itself; allowed: an ONNX file; fetch it with 'git lfs pull'",
        ),
        (
            b"<!doctype html><title>404</title>",
            "found a file that is not ONNX, or is cut short; allowed: an ONNX file; download or export it again",
        ),
    ],
)
def test_not_onnx(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert message(path) == f"{path}: {expected}"


def test_a_file_cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])
    assert "found a file that is not ONNX, or is cut short" in message(path)


def test_an_operator_that_the_runtime_does_not_have(tmp_path: Path) -> None:
    model = graph()
    model.graph.node[2].op_type = "NoSuchOperator"
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    text = message(path)
    assert text.startswith(f"{path}: found a graph that ONNX Runtime {ort.__version__} refuses (")
    assert "NoSuchOperator" in text
    assert "[ONNXRuntimeError]" not in text


def test_arguments(path: Path, tmp_path: Path) -> None:
    assert message(path, threads=0) == "threads: found 0; allowed: a whole number from 1"
    assert message(path, threads=True) == "threads: found True; allowed: a whole number from 1"
    text = message(path, providers=["CPUExecutionProvidor"])
    assert text.startswith("providers: found 'CPUExecutionProvidor'; allowed: ")
    assert text.endswith("did you mean 'CPUExecutionProvider'?")
    assert "another build of onnxruntime" in message(path, providers=["Abacus"])
    assert message(tmp_path / "no.onnx", threads=-1).count("\n") == 1  # both faults at once


def test_runtime_message_keeps_the_sentence() -> None:
    error = RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code\nat somewhere")
    assert runtime_message(error) == "Non-zero status code"
    assert runtime_message(RuntimeError()) == "RuntimeError"
