"""Pre-norm shapes in which norms give their means, gains and biases to the linears around them.

Where every norm stands before its block, nobody but norms reads the residual stream. What the norms do in common, to
take the mean away, can then be done by whoever writes the stream: Pre-LN and Pre-RMSNorm transformers are equivalent
(arXiv 2305.14858).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from compressor.ranker.spec import (
    AttentionSpec,
    ClassifierHead,
    EmbeddingsSpec,
    FeedForwardSpec,
    LinearMapSpec,
    NormSpec,
    RankerSpec,
)


class StreamNorm(NamedTuple):
    """A norm that reads the residual stream.

    Attributes:
        name: ``layers.3.ffn_norm``, ``final_norm``; where ``norm`` is None, something reads the stream as it is.
        norm: its spec.
        linears: the linears that read its result; none where something else does, into which nothing can be folded.
    """

    name: str
    norm: NormSpec | None
    linears: tuple[str, ...]


def stream_norms(spec: RankerSpec) -> Iterator[StreamNorm]:
    """Yield who reads the stream of a pre-norm ranker, in the order of the forward pass."""
    for index, layer in enumerate(spec.layers):
        for kind in ("attention", "ffn"):
            if block := getattr(layer, kind):
                linears = tuple(f"layers.{index}.{kind}.{part}" for part in reader_names(block))
                yield StreamNorm(f"layers.{index}.{kind}_norm", getattr(layer, f"{kind}_norm"), linears)
    heads = {f"layers.{index}.exit": layer.exit for index, layer in enumerate(spec.layers) if layer.exit}
    linears = tuple(f"{name}.{part}" for name, head in [*heads.items(), ("head", spec.head)] for part in _first(head))
    yield StreamNorm("final_norm", spec.final_norm, linears if len(linears) == len(heads) + 1 else ())


def stream_writers(spec: RankerSpec) -> Iterator[str]:
    """Yield the names of the linears that write the residual stream."""
    if spec.embeddings.project:
        yield "embeddings.project"
    for index, layer in enumerate(spec.layers):
        if layer.attention:
            yield f"layers.{index}.attention.output"
        if layer.ffn:
            yield f"layers.{index}.ffn.down"


def norms_a_table(embeddings: EmbeddingsSpec) -> bool:
    """Whether the embeddings' norm reads rows of the token table alone, so that the table may hold normed rows."""
    others = (embeddings.positions, embeddings.segments, embeddings.project)
    return embeddings.norm is not None and not any(others)


def with_folded_norms(spec: RankerSpec, *, to_rms: bool, fold_gains: bool) -> RankerSpec:
    """Return the shape of a pre-norm ranker with its norms folded; one whose bias has nowhere to go stays as it is.

    Args:
        spec: the shape.
        to_rms: layer norms become RMS norms, and a norm of the token table's rows goes into the table.
        fold_gains: gains and biases go into the linears behind.
    """
    moved: dict[str, NormSpec] = {}
    biased: set[str] = set()
    for reader in stream_norms(spec):
        if reader.norm is None:
            if to_rms and spec.embeddings.norm and spec.embeddings.norm.bias:
                biased |= set(reader.linears)
            continue
        norm = reader.norm
        if reader.linears or not norm.bias:
            norm = _folded(norm, to_rms=to_rms, fold_gains=fold_gains)
        moved[reader.name] = norm
        biased |= set(reader.linears) if reader.norm.bias and not norm.bias else set()
    layers = []
    for index, layer in enumerate(spec.layers):
        changes: dict[str, Any] = {}
        for kind in ("attention", "ffn"):
            name = f"layers.{index}.{kind}"
            if block := getattr(layer, kind):
                changes[kind] = _with_biases(block, name, biased)
                changes[f"{kind}_norm"] = moved.get(f"{name}_norm")
        if layer.exit:
            changes["exit"] = _with_biases(layer.exit, f"layers.{index}.exit", biased)
        layers.append(layer.changed(**changes))
    embeddings = spec.embeddings
    if to_rms and norms_a_table(embeddings):
        embeddings = embeddings.changed(norm=None)
    return spec.changed(
        embeddings=embeddings,
        layers=tuple(layers),
        final_norm=moved.get("final_norm"),
        head=_with_biases(spec.head, "head", biased),
    )


def _folded(norm: NormSpec, *, to_rms: bool, fold_gains: bool) -> NormSpec:
    if to_rms:
        return NormSpec(kind="rms", epsilon=norm.epsilon, bias=False)
    return norm.changed(bias=False) if fold_gains else norm


def reader_names(block: AttentionSpec | FeedForwardSpec | LinearMapSpec) -> list[str]:
    """Return the names of the linears that read what a block is given."""
    if isinstance(block, AttentionSpec):
        return ["query", "key", "value"]
    if isinstance(block, LinearMapSpec):
        return ["down"]
    return ["up", "gate"] if block.gate else ["up"]


def _first(head: Any) -> list[str]:
    """Return the linear that reads what a head is given, if nothing else does."""
    if not isinstance(head, ClassifierHead):
        return []
    if head.dense:
        return ["dense"]
    return [] if head.activation or head.norm else ["output"]


def _with_biases(block: Any, name: str, biased: set[str]) -> Any:
    changes = {part: value.changed(bias=True) for part, value in block if f"{name}.{part}" in biased}
    return block.changed(**changes)
