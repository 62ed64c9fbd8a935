"""What BERT, ELECTRA and RoBERTa share: one encoder under one set of names."""

from __future__ import annotations

from typing import Any

from compressor.families.config import Config, stock_activation
from compressor.ranker.spec import (
    Activation,
    AttentionSpec,
    ClassifierHead,
    DropoutSpec,
    EmbeddingsSpec,
    FeedForwardSpec,
    LayerSpec,
    LinearSpec,
    NormSpec,
    RankerSpec,
    TableSpec,
)

SEGMENT_TABLE = "embeddings.token_type_embeddings"

BACKBONE = {
    "embeddings.word_embeddings": ("embeddings.tokens",),
    "embeddings.position_embeddings": ("embeddings.positions",),
    "embeddings.token_type_embeddings": ("embeddings.segments",),
    "embeddings.LayerNorm": ("embeddings.norm",),
    "encoder.layer.{i}.attention.self.query": ("layers.{i}.attention.query",),
    "encoder.layer.{i}.attention.self.key": ("layers.{i}.attention.key",),
    "encoder.layer.{i}.attention.self.value": ("layers.{i}.attention.value",),
    "encoder.layer.{i}.attention.output.dense": ("layers.{i}.attention.output",),
    "encoder.layer.{i}.attention.output.LayerNorm": ("layers.{i}.attention_norm",),
    "encoder.layer.{i}.intermediate.dense": ("layers.{i}.ffn.up",),
    "encoder.layer.{i}.output.dense": ("layers.{i}.ffn.down",),
    "encoder.layer.{i}.output.LayerNorm": ("layers.{i}.ffn_norm",),
}


def layer(width: int, heads: int, head_width: int, ffn_width: int, activation: Activation, epsilon: float) -> LayerSpec:
    """Describe a post-norm layer with biases everywhere."""
    inner = LinearSpec(inputs=width, outputs=heads * head_width)
    norm = NormSpec(epsilon=epsilon)
    return LayerSpec(
        norm_placement="post",
        attention=AttentionSpec(
            heads=heads, head_width=head_width, query=inner, key=inner, value=inner,
            output=LinearSpec(inputs=heads * head_width, outputs=width),
        ),
        attention_norm=norm,
        ffn=FeedForwardSpec(
            activation=activation,
            up=LinearSpec(inputs=width, outputs=ffn_width),
            down=LinearSpec(inputs=ffn_width, outputs=width),
        ),
        ffn_norm=norm,
    )  # fmt: skip


def read_encoder(config: Config, **parts: Any) -> RankerSpec:
    """Describe the shared encoder.

    Args:
        config: the checkpoint's.
        parts: what the families have of their own: ``family``, ``head_activation``, and where they differ
            ``position_offset``, ``epsilon``, ``types``, ``embedded_width``.
    """
    width = config.integer("hidden_size", 768)
    heads = config.integer("num_attention_heads", 12)
    head_width = config.head_width(width, heads, "num_attention_heads")
    embedded = parts.get("embedded_width") or width
    offset = parts.get("position_offset", 0)
    rows = config.integer("max_position_embeddings", 512, least=offset + 1)
    types = config.integer("type_vocab_size", parts.get("types", 2))
    epsilon = config.number("layer_norm_eps", parts.get("epsilon", 1e-12))
    config.only("position_embedding_type", "absolute")
    config.only("is_decoder", False)
    config.only("add_cross_attention", False)
    one_layer = layer(
        width, heads, head_width, config.integer("intermediate_size", 3072), config.activation("hidden_act"), epsilon
    )
    hidden_dropout = config.share("hidden_dropout_prob", 0.1)
    return RankerSpec(
        family=parts["family"],
        width=width,
        max_length=rows - offset,
        pad_id=config.integer("pad_token_id", parts.get("pad_id", 0), least=0),
        embeddings=EmbeddingsSpec(
            tokens=TableSpec(rows=config.integer("vocab_size", 30522), width=embedded),
            positions=TableSpec(rows=rows, width=embedded),
            position_offset=offset,
            segments=TableSpec(rows=types, width=embedded) if types > 1 else None,
            norm=NormSpec(epsilon=epsilon),
            project=LinearSpec(inputs=embedded, outputs=width) if embedded != width else None,
        ),
        layers=(one_layer,) * config.integer("num_hidden_layers", 12),
        head=ClassifierHead(
            pool="first",
            dense=LinearSpec(inputs=width, outputs=width),
            activation=parts["head_activation"],
            output=LinearSpec(inputs=width, outputs=1),
        ),
        dropout=DropoutSpec(
            hidden=hidden_dropout,
            attention=config.share("attention_probs_dropout_prob", 0.1),
            head=config.share("classifier_dropout", hidden_dropout),
        ),
    )


def write_encoder(spec: RankerSpec) -> dict[str, Any]:
    """Return the shared fields of the config, those of all layers from the first."""
    embeddings, attention, ffn = spec.embeddings, spec.first_attention, spec.first_ffn
    norm = spec.layers[0].ffn_norm
    return {
        "vocab_size": embeddings.tokens.rows,
        "hidden_size": spec.width,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": attention.heads if attention else 1,
        "intermediate_size": ffn.width if ffn else spec.width,
        "hidden_act": stock_activation(ffn.activation) if ffn else "gelu",
        "hidden_dropout_prob": spec.dropout.hidden,
        "attention_probs_dropout_prob": spec.dropout.attention,
        "classifier_dropout": spec.dropout.head,
        "max_position_embeddings": embeddings.positions.rows if embeddings.positions else spec.max_length,
        "type_vocab_size": embeddings.segments.rows if embeddings.segments else 1,
        "layer_norm_eps": norm.epsilon if norm else 1e-12,
        "pad_token_id": spec.pad_id,
    }
