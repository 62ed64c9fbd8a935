"""A comparison as text: in the terminal, as JSON, and as Markdown for the summary of a CI job."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from compressor.bench.comparison import WORDS, Change, Comparison
from compressor.bench.figures import shown_share, shown_signed
from compressor.bench.terminal import COLORS, print_checks


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print every check as a sentence, then what else differs, then the verdict."""
    console = console or Console()
    console.print(f"old: {escape(comparison.old)}\nnew: {escape(comparison.new)}", highlight=False, soft_wrap=True)
    print_checks(comparison.changes, console)
    for line in comparison.differences:
        console.print(f"[yellow]![/yellow] {escape(line)}", highlight=False, soft_wrap=True)
    color = COLORS[comparison.verdict]
    said = f"[bold {color}]Comparison: {escape(comparison.sentence)}[/bold {color}]"
    console.print(said, highlight=False, soft_wrap=True)


def comparison_json(comparison: Comparison) -> str:
    """Return the comparison as JSON."""
    return comparison.model_dump_json(indent=2) + "\n"


def comparison_markdown(comparison: Comparison) -> str:
    """Return the comparison as a heading, a table of checks, their sentences, and what else differs."""
    head = ["row", "figure", "old", "new", "change for the worse", "allowed", "verdict"]
    lines = [f"### {_cell(comparison.sentence)}", "", f"old: {_cell(comparison.old)}", "",
             f"new: {_cell(comparison.new)}", "", _line(head), _line(["---"] * len(head))]  # fmt: skip
    lines += [_line(_cells(change)) for change in comparison.changes]
    for title, sentences in (
        ("How each was decided", [change.sentence for change in comparison.changes]),
        ("What else differs", comparison.differences),
    ):
        if sentences:
            lines += ["", f"**{title}**", "", *(f"- {_cell(sentence)}" for sentence in sentences)]
    return "\n".join(lines) + "\n"


def _cells(change: Change) -> list[str]:
    is_speed = change.kind == "speedup"
    shown = shown_share if is_speed else shown_signed
    side = "at least" if change.verdict == "fail" else "at most"
    bound = f" ({side} {shown(change.bound)})" if change.bound is not None else ""
    old, new = (f"{value:.2f}×" if is_speed else f"{value:.4f}" for value in (change.old, change.new))
    return [change.row, change.name, old, new, shown(change.value) + bound, shown(change.limit), WORDS[change.verdict]]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    """Keep what comes out of a report from being read as Markdown or HTML."""
    for sign in "\\`*_[]|<>#":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())
