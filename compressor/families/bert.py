"""BERT, and what is shaped like it: MiniLM, TinyBERT."""

from __future__ import annotations

from compressor.families.family import FamilyAdapter
from compressor.families.post_norm import BACKBONE, SEGMENT_TABLE, read_encoder, write_encoder

BERT = FamilyAdapter(
    classes={"bert": "BertForSequenceClassification"},
    prefix="bert",
    backbone={**BACKBONE, "pooler.dense": ("head.dense",)},
    head={"classifier": ("head.output",)},
    segment_table=SEGMENT_TABLE,
    read=lambda config: read_encoder(config, family="bert", head_activation="tanh"),
    write=write_encoder,
)
