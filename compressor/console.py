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
        own, others = own_settings(verb)
        _show_settings(cls, own, indent="  ")
        for other, names in others.items():
            print(f"  as in {other}: {', '.join(names)}")
        print(textwrap.indent(inspect.getdoc(cls) or "", "  "), end="\n\n")


def own_settings(verb: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the settings to tell of a pass, and those to tell of others: verb → what it has just as that one.

    What all trainings have is told of `distill`, what all factorizations have of `factorize`.
    """
    from compressor.passes.factorize import FactorSettings
    from compressor.passes.training_pass import TrainingPass

    record, others = registered()[verb], {}
    own = list(record.model_fields)
    for other, kind in (("distill", TrainingPass), ("factorize", FactorSettings)):
        if issubclass(record, kind) and verb != other:
            apart = settings_apart_from(record, registered()[other])
            others[other] = [name for name in own if name not in apart]
            own = [name for name in own if name in apart]
    return own, others


def _show_settings(record: type[Record], names: Iterable[str], indent: str) -> None:
    for name in names:
        field = record.model_fields[name]
        default = default_words(field)
        print(f"{indent}{name}: {value_words(field)}  ({default if default == 'required' else f'default: {default}'})")
        for nested in nested_records(field):
            _show_settings(nested, nested.model_fields, indent + "  ")
