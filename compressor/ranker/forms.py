"""Other forms for some linears of a shape, and token rules behind some layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.ranker.cost import linears_of
from compressor.ranker.spec import LinearForm, LinearSpec, RankerSpec, TokenRule
from compressor.records import Record


def layer_linears(spec: RankerSpec) -> dict[str, LinearSpec]:
    """Return the linears of all layers by name, those of exits not among them."""
    return {name: one for name, one in linears_of(spec.without_exits()) if name.startswith("layers.")}


def with_forms(spec: RankerSpec, forms: Mapping[str, LinearForm]) -> RankerSpec:
    """Return a spec in which some linears have other forms.

    Args:
        spec: the shape.
        forms: by name: ``layers.3.ffn.down``.
    """
    return _changed(spec, "", forms)


def with_token_rules(spec: RankerSpec, rules: Mapping[int, TokenRule | None]) -> RankerSpec:
    """Return a spec with these rules, or with none, behind their layers; others stay."""
    layers = [
        layer.changed(token_rule=rules[index]) if index in rules else layer for index, layer in enumerate(spec.layers)
    ]
    return spec.changed(layers=tuple(layers))


def _changed(part: Any, name: str, forms: Mapping[str, LinearForm]) -> Any:
    if name in forms:
        return part.changed(form=forms[name])
    if not any(each.startswith(name) for each in forms):
        return part
    if isinstance(part, tuple):
        return tuple(_changed(each, f"{name}{place}.", forms) for place, each in enumerate(part))
    if not isinstance(part, Record):
        return part
    inner = {kind: _changed(value, _inside(name, kind, value), forms) for kind, value in part}
    changes = {kind: value for kind, value in inner.items() if value is not getattr(part, kind)}
    return part.changed(**changes) if changes else part


def _inside(name: str, kind: str, value: Any) -> str:
    """Return the name of a field; what holds others ends in a dot, so that it is the beginning of theirs."""
    return f"{name}{kind}" if isinstance(value, LinearSpec) else f"{name}{kind}."
