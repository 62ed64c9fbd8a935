"""The smaller commands: validate, bench, gate, compare, pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from compressor.baselines import baseline_rows
from compressor.bench.compare import compare_reports
from compressor.bench.comparison import Allowed, Side
from compressor.bench.comparison_text import comparison_json, comparison_markdown, print_comparison
from compressor.bench.gate import EXIT_CODES, gate_report
from compressor.bench.gate_flags import gate_settings_from_flags
from compressor.bench.machine import note_of_other_cpu
from compressor.bench.quality import parse_measures
from compressor.bench.report import read_report, write_report
from compressor.bench.rows import RowSpec
from compressor.bench.run import run_bench
from compressor.bench.targets import present_targets, rows_on_targets
from compressor.bench.terminal import print_report, print_verdict
from compressor.console import say
from compressor.cpu import other_class_note
from compressor.data import RankingData, load_data
from compressor.data_reference import DataReference
from compressor.errors import Fault, InputError, suggest
from compressor.gate_settings import STOCK_ONNX, BenchSettings, Target
from compressor.prepare import check
from compressor.recipe_faults import flag_faults
from compressor.runtime.folder import choose_gpu_file, choose_onnx_file, choose_portable_file
from compressor.runtime.packed import Values
from compressor.runtime.threads import available_threads
from compressor.storage import check_folder_to_write

ComparisonForm = Literal["text", "json", "markdown"]


def validate(recipes: Sequence[Path], overrides: Sequence[str]) -> None:
    """Check recipes and say which are in order.

    Raises:
        InputError: the faults of all recipes that are not.
    """
    faults = []
    for path in recipes:
        try:
            recipe, _ = check(path, overrides)
            print(f"{path}: in order ({len(recipe.passes)} passes)")
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(faults)


def bench(
    folders: Sequence[Path],
    references: Sequence[str],
    *,
    teacher: str | None,
    out: Path,
    threads: str,
    measures: str,
    targets: Sequence[str] = (),
    **settings: Any,
) -> None:
    """Measure folders side by side, in every target, and write ``report.json`` and ``report.html``.

    Raises:
        InputError: a folder, a data reference or a setting is at fault.
    """
    wanted = {**settings, "measures": _words(measures), "threads": _words(threads) or [str(available_threads())]}
    if named := [word for text in targets for word in _words(text)]:
        wanted["targets"] = named
    checked = _bench_settings(wanted)
    present, notes = present_targets(checked.targets)
    for note in notes:
        say(note)
    data = _checked_input(folders, references, out, checked, present)
    others = [said for folder in folders if (said := note_of_other_cpu(folder))]
    for note in others:
        say(f"warning: {note}")
    notes += others
    rows = [RowSpec(name=name, folder=folder) for name, folder in zip(_names(folders), folders, strict=True)]
    if teacher:
        rows = [*_baselines(teacher, out), *rows]
    rows = rows_on_targets(rows, present)
    reference = STOCK_ONNX if teacher else rows[0].name
    report = run_bench(rows, data, checked, teacher=reference, cache=out / "scores", notes=notes)
    write_report(report, out)
    print_report(report)
    say(f"report: {out / 'report.html'}")


def gate(path: Path, *, row: str | None, **limits: Any) -> int:
    """Judge a report and print the verdict; return the exit code.

    Raises:
        InputError: the report or a limit is at fault.
    """
    settings = gate_settings_from_flags(**limits)
    report = read_report(path)
    if note := other_class_note(f"{path} was measured", report.machine.cpu_class):
        say(f"warning: {note}")
    verdict = gate_report(report, settings, rows=[row] if row else None)
    print_verdict(verdict)
    return EXIT_CODES[verdict.verdict]


def compare(
    old: Path,
    new: Path,
    *,
    row: str | None,
    max_slowdown: float,
    max_loss: Sequence[str],
    baseline: str | None = None,
    form: ComparisonForm = "text",
) -> int:
    """Compare two reports and print what regressed; return the gate's exit code for it.

    Raises:
        InputError: a report or a limit is at fault, or they were measured on different data.
    """
    margins = gate_settings_from_flags(max_loss=max_loss).max_loss if max_loss else {}
    try:
        allowed = Allowed(max_loss=margins, max_slowdown=max_slowdown, baseline=baseline)
    except ValidationError as error:
        raise InputError(flag_faults(error, {"max_slowdown": max_slowdown}, Allowed)) from None
    before, after = (Side(report=read_report(path), source=path) for path in (old, new))
    found = compare_reports(before, after, allowed, row=row)
    if form == "text":
        print_comparison(found)
    else:
        print(comparison_json(found) if form == "json" else comparison_markdown(found), end="")
    return EXIT_CODES[found.verdict]


def pack(folder: Path, out: Path, *, values: str, main_only: bool) -> None:
    """Write a folder as one file and say what that saves.

    Raises:
        InputError: the folder or the way to hold values is at fault.
    """
    if values not in get_args(Values):
        allowed = ", ".join(get_args(Values))
        raise InputError(
            Fault(
                source="command line",
                where="--values",
                found=repr(values),
                allowed=allowed,
                fix=suggest(values, get_args(Values)),
            )
        )
    from compressor.export.packing import pack as write

    header = write(folder, out, values=values, main_only=main_only)  # type: ignore[arg-type]
    say(f"{out}: {out.stat().st_size / 1e6:,.1f} MB for a folder of {header.size_bytes / 1e6:,.1f} MB")
    if values != "exact":
        say(f"matrices were rounded to {values}: unpack it, and measure that folder, whose scores are its own")


def _baselines(teacher: str, out: Path) -> list[RowSpec]:
    from compressor.families import load_teacher, teacher_fingerprint

    fingerprint = teacher_fingerprint(teacher, Path())
    return baseline_rows(out / f"baselines-{fingerprint[:16]}", lambda: load_teacher(teacher, Path()), say)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _checked_input(
    folders: Sequence[Path], references: Sequence[str], out: Path, settings: BenchSettings, targets: Sequence[Target]
) -> list[RankingData]:
    """Load the data, once every folder is known to hold a graph; all faults at once."""
    faults: list[Fault] = []
    data: list[RankingData] = []
    checks: list[Callable[[], object]] = [
        *(
            partial(
                {"onnxruntime": choose_onnx_file, "cuda": choose_gpu_file}.get(target, choose_portable_file), folder
            )
            for folder in folders
            for target in targets
        ),
        partial(check_folder_to_write, out),
        partial(parse_measures, settings.measures, source="command line: --measures"),
        *(partial(lambda text: data.append(_load(text, settings.candidates)), text) for text in references),
    ]
    for check_ in checks:
        try:
            check_()
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(dict.fromkeys(faults))  # what several targets find is said once
    return data


def data_reference(text: str) -> DataReference:
    """Read the value of ``--data``.

    Raises:
        InputError: it has no form that a reference may have.
    """
    try:
        return DataReference.model_validate(text)
    except ValidationError as error:
        said = [one["msg"].removeprefix("Value error, ") for one in error.errors()]
        raise InputError(Fault(source="command line", where="--data", found=repr(text), fix="; ".join(said))) from None


def _load(text: str, depth: int) -> RankingData:
    return load_data(data_reference(text).resolved(Path()), depth=depth)


def _names(folders: Sequence[Path]) -> list[str]:
    """Name rows after their folders; where two are alike or say nothing, after the path as given."""
    short = [folder.resolve().parent.name if folder.name == "model" else folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _bench_settings(values: dict[str, Any]) -> BenchSettings:
    try:
        return BenchSettings.model_validate(values)
    except ValidationError as error:
        raise InputError(flag_faults(error, values, BenchSettings, n_queries="queries", targets="target")) from None
