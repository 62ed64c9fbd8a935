"""The table of laws: one row per registered pass. A pass without a row fails `test_every_pass_has_a_row`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.laws.masked import at_exit, with_first_neurons, with_largest_widths, with_most_active, without_layers


@dataclass(frozen=True, kw_only=True)
class Case:
    """How one pass meets the laws.

    Attributes:
        neutral: settings that must leave scores unchanged.
        active: settings that change the tiny ranker (2 layers, width 16).
        again: settings that make sense after ``active``, where the neutral ones do not, and after a pass that takes
            layers away, where ``active`` does not.
        ranker: another ranker of 2 layers and width 16, where it makes no sense on the tiny one, whose norms stand
            behind its blocks.
        behind: a pass whose active setting comes first, where this one makes no sense without it.
        no_change: why even the active settings leave scores alone, for law 2.
        exact_atol: how far rounding may move scores then, and the cause.
        no_promise: why the pass promises nothing, for law 5.
        masked: scores of the untouched ranker with the removed parts switched off, for law 7; None with ``no_mask``.
        batch_atol: how far batch mates may move a score after the pass, and the cause.
        export_atol: how far ONNX may be from torch after the pass, and the cause.
    """

    neutral: dict[str, Any]
    active: dict[str, Any]
    again: dict[str, Any] = field(default_factory=dict)
    ranker: Callable[[], Any] | None = None
    behind: str = ""
    no_change: str = ""
    exact_atol: tuple[float, str] = (0.0, "nothing is computed anew")
    masked: Callable[..., np.ndarray] | None = None
    no_mask: str = ""
    no_promise: str = ""
    batch_atol: tuple[float, str] = (1e-5, "fp32 sums in another order")
    export_atol: tuple[float, str] = (1e-4, "fp32 sums in another order")
    mistyped: dict[str, Any] = field(default_factory=dict)


def pre_norm() -> Any:
    """Return a ranker of ModernBERT's shape: no norm before the first attention, embeddings of tokens alone."""
    from compressor.ranker.spec import EmbeddingsSpec, NormSpec
    from tests.tiny import build_ranker, tiny_layer, tiny_spec

    norm = NormSpec(epsilon=1e-5)
    layer = tiny_layer(norm_placement="pre", attention_norm=norm, ffn_norm=norm)
    embeddings = EmbeddingsSpec(tokens=tiny_spec().embeddings.tokens, norm=norm)
    layers = (layer.changed(attention_norm=None), layer)
    return build_ranker(tiny_spec(embeddings=embeddings, layers=layers, final_norm=norm))


_INT8 = "one activation scale spans a whole batch: a longer batch widens it, by rounding steps of 1/255 of the range"

TRAINING = {"lists": {"list_size": 4}, "lists_per_step": 4, "learning_rate": 1e-2, "precision": "fp32"}
TRAINED: dict[str, Any] = {
    "no_mask": "training removes nothing",
    "no_promise": "training keeps what earlier passes promised, and later ones may change every weight",
}

