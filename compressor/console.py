"""What the command prints beside reports: news, plans, the catalogue."""

from __future__ import annotations

import inspect
import sys
from typing import get_type_hints

from rich.console import Console
from rich.table import Table

import compressor.passes  # noqa: F401  # fills the registry
from compressor.plan import Plan
from compressor.registry import registered


def say(line: str) -> None:
    """Print one line of news to standard error."""
    print(line, file=sys.stderr, flush=True)


def show_plan(plan: Plan) -> None:
    """Print a plan as a table."""
    table = Table(title=f"Plan of {plan.recipe}", title_justify="left")
    table.add_column("step")
    table.add_column("settings", overflow="fold")
    for name in ("layers", "parameters", f"MACs, {plan.tokens_per_pair} tokens"):
        table.add_column(name, justify="right")
    table.add_column("needs")
    table.add_column("state")
    for step in plan.steps:
        table.add_row(
            step.verb,
            step.settings,
            str(step.layers),
            f"{step.parameters / 1e6:.2f} M",
            f"{step.macs_per_pair / 1e9:.2f} G",
            ", ".join(step.needs),
            "stored" if step.stored else "",
        )
    console = Console()
    console.print(table)
    console.print(f"then export, and measure {', '.join(plan.measures)} on {', '.join(plan.test_sets) or 'nothing'}")


def show_passes() -> None:
    """Print every pass with its settings and what it says of itself."""
    console = Console()
    for verb, cls in sorted(registered().items()):
        console.print(f"[bold]{verb}[/bold]")
        hints = get_type_hints(cls)
        for name, field in cls.model_fields.items():
            default = "required" if field.is_required() else f"default: {field.get_default()!r}"
            console.print(f"  {name}: {_readable(hints[name])}  ({default})", markup=False, highlight=False)
        console.print(inspect.getdoc(cls), markup=False, highlight=False)
        console.print()


def _readable(hint: object) -> str:
    text = str(hint).replace("typing.", "").replace("<class '", "").replace("'>", "")
    return text.replace("compressor.passes.", "")
