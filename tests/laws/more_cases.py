"""More rows of the table of laws: settings of a pass that compute something else than its first row's."""

from __future__ import annotations

from typing import Any

from tests.laws.cases import TRAINED, TRAINING, Case

_FLIPS = "a sum that lands on the other side of a rounding step moves by that step"
_ROUNDED: dict[str, Any] = {"neutral": {"scheme": "none"}, "no_mask": "rounding removes nothing"}


def _rounding(batch_atol: float, export_atol: float, **settings: Any) -> Case:
    return Case(
        active=settings, batch_atol=(batch_atol, _FLIPS), export_atol=(export_atol, _FLIPS),
        mistyped={"schema": "int8_static"}, **_ROUNDED,
    )  # fmt: skip


# More rows of a pass, for settings that compute something else; the word behind the verb is a name.
MORE_CASES = {
    "distill lora": Case(
        neutral={"epochs": 0, "adapters": {"kind": "lora"}},
        active={**TRAINING, "losses": {"mse": 1}, "representations": {}, "adapters": {"kind": "lora", "rank": 2}},
        mistyped={"adapter": {"kind": "lora"}},
        **TRAINED,
    ),
    "distill randlora": Case(
        neutral={"epochs": 0, "adapters": {"kind": "randlora"}},
        active={**TRAINING, "losses": {"mse": 1}, "representations": {}, "adapters": {"kind": "randlora", "rank": 4}},
        mistyped={"adapter": {"kind": "randlora"}},
        **TRAINED,
    ),
    "keep_tokens auto": Case(
        neutral={"layers": "auto", "budget": {"macs": 1}},
        active={"layers": "auto", "budget": {"macs": 0.95}, "n_pairs": 16},
        no_mask="weights all stay: tests/passes/test_token_rules.py",
        mistyped={"budgets": {"macs": 0.9}},
    ),
    "keep_tokens learned": Case(
        neutral={"scorer": "learned", "layers": {"middle": 1}},
        active={"scorer": "learned", "layers": {0: 0.5}, "n_pairs": 16},
        no_mask="weights all stay: tests/passes/test_learned_scorer.py",
        mistyped={"score": "learned"},
    ),
    "learn_thresholds learned": Case(
        neutral={**TRAINING, "layers": {"middle": 1}},
        active={**TRAINING, "layers": {0: 0.5}, "n_pairs": 16, "losses": {"mse": 1}, "representations": {}},
        no_mask="weights all stay: tests/passes/test_learn_thresholds.py",
        mistyped={"gate": {}},
    ),
    "pool_tokens auto": Case(
        neutral={"layer": "auto", "stride": "auto", "budget": {"macs": 1}},
        active={"layer": "auto", "stride": "auto", "budget": {"macs": 0.95}, "n_pairs": 16},
        no_mask="weights all stay: tests/passes/test_token_rules.py",
        mistyped={"budgets": {"macs": 0.9}},
    ),
    "quantize int8_static": _rounding(1e-3, 5e-3, scheme="int8_static", observer="entropy", n_pairs=16),
    "quantize int8_blocks": _rounding(1e-3, 5e-3, scheme="int8_blocks", block_size=64),
    "quantize int4_blocks": _rounding(1e-3, 5e-3, scheme="int4_blocks", keep_fp32=(0, "*.ffn.down")),
    "quantize int4 tokens": _rounding(1e-3, 5e-3, scheme="int8_blocks", embeddings="int4"),
    "quantize head": _rounding(1e-3, 5e-3, scheme="int8_static", head=True, n_pairs=16),
    "quantize gptq": _rounding(1e-3, 5e-3, scheme="int4_blocks", rounding="gptq", n_pairs=16),
    "quantize awq": _rounding(1e-3, 5e-3, scheme="int4_blocks", rounding="awq", n_pairs=16),
    "quantize fp16": _rounding(1e-3, 5e-3, scheme="fp16"),
    "quantize keep_within": _rounding(
        1e-3,
        5e-3,
        scheme="int4_blocks",
        keep_within={"max_score_rmse": 0.05, "precision": "int8_blocks", "n_pairs": 48, "candidates": 8},
    ),
}
