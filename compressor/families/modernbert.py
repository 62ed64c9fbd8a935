"""ModernBERT: pre-norm, rotary positions, global and local attention by turns, gated feed-forwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.families.config import Config, stock_activation
from compressor.families.family import FamilyAdapter
from compressor.ranker.spec import (
    AttentionSpec,
    ClassifierHead,
    DropoutSpec,
    EmbeddingsSpec,
    FeedForwardSpec,
    FullPattern,
    LayerSpec,
    LinearSpec,
    NormSpec,
    RankerSpec,
    RotarySpec,
    TableSpec,
    WindowPattern,
)

_BASES = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}
_POOLING: dict[str, Any] = {"cls": "first", "mean": "mean"}


def _read(config: Config) -> RankerSpec:
    width, heads = config.integer("hidden_size", 768), config.integer("num_attention_heads", 12)
    head_width = config.head_width(width, heads, "num_attention_heads")
    norm = NormSpec(epsilon=config.number("norm_eps", 1e-5), bias=config.flag("norm_bias", False))
    config.only("classifier_pooling", *_POOLING)
    config.only("position_embedding_type", "absolute", "rope", "sans_pos")
    biased, ffn_width = config.flag("mlp_bias", False), config.integer("intermediate_size", 1152)
    widening = LinearSpec(inputs=width, outputs=ffn_width, bias=biased)
    square = LinearSpec(inputs=width, outputs=width, bias=config.flag("attention_bias", False))
    bases = {kind: _rope_base(config, kind) for kind in _BASES}
    window = WindowPattern(reach=max(1, config.integer("local_attention", 128, least=2) // 2))
    layers = [
        LayerSpec(
            norm_placement="pre",
            attention=AttentionSpec(
                heads=heads, head_width=head_width, query=square, key=square, value=square, output=square,
                pattern=window if kind == "sliding_attention" else FullPattern(),
                positions=RotarySpec(base=bases[kind]),
            ),
            attention_norm=None if index == 0 else norm,  # the embeddings are normed already
            ffn=FeedForwardSpec(
                activation=config.activation("hidden_activation"), gate=widening, up=widening,
                down=LinearSpec(inputs=ffn_width, outputs=width, bias=biased),
            ),
            ffn_norm=norm,
        )
        for index, kind in enumerate(_layer_kinds(config))
    ]  # fmt: skip
    return RankerSpec(
        family="modernbert",
        width=width,
        max_length=config.integer("max_position_embeddings", 8192),
        pad_id=config.integer("pad_token_id", 50283, least=0),
        embeddings=EmbeddingsSpec(tokens=TableSpec(rows=config.integer("vocab_size", 50368), width=width), norm=norm),
        layers=tuple(layers),
        final_norm=norm,
        head=ClassifierHead(
            pool=_POOLING.get(config.values.get("classifier_pooling", "cls"), "first"),
            dense=LinearSpec(inputs=width, outputs=width, bias=config.flag("classifier_bias", False)),
            activation=config.activation("classifier_activation"),
            norm=norm,
            output=LinearSpec(inputs=width, outputs=1),
        ),
        dropout=DropoutSpec(
            hidden=config.share("mlp_dropout", 0.0),
            attention=config.share("attention_dropout", 0.0),
            head=config.share("classifier_dropout", 0.0),
        ),
    )


def _layer_kinds(config: Config) -> list[str]:
    count, every = config.integer("num_hidden_layers", 22), config.integer("global_attn_every_n_layers", 3)
    kinds = config.values.get("layer_types")
    if kinds is None:
        return ["sliding_attention" if index % every else "full_attention" for index in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or not set(kinds) <= set(_BASES):
        config.fault("layer_types", f"{count} times {' or '.join(_BASES)}")
        return ["full_attention"] * count
    return kinds


def _rope_base(config: Config, kind: str) -> float:
    """Return the base of a kind of layer, from transformers 5's ``rope_parameters`` or the older fields."""
    legacy, default = _BASES[kind]
    config.only("rope_scaling")
    parameters = config.values.get("rope_parameters") or {}
    own = parameters.get(kind) if isinstance(parameters, Mapping) else None
    if isinstance(own, Mapping):
        if own.get("rope_type", "default") != "default":
            config.fault("rope_parameters", "rope_type 'default'")
        base = own.get("rope_theta")
        if isinstance(base, int | float) and base > 0:
            return float(base)
    return config.number(legacy, default)


def _write(spec: RankerSpec) -> dict[str, Any]:
    first = spec.layers[0]
    attention, ffn = spec.first_attention, spec.first_ffn
    patterns = [layer.attention.pattern if layer.attention else FullPattern() for layer in spec.layers]
    kinds = ["sliding_attention" if isinstance(p, WindowPattern) else "full_attention" for p in patterns]
    windows = [p.reach for p in patterns if isinstance(p, WindowPattern)]
    bases = {kind: default for kind, (_, default) in _BASES.items()}
    for layer, kind in zip(spec.layers, kinds, strict=True):
        if layer.attention and layer.attention.positions:
            bases[kind] = layer.attention.positions.base
    head = spec.head if isinstance(spec.head, ClassifierHead) else None
    norm = first.ffn_norm
    return {
        "vocab_size": spec.embeddings.tokens.rows,
        "hidden_size": spec.width,
        "intermediate_size": ffn.width if ffn else spec.width,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": attention.heads if attention else 1,
        "hidden_activation": stock_activation(ffn.activation) if ffn else "gelu",
        "norm_eps": norm.epsilon if norm else 1e-5,
        "norm_bias": norm.bias if norm else False,
        "attention_bias": bool(attention and attention.query.bias),
        "mlp_bias": bool(ffn and ffn.up.bias),
        "layer_types": kinds,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        "local_attention": 2 * windows[0] if windows else 128,
        "classifier_pooling": "mean" if spec.head.pool == "mean" else "cls",
        "classifier_bias": bool(head and head.dense and head.dense.bias),
        "classifier_activation": stock_activation(head.activation) if head and head.activation else "gelu",
        "mlp_dropout": spec.dropout.hidden,
        "embedding_dropout": spec.dropout.hidden,
        "attention_dropout": spec.dropout.attention,
        "classifier_dropout": spec.dropout.head,
        "pad_token_id": spec.pad_id,
    }


MODERNBERT = FamilyAdapter(
    classes={"modernbert": "ModernBertForSequenceClassification"},
    prefix="model",
    backbone={
        "embeddings.tok_embeddings": ("embeddings.tokens",),
        "embeddings.norm": ("embeddings.norm",),
        "layers.{i}.attn_norm": ("layers.{i}.attention_norm",),
        "layers.{i}.attn.Wqkv": (
            "layers.{i}.attention.query", "layers.{i}.attention.key", "layers.{i}.attention.value",
        ),
        "layers.{i}.attn.Wo": ("layers.{i}.attention.output",),
        "layers.{i}.mlp_norm": ("layers.{i}.ffn_norm",),
        "layers.{i}.mlp.Wi": ("layers.{i}.ffn.gate", "layers.{i}.ffn.up"),
        "layers.{i}.mlp.Wo": ("layers.{i}.ffn.down",),
        "final_norm": ("final_norm",),
    },
    head={"head.dense": ("head.dense",), "head.norm": ("head.norm",), "classifier": ("head.output",)},
    read=_read,
    write=_write,
)  # fmt: skip
