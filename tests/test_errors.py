"""Errors read as one sentence: place, found, allowed, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.errors import (
    EXIT_BAD_INPUT,
    EXIT_GATE_FAILED,
    EXIT_PASS,
    EXIT_RUN_FAILED,
    EXIT_UNDECIDED,
    Fault,
    InputError,
    RankpressError,
    RunError,
    suggest,
)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(source=Path("a.yaml"), found="no such file"), "a.yaml: found no such file"),
        (Fault(source="a.yaml", where="passes.0", found="3"), "a.yaml: passes.0: found 3"),
        (Fault(source="a", found="x", allowed="y"), "a: found x; allowed: y"),
        (Fault(source="a", found="x", fix="write z"), "a: found x; write z"),
        (
            Fault(source="a", where="line 2", found="x", allowed="y", fix="write z"),
            "a: line 2: found x; allowed: y; write z",
        ),
    ],
)
def test_fault_reads_as_one_line(fault, text):
    assert str(fault) == text


def test_input_error_tells_all_faults():
    faults = [Fault(source="a", found="x"), Fault(source="b", found="y")]
    error = InputError(each for each in faults)
    assert error.faults == faults
    assert str(error) == "a: found x\nb: found y"
    assert InputError(faults[0]).faults == faults[:1]


def test_exit_codes_are_those_of_the_manual():
    assert (EXIT_PASS, EXIT_GATE_FAILED, EXIT_UNDECIDED, EXIT_BAD_INPUT, EXIT_RUN_FAILED) == (0, 1, 2, 3, 4)
    assert InputError([]).exit_code == 3
    assert RunError("NaN").exit_code == 4
    assert issubclass(InputError, RankpressError)
    assert issubclass(RunError, RankpressError)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("distil", "did you mean 'distill'?"),
        ("Distill", "did you mean 'distill'?"),
        ("quantise", "did you mean 'quantize'?"),
        ("drop", "did you mean 'drop_layers'?"),
        ("teacher", ""),
        ("", ""),
    ],
)
def test_suggestion_is_the_nearest_word_or_nothing(found, expected):
    assert suggest(found, ["drop_layers", "distill", "quantize"]) == expected
    assert suggest(found, []) == ""
