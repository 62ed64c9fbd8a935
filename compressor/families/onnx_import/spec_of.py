"""Turns recognized parts into a spec and canonical weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from compressor.families.onnx_import.bert import BertParts, LayerPart
from compressor.families.onnx_import.parts import LinearPart, NormPart
from compressor.ranker.spec import (
    AttentionSpec,
    ClassifierHead,
    EmbeddingsSpec,
    Family,
    FeedForwardSpec,
    LayerSpec,
    LinearSpec,
    NormSpec,
    RankerSpec,
    SimilarityHead,
    TableSpec,
)

Pool = Literal["first", "mean"]


def spec_of(
    parts: BertParts, *, family: Family | None, pad_id: int, max_length: int | None, pool: Pool = "first"
) -> RankerSpec:
    """Describe recognized parts.

    Args:
        parts: what the graph holds.
        family: what a config beside the file says; guessed from the parts where None.
        pad_id: the tokenizer's padding id; where positions start after the padding id, the graph itself says it.
        max_length: the tokenizer's limit in tokens; the position table may lower it.
        pool: what an encoder without a head makes of a text's states.
    """
    embedded = parts.embeddings
    rows = [] if embedded.positions is None else [len(embedded.positions) - embedded.position_offset]
    return RankerSpec(
        family=family or _guess_family(parts),
        width=parts.layers[0].down.weight.shape[1],
        max_length=min([*rows, *([max_length] if max_length else [])], default=512),
        pad_id=embedded.position_offset - 1 if embedded.position_offset else pad_id,
        embeddings=EmbeddingsSpec(
            tokens=_table(embedded.tokens),
            positions=None if embedded.positions is None else _table(embedded.positions),
            position_offset=embedded.position_offset,
            segments=None if embedded.segments is None else _table(embedded.segments),
            norm=_norm(embedded.norm),
            project=_linear(embedded.project) if embedded.project else None,
        ),
        layers=tuple(_layer(layer) for layer in parts.layers),
        head=ClassifierHead(
            pool="first",
            dense=_linear(parts.head.dense) if parts.head.dense else None,
            activation=parts.head.activation,
            output=_linear(parts.head.output),
        )
        if parts.head
        else SimilarityHead(pool=pool),
    )


def _guess_family(parts: BertParts) -> Family:
    if parts.embeddings.position_offset:
        return "roberta"
    activation = parts.head.activation if parts.head else None
    if parts.embeddings.project or activation == "gelu":
        return "electra"
    is_bare_distilbert = parts.head is None and parts.embeddings.segments is None
    return "distilbert" if activation == "relu" or is_bare_distilbert else "bert"


def _layer(layer: LayerPart) -> LayerSpec:
    attention = layer.attention
    return LayerSpec(
        norm_placement="post",
        attention=AttentionSpec(
            heads=attention.heads,
            head_width=attention.query.weight.shape[1] // attention.heads,
            query=_linear(attention.query),
            key=_linear(attention.key),
            value=_linear(attention.value),
            output=_linear(layer.output),
        ),
        attention_norm=_norm(layer.attention_norm),
        ffn=FeedForwardSpec(activation=layer.activation, up=_linear(layer.up), down=_linear(layer.down)),
        ffn_norm=_norm(layer.ffn_norm),
    )


def _linear(part: LinearPart) -> LinearSpec:
    inputs, outputs = part.weight.shape
    return LinearSpec(inputs=inputs, outputs=outputs, bias=part.bias is not None)


def _table(table: np.ndarray) -> TableSpec:
    return TableSpec(rows=table.shape[0], width=table.shape[1])


def _norm(part: NormPart) -> NormSpec:
    return NormSpec(epsilon=part.epsilon, bias=part.shift is not None)


def weights_of(parts: BertParts) -> dict[str, Tensor]:
    """Return the canonical weights of recognized parts, fp32."""
    return {name: torch.from_numpy(array.astype(np.float32, order="C")) for name, array in _arrays(parts)}


def _arrays(parts: BertParts) -> Iterator[tuple[str, np.ndarray]]:
    embedded = parts.embeddings
    for name, table in (
        ("tokens", embedded.tokens),
        ("positions", embedded.positions),
        ("segments", embedded.segments),
    ):
        if table is not None:
            yield f"embeddings.{name}.weight", table
    for name, part in _linears(parts):
        yield f"{name}.weight", part.weight.T
        if part.bias is not None:
            yield f"{name}.bias", part.bias
    for name, norm in _norms(parts):
        yield f"{name}.weight", norm.weight.reshape(-1)
        if norm.shift is not None:
            yield f"{name}.bias", norm.shift.reshape(-1)


def _linears(parts: BertParts) -> Iterator[tuple[str, LinearPart]]:
    if parts.embeddings.project:
        yield "embeddings.project", parts.embeddings.project
    for index, layer in enumerate(parts.layers):
        yield f"layers.{index}.attention.query", layer.attention.query
        yield f"layers.{index}.attention.key", layer.attention.key
        yield f"layers.{index}.attention.value", layer.attention.value
        yield f"layers.{index}.attention.output", layer.output
        yield f"layers.{index}.ffn.up", layer.up
        yield f"layers.{index}.ffn.down", layer.down
    if parts.head and parts.head.dense:
        yield "head.dense", parts.head.dense
    if parts.head:
        yield "head.output", parts.head.output


def _norms(parts: BertParts) -> Iterator[tuple[str, NormPart]]:
    yield "embeddings.norm", parts.embeddings.norm
    for index, layer in enumerate(parts.layers):
        yield f"layers.{index}.attention_norm", layer.attention_norm
        yield f"layers.{index}.ffn_norm", layer.ffn_norm
