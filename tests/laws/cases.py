"""The table of laws: one row per registered pass. A pass without a row fails `test_every_pass_has_a_row`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class Case:
    """How one pass meets the laws.

    Attributes:
        neutral: settings that must leave scores unchanged.
        active: settings that change the tiny ranker (2 layers, width 16).
        masked: scores of the untouched ranker with the removed parts switched off, for law 7; None with ``no_mask``.
        batch_atol: how far batch mates may move a score after the pass, and the cause.
        export_atol: how far ONNX may be from torch after the pass, and the cause.
    """

    neutral: dict[str, Any]
    active: dict[str, Any]
    masked: Callable[..., np.ndarray] | None = None
    no_mask: str = ""
    batch_atol: tuple[float, str] = (1e-5, "fp32 sums in another order")
    export_atol: tuple[float, str] = (1e-4, "fp32 sums in another order")
    mistyped: dict[str, Any] = field(default_factory=dict)


def without_layers(*dropped: int) -> Callable[..., np.ndarray]:
    """Return a function that scores pairs while skipping whole layers of the module."""

    def scores(ranker: Any, pairs: list[tuple[str, str]]) -> np.ndarray:
        from compressor.algorithms.importance import _batches, _finish

        result = np.empty(len(pairs))
        kept = [index for index in range(len(ranker.spec.layers)) if index not in dropped]
        with torch.inference_mode():
            for rows, layout, values in _batches(ranker, pairs):
                result[rows] = _finish(ranker.module, layout, values, kept)
        return result

    return scores


_INT8 = "one activation scale spans a whole batch: a longer batch widens it, by rounding steps of 1/255 of the range"

CASES = {
    "drop_layers": Case(
        neutral={"keep": [0, 1]},
        active={"keep": [1]},
        masked=without_layers(0),
        mistyped={"keeps": [1]},
    ),
    "quantize": Case(
        neutral={"scheme": "none"},
        active={"scheme": "int8_dynamic"},
        no_mask="rounding removes nothing",
        batch_atol=(0.25, _INT8),
        export_atol=(0.05, "a sum that lands on the other side of a rounding step moves by one step of 1/255"),
        mistyped={"schema": "int8_dynamic"},
    ),
}

# Ordered pairs of passes that are refused, with what the message must say.
FORBIDDEN = {
    ("quantize", "drop_layers"): "put drop_layers before quantize",
    ("quantize", "quantize"): "put quantize before quantize",
}
