"""ELECTRA: BERT's encoder, narrower embeddings with a projection, a GELU head."""

from __future__ import annotations

from typing import Any

from compressor.families.config import Config
from compressor.families.family import FamilyAdapter
from compressor.families.post_norm import BACKBONE, SEGMENT_TABLE, read_encoder, write_encoder
from compressor.ranker.spec import RankerSpec


def _read(config: Config) -> RankerSpec:
    shape = Config(
        {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, **config.values}, config.source
    )
    spec = read_encoder(
        shape, family="electra", head_activation="gelu", embedded_width=shape.integer("embedding_size", 128)
    )
    config.faults += shape.faults
    return spec


def _write(spec: RankerSpec) -> dict[str, Any]:
    return {**write_encoder(spec), "embedding_size": spec.embeddings.tokens.width}


ELECTRA = FamilyAdapter(
    classes={"electra": "ElectraForSequenceClassification"},
    prefix="electra",
    backbone={**BACKBONE, "embeddings_project": ("embeddings.project",)},
    head={"classifier.dense": ("head.dense",), "classifier.out_proj": ("head.output",)},
    segment_table=SEGMENT_TABLE,
    read=_read,
    write=_write,
)
