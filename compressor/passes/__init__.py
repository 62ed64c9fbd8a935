"""The catalogue of passes: one file per verb. Importing it registers them all; no torch is loaded."""

from compressor.passes import (
    add_exits,
    calibrate_scores,
    cut_at_exit,
    cut_nested,
    distill,
    drop_layers,
    finetune,
    nest_widths,
    prune_greedily,
    prune_widths,
    quantize,
    start_from,
    subclone,
    trim_vocabulary,
)
from compressor.passes.contract import NeedError, Pass, PlanError, Promise, Supply

__all__ = [
    "NeedError",
    "Pass",
    "PlanError",
    "Promise",
    "Supply",
    "add_exits",
    "calibrate_scores",
    "cut_at_exit",
    "cut_nested",
    "distill",
    "drop_layers",
    "finetune",
    "nest_widths",
    "prune_greedily",
    "prune_widths",
    "quantize",
    "start_from",
    "subclone",
    "trim_vocabulary",
]
