"""What is printed beside reports: the plan and the catalogue of passes, whole at 80 columns."""

from __future__ import annotations

import compressor.passes  # noqa: F401  # fills the registry
from compressor.console import say, show_passes, show_plan
from compressor.plan import Plan, PlanStep
from compressor.registry import registered

STEPS = (
    PlanStep(verb="teacher", settings="path/to/[a] teacher", layers=12, parameters=33_360_000, macs_per_pair=2 * 10**9),
    PlanStep(
        verb="drop_layers",
        settings="keep: {layers: 6, n_pairs: 256}",
        layers=6,
        parameters=22_700_000,
        macs_per_pair=10**9,
        needs=("calibration",),
        stored=True,
    ),
)


def plan(**changes):
    fields = {
        "recipe": "[r]",
        "tokens_per_pair": 128,
        "steps": STEPS,
        "measures": ("nDCG@10",),
        "test_sets": ("a/test",),
    }
    return Plan(**{**fields, **changes})


def test_a_plan_is_whole_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show_plan(plan())
    text = capsys.readouterr().out
    assert "…" not in text
    for word in ("[r]", "[a] teacher", "drop_layers", "33.4 M", "22.7 M", "1.00 G", "calibration", "stored"):
        assert word in text, word
    assert "one pair of 128 tokens" in text
    assert text.rstrip().endswith("export; measure nDCG@10 on a/test.")


def test_a_plan_without_test_data_says_so(capsys):
    show_plan(plan(test_sets=()))
    assert "export; no test data." in capsys.readouterr().out


def test_the_catalogue_shows_every_setting_in_words(capsys):
    show_passes()
    text = capsys.readouterr().out
    for verb, cls in registered().items():
        assert f"\n{verb}\n" in f"\n{text}"
        assert all(f"  {name}: " in text for name in cls.model_fields)
    assert "keep: list of whole numbers from 0 or 'every_other' or {layers, n_pairs}  (required)" in text
    assert "    n_pairs: whole number from 1  (default: 256)" in text, "settings of nested records are shown too"
    assert "  as in distill: epochs, max_pairs, " in text, "what all trainings have is told once"
    assert "scheme: 'int8_dynamic' or 'int8_static' or 'int8_blocks'" in text
    for noise in ("typing", "compressor.", "Annotated", "NoneType"):
        assert noise not in text


def test_news_goes_to_standard_error(capsys):
    say("a line")
    assert capsys.readouterr() == ("", "a line\n")
