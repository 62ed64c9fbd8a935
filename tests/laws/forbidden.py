"""Ordered pairs of passes that make no sense, with what is said of them."""

from __future__ import annotations

# Ordered pairs of passes that are refused, with what the message must say.
_FACTORIZE = ("dense_sparse", "factorize", "learn_factors")
_NEED_WHOLE = (
    "learn_widths", "linearize_layers", "merge_adapters", "nest_widths", "prune_greedily", "prune_widths",
)  # fmt: skip
_CUT_ROWS = ("cut_nested", "fold_norms", "prune_greedily", "prune_widths", "subclone")
_OTHERS = "name other linears"
_WHOLE = "put {} before what factorizes"
_CUTS = "put merge_adapters before all that cuts"

_WIDTHS_FIRST = (
    "drop_layers", "factorize", "learn_factors", "learn_widths", "linearize_layers", "nest_widths",
    "prune_greedily", "prune_widths", "smooth", "subclone",
)  # fmt: skip

_BEFORE_QUANTIZE = (
    "add_exits", "cut_nested", "dense_sparse", "drop_layers", "factorize", "fold_norms", "isolate_query",
    "learn_factors", "learn_shares", "learn_thresholds", "learn_widths", "linearize_layers", "merge_adapters",
    "nest_widths",
    "prune_greedily", "prune_widths", "quantize", "smooth", "sparsify", "start_from", "subclone", "trim_vocabulary",
)  # fmt: skip

_BEFORE_SPARSIFY = (
    "cut_nested", "dense_sparse", "drop_layers", "factorize", "fold_norms", "learn_factors", "learn_widths",
    "linearize_layers", "merge_adapters", "nest_widths", "prune_greedily", "prune_widths", "subclone",
)  # fmt: skip

FORBIDDEN = {
    **{("sparsify", verb): f"put {verb} before sparsify" for verb in _BEFORE_SPARSIFY},
    **{("quantize", verb): f"put {verb} before quantize" for verb in _BEFORE_QUANTIZE},
    **{
        (rule, verb): f"put {verb} before {rule}"
        for rule in ("keep_tokens", "learn_thresholds", "merge_tokens", "pool_tokens")
        for verb in _WIDTHS_FIRST
    },
    **{("learn_shares", verb): f"put {verb} before keep_tokens" for verb in _WIDTHS_FIRST},  # whose rules it sets
    **{
        pair: "choose another layer"
        for other in ("keep_tokens", "learn_thresholds", "pool_tokens")
        for pair in ((other, "merge_tokens"), ("merge_tokens", other))
    },
    ("linearize_layers", "merge_tokens"): "choose another layer",
    ("cut_at_exit", "merge_tokens"): "leave two layers or more",
    ("drop_layers", "merge_tokens"): "leave two layers or more",
    ("cascade", "merge_tokens"): "leave one of the two passes out",
    ("merge_tokens", "cascade"): "leave one of the two passes out",
    ("cut_at_exit", "learn_shares"): "leave two layers or more",
    ("drop_layers", "learn_shares"): "leave two layers or more",
    **{
        (first, "learn_shares"): "leave one of the two passes out"
        for first in ("cascade", "keep_tokens", "learn_thresholds", "merge_tokens", "pool_tokens")
    },
    ("linearize_layers", "learn_shares"): "name layers that have one",
    **{
        ("learn_shares", second): "choose another layer"
        for second in ("learn_thresholds", "merge_tokens", "pool_tokens")
    },
    ("learn_shares", "cascade"): "leave one of the two passes out",
    ("cut_at_exit", "learn_thresholds"): "leave two layers or more",
    ("drop_layers", "learn_thresholds"): "leave two layers or more",
    **{
        (first, "learn_thresholds"): "choose another layer"
        for first in ("keep_tokens", "linearize_layers", "pool_tokens")
    },
    **{("learn_thresholds", second): "choose another layer" for second in ("keep_tokens", "pool_tokens")},
    ("cascade", "learn_thresholds"): "leave one of the two passes out",
    ("learn_thresholds", "cascade"): "leave one of the two passes out",
    ("cut_at_exit", "keep_tokens"): "leave two layers or more",
    ("cut_at_exit", "pool_tokens"): "leave two layers or more",
    ("drop_layers", "keep_tokens"): "leave two layers or more",
    ("drop_layers", "pool_tokens"): "leave two layers or more",
    ("keep_tokens", "pool_tokens"): "choose another layer",
    ("linearize_layers", "keep_tokens"): "choose another layer",
    ("pool_tokens", "keep_tokens"): "choose another layer",
    ("add_exits", "merge_adapters"): "put merge_adapters before add_exits",
    ("cascade", "isolate_query"): "leave one of the two passes out",
    ("isolate_query", "cascade"): "leave one of the two passes out",
    ("cascade", "keep_tokens"): "leave one of the two passes out",
    ("cascade", "pool_tokens"): "leave one of the two passes out",
    ("keep_tokens", "cascade"): "leave one of the two passes out",
    ("pool_tokens", "cascade"): "leave one of the two passes out",
    ("cascade", "cascade"): "leave one of the two passes out",
    ("cascade", "cut_at_exit"): "put cut_at_exit before cascade",
    ("cascade", "drop_layers"): "put what takes layers away before cascade",
    ("cascade", "merge_adapters"): "put merge_adapters before add_exits",
    ("cut_at_exit", "add_exits"): "put add_exits before the pass that takes layers away",
    ("cut_at_exit", "merge_adapters"): _CUTS,
    ("cut_at_exit", "cascade"): "put add_exits before cascade",
    ("cut_at_exit", "cut_at_exit"): "put add_exits before cut_at_exit",
    ("drop_layers", "add_exits"): "put add_exits before the pass that takes layers away",
    ("drop_layers", "cascade"): "put add_exits before cascade",
    ("drop_layers", "cut_at_exit"): "put add_exits before cut_at_exit",
    ("drop_layers", "merge_adapters"): _CUTS,
    ("cut_nested", "merge_adapters"): _CUTS,
    ("learn_widths", "merge_adapters"): _CUTS,
    ("linearize_layers", "merge_adapters"): _CUTS,
    **{(first, second): _WHOLE.format(second) for first in _FACTORIZE for second in (*_NEED_WHOLE, "sparsify")},
    **{(first, second): _OTHERS for first in _FACTORIZE for second in _FACTORIZE if first != second},
    **{
        ("dense_sparse", second): f"put {second} before dense_sparse" for second in (*_NEED_WHOLE, *_CUT_ROWS, "smooth")
    },
    ("prune_greedily", "merge_adapters"): _CUTS,
    ("prune_widths", "merge_adapters"): _CUTS,
    ("subclone", "merge_adapters"): _CUTS,
}

# Ordered pairs that the shape does not tell from others, but the ranker's history does, with what is found there.
FORBIDDEN_BY_HISTORY = {
    ("distill", "cut_nested"): "distill behind nest_widths",
    ("finetune", "cut_nested"): "finetune behind nest_widths",
    ("learn_factors", "cut_nested"): "learn_factors behind nest_widths",
    ("learn_shares", "cut_nested"): "learn_shares behind nest_widths",
    ("learn_widths", "cut_nested"): "learn_widths behind nest_widths",
    ("linearize_layers", "cut_nested"): "neurons that were cut since nest_widths",
    ("prune_greedily", "cut_nested"): "neurons that were cut since nest_widths",
    ("subclone", "cut_nested"): "neurons that were cut since nest_widths",
}
