"""The verbs of the recipe language: which pass class stands behind which name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from compressor.records import Record

P = TypeVar("P", bound=type[Record])

_PASSES: dict[str, type[Record]] = {}


def register(verb: str) -> Callable[[P], P]:
    """Register a pass class under its recipe verb; a verb can be taken once."""

    def decorate(cls: P) -> P:
        if verb in _PASSES:
            raise ValueError(f"the verb {verb!r} is taken by {_PASSES[verb].__name__}")
        _PASSES[verb] = cls
        cls.verb = verb  # type: ignore[attr-defined]  # every pass class declares `verb: ClassVar[str]`
        return cls

    return decorate


def registered() -> Mapping[str, type[Record]]:
    """Return all passes by verb; filled by importing `compressor.passes`."""
    return MappingProxyType(_PASSES)
