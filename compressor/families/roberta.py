"""RoBERTa and XLM-R: BERT's encoder, positions that start after the padding id, no pooler."""

from __future__ import annotations

from compressor.families.config import Config
from compressor.families.family import FamilyAdapter
from compressor.families.post_norm import BACKBONE, SEGMENT_TABLE, read_encoder, write_encoder
from compressor.ranker.spec import Family, RankerSpec


def _read(config: Config) -> RankerSpec:
    family: Family = "xlm-roberta" if config.values.get("model_type") == "xlm-roberta" else "roberta"
    pad_id = config.integer("pad_token_id", 1, least=0)
    return read_encoder(config, family=family, head_activation="tanh", position_offset=pad_id + 1, pad_id=1, types=2)


ROBERTA = FamilyAdapter(
    classes={
        "roberta": "RobertaForSequenceClassification",
        "xlm-roberta": "XLMRobertaForSequenceClassification",
    },
    prefix="roberta",
    backbone=BACKBONE,
    head={"classifier.dense": ("head.dense",), "classifier.out_proj": ("head.output",)},
    segment_table=SEGMENT_TABLE,
    unused=("embeddings.position_ids", "embeddings.token_type_ids", "pooler."),
    read=_read,
    write=write_encoder,
)
