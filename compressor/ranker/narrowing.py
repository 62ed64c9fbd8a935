"""Smaller shapes of the same kind: fewer residual dimensions, heads and neurons; linear maps instead of layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from compressor.ranker.spec import (
    AttentionSpec,
    ClassifierHead,
    EmbeddingsSpec,
    FeedForwardSpec,
    Head,
    LayerSpec,
    LinearMapSpec,
    LinearSpec,
    RankerSpec,
)


def narrowed(spec: RankerSpec, *, width: int, heads: Sequence[int], ffn_widths: Sequence[int]) -> RankerSpec:
    """Return a spec with other widths; head widths, norms, forms and all else stay.

    A head's dense layer as wide as the residual stream follows it, so that a stock shape stays one.

    Args:
        spec: the shape.
        width: residual dimensions.
        heads: attention heads, layer by layer; 0 takes the attention away.
        ffn_widths: feed-forward neurons, layer by layer; 0 takes the feed-forward away, but no linear map.
    """
    layers = tuple(
        _layer(layer, spec.width, width, *counts) for layer, *counts in zip(spec.layers, heads, ffn_widths, strict=True)
    )
    return spec.changed(
        width=width,
        embeddings=_embeddings(spec.embeddings, width),
        layers=layers,
        head=narrowed_head(spec.head, spec.width, width),
    )


def linearized(spec: RankerSpec, layers: Collection[int]) -> RankerSpec:
    """Return a spec in which one linear map, with its residual, stands for each of some layers.

    With norms behind blocks (post) that is ``norm(x + A x + b)`` under the layer's last norm: what comes behind reads
    normed states. With norms before blocks (pre) it is ``x + A norm(x) + b`` under the layer's first norm, if it has
    one: the map reads what the layer's first block read, so that a few tokens of huge states do not rule the fit.

    Args:
        spec: the shape.
        layers: which of its layers.
    """
    linear = LinearMapSpec(down=LinearSpec(inputs=spec.width, outputs=spec.width))

    def changed(layer: LayerSpec) -> LayerSpec:
        is_post = layer.norm_placement == "post"
        norm = layer.ffn_norm if is_post or not layer.attention else layer.attention_norm
        return layer.changed(attention=None, attention_norm=None, ffn=linear, ffn_norm=norm)

    return spec.changed(
        layers=tuple(changed(layer) if index in layers else layer for index, layer in enumerate(spec.layers))
    )


def narrowed_head(head: Head, before: int, width: int) -> Head:
    """Return a head that reads ``width`` dimensions instead of ``before``."""
    if not isinstance(head, ClassifierHead):
        return head
    if head.dense is None:
        return head.changed(output=head.output.changed(inputs=width))
    inner = width if head.dense.outputs == before else head.dense.outputs
    return head.changed(dense=head.dense.changed(inputs=width, outputs=inner), output=head.output.changed(inputs=inner))


def _embeddings(embeddings: EmbeddingsSpec, width: int) -> EmbeddingsSpec:
    if embeddings.project:
        return embeddings.changed(project=embeddings.project.changed(outputs=width))
    tables = {name: getattr(embeddings, name) for name in ("tokens", "positions", "segments")}
    return embeddings.changed(**{name: table.changed(width=width) for name, table in tables.items() if table})


def _layer(layer: LayerSpec, before: int, width: int, heads: int, ffn_width: int) -> LayerSpec:
    is_pre = layer.norm_placement == "pre"
    ffn = _ffn(layer.ffn, width, ffn_width) if layer.ffn else None
    return layer.changed(
        attention=_attention(layer.attention, width, heads) if layer.attention and heads else None,
        attention_norm=None if is_pre and not heads else layer.attention_norm,
        ffn=ffn,
        ffn_norm=None if is_pre and not ffn else layer.ffn_norm,
        exit=narrowed_head(layer.exit, before, width) if layer.exit else None,
    )


def _attention(attention: AttentionSpec, width: int, heads: int) -> AttentionSpec:
    inner = heads * attention.head_width
    return attention.changed(
        heads=heads,
        query=attention.query.changed(inputs=width, outputs=inner),
        key=attention.key.changed(inputs=width, outputs=inner),
        value=attention.value.changed(inputs=width, outputs=inner),
        output=attention.output.changed(inputs=inner, outputs=width),
    )


def _ffn(ffn: FeedForwardSpec | LinearMapSpec, width: int, neurons: int) -> FeedForwardSpec | LinearMapSpec | None:
    if isinstance(ffn, LinearMapSpec):
        return ffn.changed(down=ffn.down.changed(inputs=width, outputs=width))
    if not neurons:
        return None
    return ffn.changed(
        up=ffn.up.changed(inputs=width, outputs=neurons),
        gate=ffn.gate.changed(inputs=width, outputs=neurons) if ffn.gate else None,
        down=ffn.down.changed(inputs=neurons, outputs=width),
    )
