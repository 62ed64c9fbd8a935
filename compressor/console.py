"""What the command prints beside reports: news, plans, the catalogue."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import compressor.passes  # noqa: F401  # fills the registry
from compressor.plan import Plan
from compressor.records import Record
from compressor.registry import registered
from compressor.setting_words import default_words, nested_records, settings_apart_from, value_words


def say(line: str) -> None:
    """Print one line of news to standard error."""
    print(line, file=sys.stderr, flush=True)


def show_plan(plan: Plan) -> None:
    """Print a plan as a table."""
    table = Table(title=Text(f"Plan of {plan.recipe}"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("step", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for name in ("layers", "param.", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for step in plan.steps:
        needs = f"needs {', '.join(step.needs)} data" if step.needs else ""
        table.add_row(
            step.verb,
            Text("; ".join(filter(None, [step.settings, needs]))),
            str(step.layers),
            f"{step.parameters / 1e6:.1f} M",
            f"{step.macs_per_pair / 1e9:.2f} G",
            "stored" if step.stored else "",
        )
    console = Console(highlight=False)
    console.print(table)
    measured = (
        f"measure {', '.join(plan.measures)} on {', '.join(plan.test_sets)}" if plan.test_sets else "no test data"
    )
    print(f"MACs: multiply-adds of one pair of {plan.tokens_per_pair} tokens. Behind the passes: export; {measured}.")


def show_passes() -> None:
    """Print every pass with its settings, those of nested records too, and what it says of itself."""
    for verb, cls in sorted(registered().items()):
        print(verb)
        base = settings_base(verb)
        own = settings_apart_from(cls, base[1]) if base else list(cls.model_fields)
        _show_settings(cls, own, indent="  ")
        if base:
            print(f"  as in {base[0]}: {', '.join(name for name in cls.model_fields if name not in own)}")
        print(textwrap.indent(inspect.getdoc(cls) or "", "  "), end="\n\n")


def settings_base(verb: str) -> tuple[str, type[Record]] | None:
    """Return the pass whose settings another one has too, so that they are told once: of what trains, `distill`."""
    from compressor.passes.training_pass import TrainingPass

    trains = issubclass(registered()[verb], TrainingPass)
    return ("distill", registered()["distill"]) if trains and verb != "distill" else None


def _show_settings(record: type[Record], names: Iterable[str], indent: str) -> None:
    for name in names:
        field = record.model_fields[name]
        default = default_words(field)
        print(f"{indent}{name}: {value_words(field)}  ({default if default == 'required' else f'default: {default}'})")
        for nested in nested_records(field):
            _show_settings(nested, nested.model_fields, indent + "  ")
