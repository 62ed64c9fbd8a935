"""A diagnosis in the terminal, fit for 80 columns."""

from __future__ import annotations

import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from compressor.doctor.examine import Diagnosis, examine
from compressor.doctor.findings import Reason, Verdict

_SHOWN: dict[Verdict, tuple[str, str]] = {
    "loads": ("✓ loads", "green"),
    "loads_with_note": ("✓ with a note", "yellow"),
    "does_not_load": ("✗ does not load", "red"),
}


def show_diagnosis(folder: Path, *, as_json: bool) -> int:
    """Print which consumers can load a folder, and why others cannot; return the exit code.

    Raises:
        InputError: no such folder.
    """
    diagnosis = examine(folder)
    if as_json:
        print(json.dumps(diagnosis.as_json(), indent=2, ensure_ascii=False))
    else:
        print_diagnosis(diagnosis)
    return diagnosis.exit_code


def print_diagnosis(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print the verdict of every consumer, then each reason once, with the consumers that it is for."""
    console = console or Console(highlight=False)
    table = Table(title=Text(f"Who can load {diagnosis.folder}"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("consumer", overflow="fold")
    table.add_column("rules of", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    reasons: dict[Reason, list[str]] = {}
    for finding in diagnosis.findings:
        text, color = _SHOWN[finding.verdict]
        source = finding.version if finding.evidence == "run" else f"{finding.version} (read)"
        table.add_row(Text(finding.consumer), Text(source), Text(text, style=color))
        for reason in finding.reasons:
            reasons.setdefault(reason, []).append(finding.consumer)
    console.print(table)
    if any(finding.evidence == "read" for finding in diagnosis.findings):
        console.print(
            "(read): rules that were read in the consumer's documentation or source, and not held against it",
            style="dim",
        )
    for kind, mark, color in (("obstacle", "✗", "red"), ("note", "!", "yellow")):
        for reason, consumers in reasons.items():
            if reason.kind == kind:
                place = ": ".join(filter(None, (reason.file, reason.key)))
                console.print(f"[{color}]{mark}[/{color}] [bold]{escape(', '.join(consumers))}[/bold]", soft_wrap=True)
                console.print(escape(f"  {place}: {reason.text}" if place else f"  {reason.text}"), soft_wrap=True)
                if reason.fix:
                    console.print(escape(f"  → {reason.fix}"), style="dim", soft_wrap=True)
