"""Writes what was measured into the exported folder: its manifest and its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.bench.schema import Report, Row
from compressor.runtime.folder import MANIFEST
from compressor.storage import read_json, write_json


def add_measurement(folder: Path, report: Report) -> None:
    """Add a report's summary to ``rankpress.json``, and its table to the card ``README.md``.

    Args:
        folder: an exported folder.
        report: the report that measured it.
    """
    from compressor.export import write_model_card

    manifest = {**read_json(folder / MANIFEST), "report": _summary(report)}
    write_json(folder / MANIFEST, manifest)
    write_model_card(folder, manifest, markdown_table(report))


def markdown_table(report: Report) -> str:
    """Return the report as a Markdown table, with its conditions above and its verdict below."""
    references = sorted({name for row in report.rows for one in row.latency for name in one.speedup})
    columns = [
        (data, measure) for data, summary in report.data.items() if summary.judged_ids for measure in _measures(report)
    ]
    heads = ["ranker", *(f"{measure} on {data} (loss, bound)" for data, measure in columns)]
    for threads in report.settings.threads:
        heads += [f"p50 ms, {threads} thr.", *(f"× {name}, {threads} thr." for name in references)]
    heads.append("MB")
    lines = [_line(heads), _line(["---"] * len(heads))]
    lines += [_line(_cells(report, row, columns, references)) for row in report.rows]
    verdict = (
        f"\n\nGate: **{report.gate.verdict}**. " + " ".join(c.sentence for c in report.gate.checks)
        if report.gate
        else ""
    )
    return "\n".join([conditions(report), "", *lines]) + verdict + "\n"


def conditions(report: Report) -> str:
    """Return what a report was measured on, and what its figures mean, in a few sentences."""
    machine, load = report.machine, report.workload
    candidates = " and ".join(f"{name} ({data.n_queries} queries)" for name, data in report.data.items())
    versions, engines = machine.versions, {row.engine for row in report.rows}
    runtimes = f"ONNX Runtime {versions.get('onnxruntime') or versions.get('onnxruntime-gpu')}"
    if engines & {"onnx_cuda", "onnx_tensorrt"}:
        runtimes += f" (GPU: {', '.join(machine.gpus) or 'not named by the system'})"
    if any(engine.startswith("openvino") for engine in engines):
        runtimes += f", OpenVINO {versions['openvino']}"
    return (
        f"{machine.cpu}, {machine.available_threads} threads at hand, {runtimes}; "
        f"{candidates}, {report.settings.candidates} candidates per query; times are per query, tokenization included, "
        f"{load.n_queries} queries in {load.rounds} interleaved rounds, {load.mean_tokens} tokens per pair on average. "
        f"Losses are relative to {report.teacher}, with the one-sided 95 % bound of the paired difference; "
        "speed-ups are medians of paired ratios."
    )


def _summary(report: Report) -> dict[str, Any]:
    return {
        "created": report.created,
        "machine": report.machine.model_dump(mode="json"),
        "gate": report.gate.verdict if report.gate else None,
        "rows": {
            row.name: {
                "quality": {
                    data: {name: one.model_dump(exclude={"per_query"}) for name, one in measures.items()}
                    for data, measures in row.quality.items()
                },
                "latency": [one.model_dump(exclude={"samples_ms"}) for one in row.latency],
                "size_bytes": row.size_bytes,
                "parameters": row.parameters,
                "macs_per_pair": row.macs_per_pair,
            }
            for row in report.rows
        },
    }


def _measures(report: Report) -> list[str]:
    return [str(name) for name in report.settings.measures]


def _cells(report: Report, row: Row, columns: list[tuple[str, str]], references: list[str]) -> list[str]:
    cells = [row.name]
    for data, name in columns:
        one = row.quality[data][name]
        cells.append(
            f"{one.mean:.4f}" + ("" if one.loss_bound is None else f" ({one.loss:+.4f}, {one.loss_bound:+.4f})")
        )
    for latency in row.latency:
        cells.append(f"{latency.p50_ms:.1f}")
        cells += [f"{latency.speedup[name]:.2f}" if name in latency.speedup else "" for name in references]
    cells.append(f"{row.size_bytes / 1e6:.1f}" if row.size_bytes else "")
    return cells


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
