"""Settings that every pass that trains has. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from compressor.records import Record
from compressor.training.lists import ListSettings

Share = Annotated[float, Field(ge=0, lt=1)]


class TrainingSettings(Record):
    """How long, how fast and how exactly a module is trained.

    ``epochs``: passes over the lists, parts of one too; 0 trains nothing. ``max_pairs``: stop after so many pairs.
    ``lists``: how training lists are drawn. ``lists_per_step``: lists whose gradients make one step.
    ``batch_tokens``: how many tokens are computed at once; a step that is longer is cut into micro-batches of whole
    lists, which changes memory and not the step.
    ``learning_rate``, ``schedule``, ``warmup_share``, ``weight_decay`` (matrices alone), ``max_grad_norm``: AdamW's.
    ``precision``: ``bf16`` computes products in bfloat16 over fp32 weights; ``auto`` does where the hardware has it.
    ``gradient_checkpointing``: compute layers twice, keep less memory. ``dropout``: as the spec says, or none.
    ``ema``: keep the moving average of weights with this decay, and return it.
    ``evaluate_every``: steps between evaluations on dev data, whose best weights are returned; ``dev_measure``:
    an ir-measures name; ``patience``: evaluations without a better one before training stops.
    ``checkpoint_every_s``: seconds between checkpoints, from which a killed run goes on exactly.
    """

    epochs: NonNegativeFloat = 1.0
    max_pairs: PositiveInt | None = None
    lists: ListSettings = ListSettings()
    lists_per_step: PositiveInt = 8
    batch_tokens: PositiveInt = 8192
    learning_rate: PositiveFloat = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: Share = 0.05
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    dropout: bool = False
    ema: Share | None = None
    evaluate_every: PositiveInt | None = None
    dev_measure: str = "nDCG@10"
    patience: PositiveInt | None = None
    checkpoint_every_s: PositiveFloat = 120.0
