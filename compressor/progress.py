"""Progress of long work on standard error: a bar with ETA on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOG_INTERVAL_S = 10.0


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Yield ``advance(n=1)``; shows ``description``, done/total and ETA until the block ends.

    Args:
        description: what is being done, in a few words.
        total: number of steps, or None where it is unknown.
    """
    if sys.stderr.isatty():
        yield from _bar(description, total)
    else:
        yield from _log(description, total)


def _bar(description: str, total: int | None) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("ETA"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)

        def advance(n: int = 1) -> None:
            bar.advance(task, n)

        yield advance


def _log(description: str, total: int | None) -> Iterator[Callable[..., None]]:
    start = last = time.monotonic()
    done = 0

    def advance(n: int = 1) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last < _LOG_INTERVAL_S:
            return
        last = now
        eta = f", ETA {(now - start) / done * (total - done):.0f} s" if total and done else ""
        print(f"{description}: {done}/{total or '?'}{eta}", file=sys.stderr, flush=True)

    yield advance
