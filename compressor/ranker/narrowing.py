"""Smaller shapes of the same kind: fewer residual dimensions, heads and neurons."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.ranker.spec import ClassifierHead, EmbeddingsSpec, Head, LayerSpec, LinearSpec, RankerSpec


def narrowed(spec: RankerSpec, *, width: int, heads: Sequence[int], ffn_widths: Sequence[int]) -> RankerSpec:
    """Return a spec with other widths; head widths, norms, forms and all else stay.

    A head's dense layer as wide as the residual stream follows it, so that a stock shape stays one.

    Args:
        spec: the shape.
        width: residual dimensions.
        heads: attention heads, layer by layer.
        ffn_widths: feed-forward neurons, layer by layer.
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
    attention, ffn = layer.attention, layer.ffn
    inner = heads * attention.head_width

    def reader(linear: LinearSpec, outputs: int) -> LinearSpec:
        return linear.changed(inputs=width, outputs=outputs)

    def writer(linear: LinearSpec, inputs: int) -> LinearSpec:
        return linear.changed(inputs=inputs, outputs=width)

    return layer.changed(
        attention=attention.changed(
            heads=heads,
            query=reader(attention.query, inner),
            key=reader(attention.key, inner),
            value=reader(attention.value, inner),
            output=writer(attention.output, inner),
        ),
        ffn=ffn.changed(
            up=reader(ffn.up, ffn_width),
            gate=reader(ffn.gate, ffn_width) if ffn.gate else None,
            down=writer(ffn.down, ffn_width),
        ),
        exit=narrowed_head(layer.exit, before, width) if layer.exit else None,
    )
