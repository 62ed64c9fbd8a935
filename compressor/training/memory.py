"""Memory of a process that trains on a CPU: what it frees it keeps, and in large pieces."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_PAD_BYTES = 2**28
_PRIMITIVES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_PRIMITIVES_OF_A_STEP = 64  # forward and backward, attention in some groups of rows


def keep_freed_memory() -> None:
    """Have glibc keep what is freed; nothing happens on other systems.

    A training step on a CPU takes and frees gigabytes in tensors of megabytes. By default each comes from the kernel
    and goes back to it, so that pages are cleared and mapped again, step after step. The process stays as large as its
    largest step. Settings that the user made in the environment stay as they are.
    """
    if sys.platform != "linux" or any(
        "malloc" in os.environ.get(name, "") for name in ("GLIBC_TUNABLES", "LD_PRELOAD")
    ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, _PAD_BYTES)


def keep_few_primitives() -> None:
    """Have oneDNN, which computes products in bf16, keep about as many compiled products as a step asks for.

    Each step has another number of tokens. By default a thousand compiled products that nobody asks for again lie
    between what is freed, and the search for room takes a quarter of the time. A user's own number stays; oneDNN reads
    it at the first product of a process.
    """
    os.environ.setdefault(_PRIMITIVES, str(_PRIMITIVES_OF_A_STEP))
