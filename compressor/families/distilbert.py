"""DistilBERT: no segments, a ReLU head."""

from __future__ import annotations

from typing import Any

from compressor.families.config import Config, stock_activation
from compressor.families.family import FamilyAdapter
from compressor.families.post_norm import layer
from compressor.ranker.spec import (
    ClassifierHead,
    DropoutSpec,
    EmbeddingsSpec,
    LinearSpec,
    NormSpec,
    RankerSpec,
    TableSpec,
)

_EPSILON = 1e-12  # not in the config: fixed in transformers' code


def _read(config: Config) -> RankerSpec:
    width, heads = config.integer("dim", 768), config.integer("n_heads", 12)
    head_width = config.head_width(width, heads, "n_heads")
    rows = config.integer("max_position_embeddings", 512)
    one_layer = layer(
        width, heads, head_width, config.integer("hidden_dim", 3072), config.activation("activation"), _EPSILON
    )
    return RankerSpec(
        family="distilbert",
        width=width,
        max_length=rows,
        pad_id=config.integer("pad_token_id", 0, least=0),
        embeddings=EmbeddingsSpec(
            tokens=TableSpec(rows=config.integer("vocab_size", 30522), width=width),
            positions=TableSpec(rows=rows, width=width),
            norm=NormSpec(epsilon=_EPSILON),
        ),
        layers=(one_layer,) * config.integer("n_layers", 6),
        head=ClassifierHead(
            pool="first",
            dense=LinearSpec(inputs=width, outputs=width),
            activation="relu",
            output=LinearSpec(inputs=width, outputs=1),
        ),
        dropout=DropoutSpec(
            hidden=config.share("dropout", 0.1),
            attention=config.share("attention_dropout", 0.1),
            head=config.share("seq_classif_dropout", 0.2),
        ),
    )


def _write(spec: RankerSpec) -> dict[str, Any]:
    embeddings, attention, ffn = spec.embeddings, spec.first_attention, spec.first_ffn
    return {
        "vocab_size": embeddings.tokens.rows,
        "dim": spec.width,
        "n_layers": len(spec.layers),
        "n_heads": attention.heads if attention else 1,
        "hidden_dim": ffn.width if ffn else spec.width,
        "activation": stock_activation(ffn.activation) if ffn else "gelu",
        "dropout": spec.dropout.hidden,
        "attention_dropout": spec.dropout.attention,
        "seq_classif_dropout": spec.dropout.head,
        "max_position_embeddings": embeddings.positions.rows if embeddings.positions else spec.max_length,
        "pad_token_id": spec.pad_id,
    }


DISTILBERT = FamilyAdapter(
    classes={"distilbert": "DistilBertForSequenceClassification"},
    prefix="distilbert",
    backbone={
        "embeddings.word_embeddings": ("embeddings.tokens",),
        "embeddings.position_embeddings": ("embeddings.positions",),
        "embeddings.LayerNorm": ("embeddings.norm",),
        "transformer.layer.{i}.attention.q_lin": ("layers.{i}.attention.query",),
        "transformer.layer.{i}.attention.k_lin": ("layers.{i}.attention.key",),
        "transformer.layer.{i}.attention.v_lin": ("layers.{i}.attention.value",),
        "transformer.layer.{i}.attention.out_lin": ("layers.{i}.attention.output",),
        "transformer.layer.{i}.sa_layer_norm": ("layers.{i}.attention_norm",),
        "transformer.layer.{i}.ffn.lin1": ("layers.{i}.ffn.up",),
        "transformer.layer.{i}.ffn.lin2": ("layers.{i}.ffn.down",),
        "transformer.layer.{i}.output_layer_norm": ("layers.{i}.ffn_norm",),
    },
    head={"pre_classifier": ("head.dense",), "classifier": ("head.output",)},
    read=_read,
    write=_write,
)
