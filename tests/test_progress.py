"""Progress goes to standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import io
import sys

import pytest

from compressor import progress as module
from compressor.progress import progress


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_log_gets_a_line_every_ten_seconds(clock, capsys):
    with progress("Scoring", 100) as advance:
        for _ in range(50):
            clock.now += 1
            advance(2)
    assert capsys.readouterr().err.splitlines() == [
        "Scoring: 20/100, ETA 40 s",
        "Scoring: 40/100, ETA 30 s",
        "Scoring: 60/100, ETA 20 s",
        "Scoring: 80/100, ETA 10 s",
        "Scoring: 100/100, ETA 0 s",
    ]


def test_short_work_says_nothing_in_a_log(clock, capsys):
    with progress("Scoring", 3) as advance:
        for _ in range(3):
            clock.now += 3
            advance()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [None, 0])
def test_unknown_totals_have_no_eta(clock, capsys, total):
    with progress("Reading", total) as advance:
        clock.now += 11
        advance(5)
    assert capsys.readouterr().err == "Reading: 5/?\n"


def test_nothing_done_yet_has_no_eta(clock, capsys):
    with progress("Reading", 9) as advance:
        clock.now += 11
        advance(0)
    assert capsys.readouterr().err == "Reading: 0/9\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("total", [5, None])
def test_a_terminal_gets_a_bar_that_vanishes(monkeypatch, total):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name in ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress("Scoring", total) as advance:
        for _ in range(5):
            advance()
    written = terminal.getvalue()
    assert "Scoring" in written
    assert ("5/5" in written) is (total == 5)
    assert written.endswith("\x1b[2K")  # the line is cleared when the work is done


@pytest.mark.parametrize("is_terminal", [False, True])
def test_errors_inside_pass_through(monkeypatch, is_terminal):
    monkeypatch.setattr(sys, "stderr", Terminal() if is_terminal else io.StringIO())
    with pytest.raises(KeyError, match="inside"), progress("Scoring", 2):
        raise KeyError("inside")
