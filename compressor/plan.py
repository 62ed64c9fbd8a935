"""A plan: what a recipe will do, known before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PlanStep:
    """One line of a plan.

    Attributes:
        verb: the pass, ``teacher`` for the first line.
        settings: its settings as one line of text.
        layers: layers after it.
        parameters: stored parameters after it.
        macs_per_pair: multiply-adds of one pair of ``Plan.tokens_per_pair`` tokens after it.
        needs: the data that it calls for.
        stored: whether its result lies in the stage cache already.
    """

    verb: str
    settings: str
    layers: int
    parameters: int
    macs_per_pair: int
    needs: tuple[str, ...] = ()
    stored: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All steps of a recipe, the teacher first."""

    recipe: str
    tokens_per_pair: int
    steps: tuple[PlanStep, ...]
    measures: tuple[str, ...]
    test_sets: tuple[str, ...]
