"""Refresh the generated blocks of these pages: ``python docs/reference_pages.py``, or ``make docs``.

Pages are written by hand. What stands between ``<!-- generated: NAME ARGUMENT -->`` and ``<!-- end -->`` is made from
the records themselves, and a test fails where it is stale. A pass without a page gets one to fill in.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import compressor.passes  # noqa: F401  # fills the registry
from compressor.console import own_settings
from compressor.data_reference import DataReference
from compressor.gate_settings import BenchSettings, GateSettings
from compressor.recipe import DataSection, ExportSettings, Recipe
from compressor.records import Record
from compressor.registry import registered
from compressor.setting_words import (
    default_of,
    default_words,
    nested_records,
    prose_and_settings,
    value_words,
)  # fmt: skip

DOCS = Path(__file__).resolve().parent
SECTIONS = ("When it pays", "What it costs", "Measured")  # what only a person can write of a pass
_OF_RECIPES = (Recipe, DataSection, DataReference, ExportSettings, BenchSettings, GateSettings)
RECORDS: dict[str, type[Record]] = {one.__name__: one for one in _OF_RECIPES}
_SECTIONS_OF_RECIPES = ("data", "export", "bench", "gate")
_BLOCK = re.compile(r"(<!-- generated: (\w+)(?: (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)
_ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")
_LONG_DEFAULT = 60


def main() -> None:
    """Write all pages whose generated blocks changed, and say which."""
    for path, text in pages():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(DOCS.parent)}", file=sys.stderr)


def pages() -> Iterator[tuple[Path, str]]:
    """Yield every page with its generated blocks made anew."""
    for verb in registered():
        path = pass_page(verb)
        if not path.exists():
            yield path, refreshed(_empty_page(verb), path)
    for path in sorted(DOCS.rglob("*.md")):
        yield path, refreshed(path.read_text(encoding="utf-8"), path)


def pass_page(verb: str) -> Path:
    """Return the page of a pass."""
    return DOCS / "passes" / f"{verb}.md"


def refreshed(text: str, path: Path) -> str:
    """Return a page's text with its generated blocks made anew."""

    def block(found: re.Match[str]) -> str:
        opening, name, argument, closing = found.groups()
        return f"{opening}{_BLOCKS[name](argument, path)}\n{closing}"

    return _BLOCK.sub(block, text)


def papers(record: type[Record]) -> list[str]:
    """Return the arXiv numbers that a pass names, in its docstring and those of its own settings."""
    return list(dict.fromkeys(number for text in _docstrings(record) for number in _ARXIV.findall(text)))


def _docstrings(record: type[Record]) -> Iterator[str]:
    yield inspect.getdoc(record) or ""
    verb = getattr(record, "verb", "")
    for name in own_settings(verb)[0] if verb else record.model_fields:
        for nested in nested_records(record.model_fields[name]):
            yield from _docstrings(nested)


def _what(verb: str, path: Path) -> str:
    prose, _ = prose_and_settings(registered()[verb])
    return _markdown(prose, path)


def _settings(verb: str, path: Path) -> str:
    own, others = own_settings(verb)
    parts = [_table(registered()[verb], own, path)] if own else []
    if others:
        links = " and ".join(f"[`{other}`]({other}.md#settings)" for other in others)
        parts.append(f"All other settings are those of {links}.")
    return "\n\n".join(parts)


def _record(name: str, path: Path) -> str:
    record = RECORDS[name]
    prose, _ = prose_and_settings(record)
    names = [one for one in record.model_fields if (name, one) != ("Recipe", "passes")]
    deep = name not in ("Recipe", "DataSection")  # their parts have sections of their own
    return f"{_markdown(prose, path)}\n\n{_table(record, names, path, deep=deep)}"


def _papers(verb: str, path: Path) -> str:
    found = papers(registered()[verb])
    return "\n".join(f"- [arXiv {one}](https://arxiv.org/abs/{one})" for one in found) or "None is named."


def _catalogue(_: str, path: Path) -> str:
    lines = ["| pass | what it does |", "| --- | --- |"]
    for verb, record in sorted(registered().items()):
        first = (inspect.getdoc(record) or "").split("\n\n")[0]
        place = pass_page(verb).relative_to(path.parent).as_posix()
        lines.append(f"| [`{verb}`]({place}) | {_cell(_markdown(first, path, linked=False))} |")
    return "\n".join(lines)


