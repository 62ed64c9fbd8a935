"""The same folders in several runtimes: one row each, and a word on every runtime that is not there."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.bench.gpu_providers import why_not_there
from compressor.bench.openvino_session import Precision, why_missing
from compressor.bench.rows import Engine, RowSpec
from compressor.errors import Fault, InputError
from compressor.gate_settings import Target

ENGINES: dict[Target, Engine] = {
    "onnxruntime": "onnx", "cuda": "onnx_cuda", "tensorrt": "onnx_tensorrt", "openvino": "openvino",
    "openvino_bf16": "openvino_bf16",
}  # fmt: skip
_PRECISIONS: dict[Target, Precision] = {"openvino": "f32", "openvino_bf16": "bf16"}


def present_targets(targets: Sequence[Target]) -> tuple[list[Target], list[str]]:
    """Return the targets that this machine has, and a note on each that it has not.

    Raises:
        InputError: it has none of them.
    """
    causes = {target: _why_missing(target) for target in targets}
    missing = {target: cause for target, cause in causes.items() if cause}
    if len(missing) == len(targets):
        raise InputError(Fault(source=target, found="no such target", fix=cause) for target, cause in missing.items())
    notes = [f"{target} was left out: {cause}." for target, cause in missing.items()]
    return [target for target in targets if target not in missing], notes


def _why_missing(target: Target) -> str:
    if target in _PRECISIONS:
        return why_missing(_PRECISIONS[target])
    return why_not_there(target) if target in ("cuda", "tensorrt") else ""


def rows_on_targets(rows: Sequence[RowSpec], targets: Sequence[Target]) -> list[RowSpec]:
    """Return the rows that stand for some rows in every runtime, each behind the row that it comes from.

    ``model`` is the row in ONNX Runtime, ``model @ openvino`` the one in OpenVINO. Baselines that are graphs are run in
    every target too, so that no speed-up is one of runtimes alone; they stay in ONNX Runtime all the same. A row in
    fp32 beside one in ONNX Runtime is the same model: its quality is taken over once its scores agree, as they should.
    Rows on GPUs are scored on their own: there fp32 may be computed in fewer bits (TF32), or another file runs.
    """
    found = []
    for row in rows:
        if row.engine != "onnx":
            found.append(row)
            continue
        stays = row.kind == "baseline" or "onnxruntime" in targets
        found += [row] if stays else []
        for target in targets:
            if target != "onnxruntime":
                same = (row.scores_of or row.name) if stays and target == "openvino" else None
                changes = {"name": f"{row.name} @ {target}", "engine": ENGINES[target], "scores_of": same}
                found.append(row.changed(**changes))
    return found
