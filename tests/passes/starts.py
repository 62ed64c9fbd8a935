"""Checkpoints for students to start from, and what a start makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from compressor.families import stock_checkpoint
from compressor.passes.start_from import StartFrom
from compressor.ranker.ranker import Ranker
from tests import tiny
from tests.passes.students import supply_for

OTHER = tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 3)


def other_ranker() -> Ranker:
    """Return a cross-encoder of three layers; the tiny teacher has two."""
    return tiny.build_ranker(OTHER, seed=5)


def other_checkpoint(folder: Path) -> Path:
    """Save it as a stock checkpoint."""
    stock_checkpoint(other_ranker(), folder)
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite a checkpoint's tensors."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without_head(folder: Path) -> Path:
    """Take a BERT checkpoint's classifier away; its pooler stays."""
    change_tensors(folder, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("classifier")})
    return folder


def other_words(folder: Path) -> None:
    """Exchange two words of a checkpoint's vocabulary."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["dog"], words["door"] = words["door"], words["dog"]
    path.write_text(json.dumps(tokenizer))


def started(teacher: Ranker, reference: Path | str, seed: int = 12, **settings: Any) -> tuple[Ranker, dict[str, Any]]:
    """Return what start_from makes of a checkpoint, checked against its plan, and its notes."""
    step = StartFrom.model_validate({"checkpoint": str(reference), **settings})
    planned = step.plan(teacher.spec)
    supply = supply_for(step, None, teacher, seed=seed)
    result = step.apply(teacher, supply)
    assert result.spec == planned
    return result, supply.notes
