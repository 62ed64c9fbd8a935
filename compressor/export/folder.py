"""The universal folder: one export that every common reranker runtime can load."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.builds import Build
from compressor.cascade_stages import ExportedCascade
from compressor.export.cascade import check_cascade, write_cascade
from compressor.export.configs import tokenizer_files, write_config
from compressor.export.encoder import write_graph
from compressor.export.graph import Dialect
from compressor.export.manifest import (
    CASCADE_FILES,
    COMPANION_FILE,
    MAIN_FILE,
    SHARED_QUERY,
    make_manifest,
)
from compressor.export.model_card import write_model_card
from compressor.export.parity import Parity, check_parity, parity_batches, torch_results
from compressor.export.shared_query import check_shared_query, shares_query, write_shared_query
from compressor.families import can_be_stock, stock_checkpoint
from compressor.ranker.builds import build_spec, check_builds
from compressor.ranker.cost import linears_of, tables_of
from compressor.ranker.quantizers import to_float_kind
from compressor.ranker.ranker import Ranker
from compressor.ranker.rounding import in_fp32
from compressor.ranker.spec import LinearSpec, TableSpec, float_kind
from compressor.runtime.cascade import OnnxCascade
from compressor.runtime.folder import HALF_FILES, MANIFEST, PORTABLE_FILE
from compressor.runtime.shared_query import OnnxSharedQuery
from compressor.storage import whole_folder, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        folder: the universal folder.
        manifest: its ``rankpress.json``.
        parity: agreement with torch, one record per ONNX file.
        seconds: how long it took, parity included.
    """

    folder: Path
    manifest: dict[str, Any]
    parity: tuple[Parity, ...]
    seconds: float


def export_folder(
    ranker: Ranker,
    folder: Path,
    *,
    manifest: Mapping[str, Any],
    calibration_pairs: Sequence[tuple[str, str]] = (),
    int8_companion: bool = True,
    portable: bool = False,
    builds: Sequence[Build] = (),
) -> ExportReport:
    """Write the universal folder; it appears whole, or not at all.

    Args:
        ranker: what to export. Its spec decides what ``onnx/model.onnx`` is; exits are left out, in ``spec.json`` too:
            the graph gives the head's scores alone. One in half precision goes to a file of its own, for GPUs:
            ``onnx/model.onnx`` computes with the same weights in fp32, as CPUs run half precision slowly or not at all.
            A cascade adds graphs of its own (``onnx/cascade_0.onnx``, ...), which read its exits; an isolated query
            those by which it is run once for a list (``onnx/query.onnx``, ``onnx/candidates.onnx``).
        folder: where to; one that exists is replaced.
        manifest: entries to add to ``rankpress.json``: recipe, teacher, data.
        calibration_pairs: (query, document) texts on which ONNX and torch are compared, beside made-up rows.
        int8_companion: add ``onnx/model_quantized.onnx`` where the main file is fp32.
        portable: add ``onnx/model_portable.onnx``, the same ranker in standard ops.
        builds: files to add that the runtime takes in the main file's place on the CPUs that each is for; one may take
            the companion's name.

    Raises:
        RunError: an ONNX file does not score as the ranker does; nothing is written.
        InputError: the tokenizer's files do not fit the spec, or the ranker has no such build.
    """
    start = time.monotonic()
    ranker = ranker.as_served()
    check_builds(ranker.spec, builds)
    batches = parity_batches(ranker, calibration_pairs)
    with whole_folder(folder) as partial:
        (partial / "onnx").mkdir()
        main = in_single_precision(ranker)
        agreement, scores = _write_checked(main, partial / MAIN_FILE, "ort", batches)
        records = [agreement]
        entries = [asdict(agreement)]
        if main is not ranker:
            entries += _write_half(ranker, partial, batches, scores, records)
        for build in _with_companion(builds, int8_companion and is_float(ranker)):
            rounded = build_of(ranker, build)
            agreement, rounded_scores = _write_checked(rounded, partial / build.file, "ort", batches)
            records.append(agreement)
            entries.append({**asdict(agreement), "against_main_file": _agreement(scores, rounded_scores)})
        if portable:
            agreement, _ = _write_checked(main, partial / PORTABLE_FILE, "portable", batches)
            records.append(agreement)
            entries.append(asdict(agreement))
        cascade, agreements = _write_cascade(main, partial, batches)
        if shares := shares_query(main.spec):
            agreements.append(_write_shared_query(main, partial, batches))
        records += agreements
        entries += map(asdict, agreements)
        _write_small_files(ranker, main, partial)
        more = {"kind": _kind(ranker), **manifest}
        shared_query = SHARED_QUERY if shares else None
        whole = make_manifest(ranker, partial, entries, more, cascade, shared_query, builds)
        write_json(partial / MANIFEST, whole)
        write_model_card(partial, whole, None)
    return ExportReport(
        folder=folder, manifest=whole, parity=tuple(records), seconds=round(time.monotonic() - start, 3)
    )