def _file(name: str, path: Path) -> str:
    return f"```yaml\n{(path.parent / name).read_text(encoding='utf-8').rstrip()}\n```"


_BLOCKS: dict[str, Callable[[str, Path], str]] = {
    "what": _what, "settings": _settings, "record": _record, "papers": _papers, "catalogue": _catalogue, "file": _file,
}  # fmt: skip


def _table(record: type[Record], names: list[str], path: Path, *, deep: bool = True) -> str:
    rows: dict[str, list[str]] = {}
    for name, *cells in _rows(record, names, "", path, deep):
        if name in rows:  # the same key in two records of a union: what it may be there, too
            rows[name] = [_joined(*both) for both in zip(rows[name], cells, strict=True)]
        else:
            rows[name] = cells
    lines = ["| setting | value | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{name}` | {' | '.join(map(_cell, cells))} |" for name, cells in rows.items()]
    return "\n".join(lines)


def _joined(one: str, other: str) -> str:
    return one if other in one else f"{one}; or {other}" if one else other


def _rows(record: type[Record], names: list[str], prefix: str, path: Path, deep: bool) -> Iterator[tuple[str, ...]]:
    _, told = prose_and_settings(record)
    for name in names:
        field = record.model_fields[name]
        inner = nested_records(field)
        said = _markdown(told.get(name, ""), path)
        if not said and inner:
            said = " ".join(_markdown(prose_and_settings(one)[0], path) for one in inner)
        value = re.sub(r"\{[\w, ]+\}", r"`\g<0>`", value_words(field, quote=lambda word: f"`{word}`"))
        if inner and not deep:
            value = re.sub(r"`\{.*?\}`", "mappings" if value.startswith("list of") else "mapping", value)
            section = name if name in _SECTIONS_OF_RECIPES else "a data reference"
            said = f"see [{section}](#{section.replace(' ', '-')})"
        key = f"{prefix}{name}" + ("[]" if value.startswith("list of `{") else "")
        yield key, value, _default(record, name, inner), said
        for one in inner if deep else ():
            yield from _rows(one, list(one.model_fields), f"{key}.", path, deep)


def _default(record: type[Record], name: str, inner: list[type[Record]]) -> str:
    field = record.model_fields[name]
    text = default_words(field)
    if text in ("required", "nothing"):
        return text
    below = inner and default_of(field) == _plain_default(inner[0])
    return "as below" if below or (inner and len(text) > _LONG_DEFAULT) else f"`{text}`"


def _plain_default(record: type[Record]) -> object:
    fields = record.model_fields.values()
    if any(field.is_required() for field in fields):
        return None
    found = {name: default_of(field) for name, field in record.model_fields.items()}
    return {name: value for name, value in found.items() if value is not None}


def _markdown(text: str, path: Path, *, linked: bool = True) -> str:
    """Turn a docstring into Markdown: papers become links, and so do passes outside of their own pages."""
    text = text.replace("``", "\0")
    if linked:
        for verb in registered():
            if pass_page(verb) != path:
                place = ("" if path.parent.name == "passes" else "passes/") + f"{verb}.md"
                text = text.replace(f"`{verb}`", f"[\0{verb}\0]({place})")
        text = re.sub(r"arXiv\s+(\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return text.replace("\0", "`")


def _cell(text: str) -> str:
    """Put a paragraph into a table's cell; what stood in a line of its own behind ``a value:`` still does."""
    text = re.sub(r"\n(?=`[^`\n]+`(?:, `[^`\n]+`)*:\s)", "<br>", text.strip())
    return " ".join(text.split()).replace("|", "\\|")


def _empty_page(verb: str) -> str:
    blocks = [f"# {verb}", f"<!-- generated: what {verb} -->\n<!-- end -->"]
    blocks += [f"## {title}\nTo be written." for title in SECTIONS]
    blocks += [f"## Settings\n<!-- generated: settings {verb} -->\n<!-- end -->",
               f"## Papers\n<!-- generated: papers {verb} -->\n<!-- end -->"]  # fmt: skip
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    main()