CASES = {
    "add_exits": Case(
        neutral={"layers": [0]},
        active={},
        no_change="exits are read by the trace alone",
        no_mask="exits remove nothing",
        mistyped={"layer": [0]},
    ),
    "calibrate_scores": Case(
        neutral={"fit": "none"},
        active={"to": {"mean": 0, "deviation": 1}, "n_pairs": 16},
        no_mask="nothing is removed",
        no_promise="whatever changes scores may change their scale",
        mistyped={"fits": "shift"},
    ),
    "cascade": Case(
        neutral={"stages": [{"behind": 0, "keep": 1}], "n_lists": 0},
        active={"stages": [{"behind": 0, "keep": 0.5}], "keep_at_least": 2, "top": 2, "n_lists": 6},
        behind="add_exits",
        no_change="lists are cut, and pairs are scored as ever",
        no_mask="nothing that a pair's score needs goes",
        mistyped={"stage": [{"behind": 0}]},
    ),
    "cut_at_exit": Case(
        neutral={"layer": 1},
        active={"layer": 0},
        behind="add_exits",
        masked=at_exit(0),
        mistyped={"layers": 0},
    ),
    "cut_nested": Case(
        neutral={"share": 1},
        active={"share": 0.5},
        behind="nest_widths",
        masked=with_first_neurons(0.5),
        mistyped={"shore": 0.5},
    ),
    "dense_sparse": Case(
        neutral={"share": 1},
        active={**TRAINING, "share": 0.7, "sweeps": 3, "losses": {"mse": 1}, "representations": {}},
        no_mask="atoms take the place of matrices: tests/passes/test_dense_sparse.py",
        mistyped={"shares": 0.5},
    ),
    "distill": Case(
        neutral={"epochs": 0},
        active={
            **TRAINING,
            "labels": {"softmax_labels": 1.0},
            "representations": {"relations": {"layers": "uniform"}},
        },
        mistyped={"epoch": 1},
        **TRAINED,
    ),
    "factorize": Case(
        neutral={"budget": {"macs": 1}},
        active={"rank": 4, "n_pairs": 16},
        no_mask="what goes is no unit but directions: tests/passes/test_factorize.py",
        mistyped={"budgets": {"macs": 0.8}},
    ),
    "finetune": Case(neutral={"epochs": 0}, active=TRAINING, mistyped={"loses": {"softmax_labels": 1}}, **TRAINED),
    "fold_norms": Case(
        neutral={"norms": "keep", "gains": "keep"},
        active={},
        ranker=pre_norm,
        no_change="folding is exact",
        exact_atol=(1e-4, "weights are rounded anew, and fp32 sums taken in another order"),
        no_mask="nothing that is computed goes",
        mistyped={"norm": "rms"},
    ),
    "isolate_query": Case(
        neutral={"isolate": False},
        active={},
        no_mask="nothing that is computed goes",
        mistyped={"isolated": True},
    ),
    "drop_layers": Case(
        neutral={"keep": [0, 1]},
        active={"keep": [1], "compensate": "none"},
        again={"keep": [0], "compensate": "none"},  # what is left of two layers
        masked=without_layers(0),  # for what is refitted see tests/passes/test_drop_layers.py
        mistyped={"keeps": [1]},
    ),
    "keep_tokens": Case(
        neutral={"layers": {"middle": 1}},
        active={"layers": {0: 0.5}},
        again={"layers": {0: 0.7}},
        no_mask="weights all stay: tests/passes/test_token_rules.py",
        mistyped={"layer": {0: 0.5}},
    ),
    "linearize_layers": Case(
        neutral={"replace": []},
        active={"replace": [0]},
        no_mask="a map takes the place of what goes: tests/passes/test_linearize_layers.py",
        mistyped={"replaced": [0]},
    ),
    "merge_adapters": Case(  # the folders are written by tests/laws/conftest.py
        neutral={"adapters": ["fresh_lora"]},
        active={"adapters": ["lora"]},
        no_mask="merging removes nothing",
        no_promise="merged weights are weights like others",
        mistyped={"adapter": ["lora"]},
    ),
    "merge_tokens": Case(
        neutral={"layers": {"middle": 1}},
        active={"layers": {0: 0.5}},
        again={"layers": {0: 0.7}},
        no_mask="weights all stay: tests/passes/test_merge_tokens.py",
        mistyped={"layer": {0: 0.5}},
    ),
    "learn_factors": Case(
        neutral={"budget": {"macs": 1}},
        active={**TRAINING, "rank": 4, "n_pairs": 16, "losses": {"mse": 1}, "representations": {}},
        no_mask="training changes what stays: tests/passes/test_learn_factors.py",
        mistyped={"ranks": 4},
    ),
    "learn_shares": Case(
        neutral={"budget": {"macs": 1}},
        active={**TRAINING, "budget": {"macs": 0.96}, "losses": {"mse": 1}, "representations": {}},
        no_mask="weights all stay: tests/passes/test_learn_shares.py",
        mistyped={"budgets": {"macs": 0.6}},
    ),
    "learn_thresholds": Case(
        neutral={"layers": {"middle": 1}},
        active={"epochs": 0, "layers": {0: 0.5}, "n_pairs": 16},
        no_mask="weights all stay: tests/passes/test_learn_thresholds.py",
        mistyped={"layer": {0: 0.5}},
    ),
    "learn_widths": Case(
        neutral={"budget": {"macs": 1}},
        active={**TRAINING, "budget": {"macs": 0.9}, "round_to": 4, "masks": {"learning_rate": 0.3}},
        no_mask="training changes what stays: tests/passes/test_learn_widths.py",
        mistyped={"budgets": {"macs": 0.6}},
    ),
    "nest_widths": Case(
        neutral={"epochs": 0},
        active={**TRAINING, "shares": [1, 0.5], "losses": {"mse": 1}, "representations": {}},
        mistyped={"share": [1, 0.5]},
        **TRAINED,
    ),
    "pool_tokens": Case(
        neutral={"stride": 1},
        active={"layer": 0},
        again={"layer": 0, "stride": 3},
        no_mask="weights all stay: tests/passes/test_token_rules.py",
        mistyped={"strides": 2},
    ),
    "prune_greedily": Case(
        neutral={"max_divergence": 0},
        active={"max_divergence": 0.001, "n_lists": 6, "neuron_group": 8},
        no_mask="what goes is found by trials: tests/passes/test_prune_greedily.py",
        mistyped={"max_divergances": 0.1},
    ),
    "prune_widths": Case(
        neutral={"budget": {"macs": 1}},
        active={"budget": {"macs": 0.9}, "round_to": 4, "importance": "magnitude", "compensate": "none"},
        masked=with_largest_widths(share=0.9, round_to=4),  # for what is refitted see tests/passes/test_prune_widths.py
        mistyped={"budgets": {"macs": 0.6}},
    ),
    "quantize": Case(
        neutral={"scheme": "none"},
        active={"scheme": "int8_dynamic"},
        no_mask="rounding removes nothing",
        batch_atol=(0.25, _INT8),
        export_atol=(0.05, "a sum that lands on the other side of a rounding step moves by one step of 1/255"),
        mistyped={"schema": "int8_dynamic"},
    ),
    "smooth": Case(
        neutral={"links": []},
        active={"n_pairs": 16},
        no_change="factors cancel",
        exact_atol=(1e-4, "weights are rounded anew"),
        no_mask="nothing is removed",
        no_promise="scaled weights are weights like others",
        mistyped={"alfa": 0.5},
    ),
    "sparsify": Case(
        neutral={"sparsity": 0},
        active={"sparsity": 0.5, "method": "magnitude"},
        no_mask="zeros leave no matrix smaller: tests/passes/test_sparsify.py",
        mistyped={"sparcity": 0.5},
    ),
    "start_from": Case(  # other checkpoints than the ranker at hand stand first: tests/passes/test_start_from.py
        neutral={"checkpoint": "self"},
        active={"checkpoint": "self", "head": "new"},
        no_mask="a new head takes the old one's place",
        no_promise="a start is there to be changed",
        mistyped={"chekpoint": "self"},
    ),
    "subclone": Case(
        neutral={"width": 16, "heads": 2, "ffn_width": 32, "layers": 2},
        active={"heads": 1, "ffn_width": 12, "weights": "subcloned"},
        again={"width": 8},
        masked=with_most_active(n_heads=1, n_neurons=12),  # for what is folded see tests/passes/test_subclone.py
        mistyped={"widths": 8},
    ),
    "trim_vocabulary": Case(
        neutral={"min_count": 0},
        active={"texts": ["train"]},
        no_mask="nothing that is computed goes",
        mistyped={"min_counts": 1},
    ),
}
