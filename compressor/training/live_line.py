"""What a training shows while it runs: step, loss, dev metric, pairs a second, ETA."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

_LOG_INTERVAL_S = 10.0


@dataclass(kw_only=True)
class Speed:
    """Pairs a second, the first steps left out: they warm caches up."""

    warm_up_steps: int = 2
    _steps: int = 0
    _pairs: int = 0
    _start: float = field(default_factory=time.perf_counter)
    _paused: float = 0.0

    def add(self, n_pairs: int) -> None:
        """Count a step that has ended."""
        self._steps += 1
        if self._steps <= self.warm_up_steps:
            self._start, self._paused = time.perf_counter(), 0.0
        else:
            self._pairs += n_pairs

    def leave_out(self, seconds: float) -> None:
        """Take time out that was no training, such as an evaluation."""
        self._paused += seconds

    @property
    def pairs_per_s(self) -> float:
        """The speed so far; 0 before there is one."""
        seconds = time.perf_counter() - self._start - self._paused
        return self._pairs / seconds if self._pairs and seconds > 0 else 0.0


class Show(Protocol):
    """Shows where a training stands."""

    def __call__(self, step: int, loss: float, dev: str, pairs_per_s: float) -> None: ...


@contextmanager
def live_line(n_steps: int, first_step: int, *, is_shown: bool = True) -> Iterator[Show]:
    """Yield a function that shows progress: a bar on a terminal, a line every few seconds in a log.

    Args:
        n_steps: steps of the whole training.
        first_step: steps that an earlier run has done.
        is_shown: whether this process shows anything; of several, one does.
    """
    if not is_shown:
        yield lambda step, loss, dev, pairs_per_s: None
    elif sys.stderr.isatty():
        yield from _bar(n_steps, first_step)
    else:
        yield from _log(n_steps, first_step)


def _text(loss: float, dev: str, pairs_per_s: float) -> str:
    return f"loss {loss:.4f}{', ' + dev if dev else ''}, {pairs_per_s:.1f} pairs/s"


def _bar(n_steps: int, first_step: int) -> Iterator[Show]:
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
        TextColumn("Training"), BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}"),
        TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=n_steps, completed=first_step)

        def show(step: int, loss: float, dev: str, pairs_per_s: float) -> None:
            bar.update(task, completed=step, description=_text(loss, dev, pairs_per_s))

        yield show


def _log(n_steps: int, first_step: int) -> Iterator[Show]:
    start = last = time.monotonic()

    def show(step: int, loss: float, dev: str, pairs_per_s: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _LOG_INTERVAL_S and step < n_steps:
            return
        last = now
        eta = (now - start) / max(1, step - first_step) * (n_steps - step)
        line = f"Training: step {step}/{n_steps}, {_text(loss, dev, pairs_per_s)}, ETA {eta:.0f} s"
        print(line, file=sys.stderr, flush=True)

    yield show
