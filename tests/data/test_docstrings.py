"""What of a docstring is question, what is passage, and what is neither."""

from __future__ import annotations

import pytest

from compressor.data.docstrings import MAX_PASSAGE_CHARACTERS, docstrings, passages

PROSE = (
    "The tide is computed from the positions of moon and sun, so that harbors far from the open sea need a correction "
    "by hand, which the table of the harbor office gives for every month of the year."
)
SOURCE = f'''
"""Tables of the tides of all harbors.

{PROSE}
"""

class Harbor:
    """A harbor with an office.

    One paragraph too short.
    """

    def tide(self):
        """Return the :func:`height` of the ``tide`` now.

        {PROSE.replace("tide", "flood")}

        Parameters
        ----------
        self : Harbor
            Is not a part of the passage.

        >>> Harbor().tide()
        3

        .. deprecated:: 1.0
           Use a boat.
        """
        def inner():
            """Functions inside functions are left out.

            {PROSE}
            """

if True:
    async def wait(): "No second paragraph, no pair."
'''


def test_docstrings_of_modules_classes_and_functions_are_found_in_order():
    assert [item.name for item in docstrings(SOURCE, "sea")] == ["sea", "sea.Harbor", "sea.Harbor.tide"]


def test_summary_and_passage_are_freed_of_markup():
    module, tide = passages(docstrings(SOURCE, "sea"))
    assert (module.summary, module.text) == ("Tables of the tides of all harbors.", PROSE)
    assert tide.summary == "Return the height of the tide now."
    assert tide.text == PROSE.replace("tide", "flood")


@pytest.mark.parametrize("source", ["def f(:", "\0", "x = '\\d'", ""])
def test_sources_without_docstrings_or_sense_yield_nothing(source):
    assert list(docstrings(source, "m")) == []


def pair(summary: str, *paragraphs: str) -> str:
    body = "\n\n".join((summary, *paragraphs))
    return f'def f():\n    r"""{body}\n    """\n'


@pytest.mark.parametrize(
    "source",
    [
        pair("Too short.", PROSE),
        pair("f(x, y, *, out=None) and more", PROSE),
        pair("See https://example.org for all of this", PROSE),
        pair("Long " * 41, PROSE),
        pair("A summary of enough words.", "Parameters\n----------\n" + PROSE),
        pair("A summary of enough words.", "Args:\n    x: " + PROSE),
        pair("A summary of enough words.", "Returns: " + PROSE),
        pair("Parameters", "A summary of enough words.", PROSE),
        pair("A summary of enough words.", "x : int " + PROSE),
        pair("A summary of enough words.", ">>> " + PROSE),
        pair("A summary of enough words.", "A summary of enough words. " * 20),
        pair("1 2 3 4 5 6", PROSE),
    ],
)
def test_what_makes_no_pair(source):
    assert passages(docstrings(source, "m")) == []


def test_the_summary_is_cut_out_of_the_passage():
    (found,) = passages(docstrings(pair("Compute the tide at noon.", f"Compute the TIDE\n  at noon. {PROSE}"), "m"))
    assert found.text == f". {PROSE}"


def test_a_heading_of_prose_goes_and_its_prose_stays():
    (found,) = passages(
        docstrings(pair("A summary of enough words.", f"Notes\n-----\n{PROSE}\nReturns:\n    a tide"), "m")
    )
    assert found.text == PROSE


def test_long_passages_end_at_a_word():
    (found,) = passages(docstrings(pair("A summary of enough words.", "abcdefg " * 200), "m"))
    assert len(found.text) <= MAX_PASSAGE_CHARACTERS
    assert found.text.endswith("abcdefg")


def test_paragraphs_that_recur_are_boilerplate():
    license_text = "This file is licensed under the terms of the harbor office."
    sources = [
        pair(f"The number {n} of all {word}.", license_text, f"{word} " + PROSE)
        for n, word in enumerate(["ships", "boats", "rafts"])
    ]
    found = [passage for n, source in enumerate(sources) for passage in docstrings(source, f"m{n}")]
    kept = passages(found)
    assert len(kept) == 3
    assert not any("licensed" in passage.text for passage in kept)


def test_of_equal_summaries_and_of_one_template_the_first_stays():
    sources = [
        pair("Return the tide of today.", PROSE),
        pair("Return the Tide of today!", "Other words. " + PROSE),
        pair("Return the flood of today.", PROSE + " And more."),
        pair("Return the water2 of today.", "Different from the start. " + PROSE),
    ]
    found = [item for n, source in enumerate(sources) for item in docstrings(source, f"m{n}")]
    assert [passage.name for passage in passages(found)] == ["m0.f", "m3.f"]
