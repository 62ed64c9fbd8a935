"""How much memory there is."""

from __future__ import annotations

import os
from pathlib import Path


def memory_bytes() -> int | None:
    """Return the memory of the machine, or of the container where that is less; None where neither is told."""
    found = [one for one in (_physical(), _container_limit()) if one is not None]
    return min(found, default=None)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _container_limit() -> int | None:
    """Return the limit of the control group, version 2 or 1; a number without meaning is more than any machine has."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None
