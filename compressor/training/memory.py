"""Memory of a process that trains on a CPU: what it frees it keeps, and in large pieces."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_PAD_BYTES = 2**28
_PRIMITIVES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_PRIMITIVES_OF_A_STEP = 64  # forward and backward, attention in some groups of rows


@contextmanager
def memory_of_training(*, on_cpu: bool) -> Iterator[None]:
    """Keep freed memory and few compiled products within the block, on a CPU, and give memory back behind it."""
    if not on_cpu:
        yield
        return
    keep_few_primitives()
    keep_freed_memory()
    try:
        yield
    finally:
        give_freed_memory_back()


def keep_freed_memory() -> None:
    """Have glibc keep what is freed; nothing happens on other systems.

    A training step on a CPU takes and frees gigabytes in tensors of megabytes. By default each comes from the kernel
    and goes back to it, so that pages are cleared and mapped again, step after step. The process stays as large as its
    steps make it until `give_freed_memory_back`. Settings that the user made in the environment stay as they are.
    """
    if sys.platform != "linux" or any(
        "malloc" in os.environ.get(name, "") for name in ("GLIBC_TUNABLES", "LD_PRELOAD")
    ):
        return
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, _PAD_BYTES)


def give_freed_memory_back() -> None:
    """Have glibc give to the kernel what is free, wherever it lies; nothing happens on other systems."""
    if sys.platform == "linux" and (trim := _glibc("malloc_trim")):
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    try:
        return cast("Callable[..., int]", getattr(ctypes.CDLL("libc.so.6"), name))
    except (OSError, AttributeError):  # another C library
        return None


def keep_few_primitives() -> None:
    """Have oneDNN, which computes products in bf16, keep about as many compiled products as a step asks for.

    Each step has another number of tokens. By default a thousand compiled products that nobody asks for again lie
    between what is freed, and the search for room takes a quarter of the time. A user's own number stays; oneDNN reads
    it at the first product of a process.
    """
    os.environ.setdefault(_PRIMITIVES, str(_PRIMITIVES_OF_A_STEP))
