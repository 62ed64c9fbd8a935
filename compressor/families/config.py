"""Reads fields of a checkpoint's ``config.json``, collecting all that is wrong before anything is raised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import Fault
from compressor.ranker.spec import Activation

# transformers' names; `gelu_new`, `gelu_fast` and `gelu_pytorch_tanh` are one formula.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh",
}  # fmt: skip


def stock_activation(name: Activation) -> str:
    """Return transformers' name of an activation."""
    return "gelu_pytorch_tanh" if name == "gelu_tanh" else name


class Config:
    """Fields of a config with transformers' defaults. A wrong value is noted in ``faults`` and its default returned."""

    def __init__(self, values: Mapping[str, Any], source: Path) -> None:
        self.values = values
        self.source = source
        self.faults: list[Fault] = []

    def integer(self, name: str, default: int, *, least: int = 1) -> int:
        """Return a whole number of at least ``least``."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            return self.fault(name, f"a whole number from {least}", default)
        return value

    def number(self, name: str, default: float) -> float:
        """Return a positive number."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            return self.fault(name, "a positive number", default)
        return float(value)

    def share(self, name: str, default: float) -> float:
        """Return a dropout share, 0 to below 1."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            return self.fault(name, "a share from 0 to below 1", default)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self.values.get(name)
        if value is None:
            return default
        return value if isinstance(value, bool) else self.fault(name, "true or false", default)

    def activation(self, name: str, default: str = "gelu") -> Activation:
        """Return the activation that a name of transformers stands for."""
        value = self.values.get(name)
        if value is None:
            return ACTIVATIONS[default]
        if value not in ACTIVATIONS:
            return self.fault(name, ", ".join(ACTIVATIONS), ACTIVATIONS[default])
        return ACTIVATIONS[value]

    def head_width(self, width: int, heads: int, name: str) -> int:
        """Return the width of one head."""
        if width % heads:
            self.fault(name, f"a divisor of the width {width}", None)
        return max(1, width // heads)

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse a field whose value is set and not among those that the canonical encoder computes."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            self.fault(name, " or ".join(map(repr, allowed)), None)

    def fault(self, name: str, allowed: str, default: Any = None) -> Any:
        """Note a wrong field and return ``default``."""
        self.faults.append(Fault(source=self.source, where=name, found=repr(self.values.get(name)), allowed=allowed))
        return default
