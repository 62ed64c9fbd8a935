"""Names of weights and modules: ``layers.3.ffn.down.weight``."""

from __future__ import annotations

import re
from collections.abc import Mapping


def renumbered(name: str, places: Mapping[int, int]) -> str | None:
    """Return a name with its layer's new number; None where that layer is gone. Names of no layer stay.

    Args:
        name: of a weight or a module.
        places: the new number of each layer that stays.
    """
    match = re.match(r"layers\.(\d+)(?=\.)", name)
    if match is None:
        return name
    place = places.get(int(match[1]))
    return None if place is None else f"layers.{place}{name[match.end() :]}"
