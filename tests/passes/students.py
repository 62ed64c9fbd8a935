"""Tiny students of a tiny teacher, and what a training pass is given."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.data import RankingData
from compressor.passes import Pass, Supply
from compressor.passes.distill import Distill
from compressor.passes.drop_layers import DropLayers
from compressor.ranker.history import StageRecord
from compressor.ranker.ranker import Ranker
from compressor.training.objective import Objective

QUICK: dict[str, Any] = {
    "epochs": 15, "learning_rate": 1e-2, "lists": {"list_size": 4}, "lists_per_step": 3, "precision": "fp32",
}  # fmt: skip


def cut(teacher: Ranker, kept: list[int]) -> Ranker:
    """Return the teacher's kept layers, with the history that the pipeline would write."""
    step = DropLayers(keep=tuple(kept), compensate="none")
    record = StageRecord(verb="drop_layers", settings=step.model_dump(mode="json"), notes={"kept_layers": kept})
    student = step.apply(teacher, supply_for(step, None, teacher))
    return student.changed(history=(*teacher.history, record))


def supply_for(step: Pass, data: RankingData | None, teacher: Ranker, **changes: Any) -> Supply:
    """Return what the pipeline would give a pass; every need is served by the same data."""

    def load(need: str) -> RankingData:
        assert data is not None, f"nothing should ask for {need} data"
        return data

    scratch = Path("scratch") / uuid.uuid4().hex  # tests run in a folder of their own
    supply = Supply(granted=step.needs(), load=load, seed=12, scratch=scratch, load_teacher=lambda: teacher)
    return replace(supply, **changes)


def applied(step: Pass, ranker: Ranker, data: RankingData | None = None, notes: dict[str, Any] | None = None) -> Ranker:
    """Return what a pass makes of a ranker, planned first, as the pipeline does; ``notes`` takes what it recorded."""
    step.plan(ranker.spec)
    supply = supply_for(step, data, ranker)
    result = step.apply(ranker, supply)
    if notes is not None:
        notes.update(supply.notes)
    return result


def distilled(
    student: Ranker,
    teacher: Ranker,
    data: RankingData,
    on_supply: Callable[[Supply], None] | None = None,
    **settings: Any,
) -> Ranker:
    """Return the student after a quick distillation; ``on_supply`` sees notes and curves."""
    step = Distill.model_validate({**QUICK, **settings})
    step.plan(student.spec)
    supply = supply_for(step, data, teacher)
    result = step.apply(student, supply)
    if on_supply:
        on_supply(supply)
    return result


def unlabelled(data: RankingData) -> RankingData:
    """Return the data without judgments."""
    return replace(data, qrels={})


def score_rmse(ranker: Ranker, teacher: Ranker, data: RankingData) -> float:
    """Return how far the ranker's scores of all candidates are from the teacher's."""
    pairs = data.texts(data.pairs())
    return float(np.sqrt(np.square(ranker.score(pairs) - teacher.score(pairs)).mean()))


class KilledError(Exception):
    """A training that was cut off."""


def check_exact_resume(
    step: Pass,
    student: Ranker,
    teacher: Ranker,
    data: RankingData,
    monkeypatch: Any,
    *,
    call: int,
    kind: Any = Objective,
) -> None:
    """Check that a training killed in one call of its losses, and started again, ends as an unbroken one does."""
    whole = supply_for(step, data, teacher)
    expected = step.apply(student, whole)
    compute, calls = kind.__call__, 0

    def killing(self: Any, module: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KilledError
        return compute(self, module, batch)

    supply = supply_for(step, data, teacher)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "__call__", killing)
        with pytest.raises(KilledError):
            step.apply(student, supply)
    resumed = step.apply(student, supply)
    assert resumed.fingerprint == expected.fingerprint
    assert supply.curves == whole.curves
