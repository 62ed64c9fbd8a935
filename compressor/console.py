"""What the command prints beside reports: news, plans, the catalogue."""

from __future__ import annotations

import inspect
import sys
import textwrap
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import compressor.passes  # noqa: F401  # fills the registry
from compressor.plan import Plan
from compressor.records import Record
from compressor.registry import registered


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
        _show_settings(cls, indent="  ")
        print(textwrap.indent(inspect.getdoc(cls) or "", "  "), end="\n\n")


def _show_settings(record: type[Record], indent: str) -> None:
    hints = get_type_hints(record)
    for name, field in record.model_fields.items():
        default = "required" if field.is_required() else f"default: {field.get_default()!r}"
        print(f"{indent}{name}: {_readable(hints[name])}  ({default})")
        for nested in filter(_is_record, get_args(hints[name])):
            _show_settings(nested, indent + "  ")


def _readable(hint: Any) -> str:
    """Return a type as a recipe's author would say it: ``a list of int or 'every_other' or {layers, n_pairs}``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_readable, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return f"a list of {_readable(arguments[0])}"
    if _is_record(hint):
        return f"{{{', '.join(hint.model_fields)}}}"
    return "nothing" if hint is NoneType else str(hint.__name__)


def _is_record(hint: Any) -> TypeGuard[type[Record]]:
    return isinstance(hint, type) and issubclass(hint, Record)
