"""What other toolkits make of a teacher's stock export, as their documentation advises."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from compressor.bench.rows import RowSpec
from compressor.console import say
from compressor.gate_settings import Target
from compressor.ranker.tokenizer_files import TOKENIZER_FILES
from compressor.runtime.batching import padded
from compressor.runtime.tokenizer import PairTokenizer
from compressor.storage import whole_folder

NNCF, NNCF_FILE = "stock_nncf_int8", "openvino/openvino_model.xml"


def peer_rows(
    stock: RowSpec, place: Path, pairs: Sequence[tuple[str, str]], targets: Sequence[Target]
) -> tuple[list[RowSpec], list[str]]:
    """Return what other toolkits make of the stock export, and a note on each that is not installed."""
    rows = [RowSpec(name="stock_ort_int8", folder=_made(stock, place / "ort_int8", _quantize_dynamic))]
    if "openvino" not in targets:
        return rows, ["stock_nncf_int8 was left out: it runs in OpenVINO."]
    if importlib.util.find_spec("nncf") is None:
        return rows, ["stock_nncf_int8 was left out: the package nncf is not installed: pip install nncf."]

    def quantize(source: Path, folder: Path) -> None:
        _quantize_by_nncf(source, folder, pairs)

    folder = _made(stock, place / f"nncf_int8_{len(pairs)}", quantize)
    in_openvino: list[Target] = [target for target in targets if target.startswith("openvino")]
    rows += [RowSpec(name=f"{NNCF} @ {target}", engine=target, folder=folder, file=NNCF_FILE) for target in in_openvino]
    return rows, []


def _made(stock: RowSpec, folder: Path, make: Callable[[Path, Path], None]) -> Path:
    """Return a peer's folder; ``make(source, folder)`` writes its graph the first time."""
    if not folder.is_dir():
        say(f"making {folder.name}")
        with whole_folder(folder) as partial:
            for name in (*TOKENIZER_FILES, "config.json"):
                if (stock.folder / name).is_file():
                    (partial / name).write_bytes((stock.folder / name).read_bytes())
            make(stock.folder / "onnx" / "model.onnx", partial)
    return folder


def _quantize_dynamic(source: Path, folder: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    (folder / "onnx").mkdir()
    prepared = folder / "prepared.onnx"
    quant_pre_process(source, prepared, skip_symbolic_shape=True)  # which gives up on torch's export
    quantize_dynamic(prepared, folder / "onnx" / "model.onnx")
    prepared.unlink()


def _quantize_by_nncf(source: Path, folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    os.environ.setdefault("NNCF_CI", "1")  # it sends telemetry otherwise
    import nncf
    import openvino

    tokenizer = PairTokenizer.from_folder(folder)
    encoded = tokenizer.encode_pairs(pairs)
    model = openvino.Core().read_model(source)
    names = [port.get_any_name() for port in model.inputs]
    feeds = [padded(encoded, np.array([row]), tokenizer.pad_id) for row in range(len(pairs))]
    quantized = nncf.quantize(
        model, nncf.Dataset([{name: feed[name] for name in names} for feed in feeds]),
        model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pairs),
    )  # fmt: skip
    (folder / NNCF_FILE).parent.mkdir()
    openvino.save_model(quantized, folder / NNCF_FILE)  # what is not int8 is stored in fp16: its default