def is_float(ranker: Ranker) -> bool:
    """Whether all linears compute in fp32."""
    return all(linear.precision.kind == "fp32" for _, linear in linears_of(ranker.spec))


def build_of(ranker: Ranker, build: Build) -> Ranker:
    """Return the ranker that a build of it is.

    Raises:
        InputError: it has no such build.
    """
    return ranker.changed(spec=build_spec(ranker.spec, build.precision))


def _with_companion(builds: Sequence[Build], companion: bool) -> list[Build]:
    """Return the int8 files to write: the builds, and the companion where none of them has taken its name."""
    taken = {build.file for build in builds}
    return [*builds, *([Build.usual("int8")] if companion and COMPANION_FILE not in taken else [])]


def _write_checked(
    ranker: Ranker, path: Path, dialect: Dialect, batches: Sequence[dict[str, np.ndarray]]
) -> tuple[Parity, np.ndarray]:
    path.write_bytes(write_graph(ranker.spec, ranker.weights, dialect).SerializeToString())
    return check_parity(ranker, path, batches)


def in_single_precision(ranker: Ranker) -> Ranker:
    """Return the ranker that computes in fp32 with weights that half precision has; itself, where nothing is half."""
    spec = in_fp32(ranker.spec)
    if spec == ranker.spec:
        return ranker
    floats = {name: float_kind(part.precision) for name, part in _rounded_parts(ranker)}
    for index, layer in enumerate(ranker.spec.layers):
        floats |= dict.fromkeys((f"layers.{index}.attention_norm", f"layers.{index}.ffn_norm"), layer.states)
    weights = {
        name: to_float_kind(tensor, floats.get(name.rpartition(".")[0], "fp32"))
        for name, tensor in ranker.weights.items()
    }
    return ranker.changed(spec=spec, weights=weights)


def _rounded_parts(ranker: Ranker) -> list[tuple[str, LinearSpec | TableSpec]]:
    return [*linears_of(ranker.spec), *tables_of(ranker.spec)]


def _write_half(
    ranker: Ranker, folder: Path, batches: Sequence[dict[str, np.ndarray]], scores: np.ndarray, records: list[Parity]
) -> list[dict[str, Any]]:
    """Write the file in half precision, and return what is known of its agreement with torch and the main file.

    Of bf16 nothing is: ONNX Runtime has no kernels for it on CPUs. Then torch says how far its scores are from fp32's.
    """
    kind = next(kind for _, part in _rounded_parts(ranker) if (kind := float_kind(part.precision)) != "fp32")
    path = folder / HALF_FILES[kind]
    if kind == "fp16":
        agreement, found = _write_checked(ranker, path, "ort", batches)
        records.append(agreement)
        return [{**asdict(agreement), "against_main_file": _agreement(scores, found)}]
    path.write_bytes(write_graph(ranker.spec, ranker.weights, "ort").SerializeToString())
    simulated = torch_results(ranker, batches)
    cause = "not compared: ONNX Runtime's CPU has no kernels for bf16"
    return [{"file": path.name, "cause": cause, "simulation_against_main_file": _agreement(scores, simulated)}]


def _write_cascade(
    ranker: Ranker, folder: Path, batches: Sequence[dict[str, np.ndarray]]
) -> tuple[ExportedCascade | None, list[Parity]]:
    graphs = write_cascade(ranker.spec, ranker.weights)
    if not ranker.spec.cascade or not graphs:
        return None, []
    files = tuple(CASCADE_FILES.format(place=place) for place in range(len(graphs)))
    settings = ExportedCascade(**dict(ranker.spec.cascade), files=files)
    for name, graph in zip(files, graphs, strict=True):
        (folder / name).write_bytes(graph.SerializeToString())
    return settings, check_cascade(ranker, OnnxCascade.load(settings, [folder / name for name in files]), batches)


def _write_shared_query(ranker: Ranker, folder: Path, batches: Sequence[dict[str, np.ndarray]]) -> Parity:
    paths = [folder / SHARED_QUERY.query, folder / SHARED_QUERY.candidates]
    for path, graph in zip(paths, write_shared_query(ranker.spec, ranker.weights), strict=True):
        path.write_bytes(graph.SerializeToString())
    return check_shared_query(ranker, OnnxSharedQuery.load(paths, ranker.tokenizer), batches)


def _write_small_files(ranker: Ranker, main: Ranker, folder: Path) -> None:
    plain = main.without_exits()
    if can_be_stock(plain.spec) is None:
        stock_checkpoint(plain, folder)
    write_json(folder / "config.json", write_config(plain))
    (folder / "spec.json").write_text(ranker.spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for name, content in tokenizer_files(ranker).items():
        (folder / name).write_bytes(content)


def _kind(ranker: Ranker) -> str:
    return "cross_encoder" if ranker.spec.output_name == "logits" else "bi_encoder"


def _agreement(scores: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Say how far results lie from the main file's: over all rows and components."""
    gaps = np.abs(scores - others)
    return {"max_difference": float(gaps.max()), "mean_difference": float(gaps.mean()), "spread": float(scores.std())}
