"""Whole attentions and feed-forwards that go: the constant that they leave moves into what stands before them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from compressor.ranker.spec import LayerSpec, RankerSpec

OUTPUTS = {"attention": "attention.output", "ffn": "ffn.down"}


def place_of_constant(spec: RankerSpec, index: int, block: str) -> str | None:
    """Return the bias that can take in what an absent block is to add to every token.

    With norms behind blocks (post) it is that of the norm before the block, with norms before blocks (pre) that of the
    last block that writes. Whoever read the stream between them was the block itself, so scores are the same.

    Args:
        spec: the shape without the block.
        index: its layer.
        block: ``attention`` or ``ffn``.

    Returns:
        The name of a weight; None where there is none, or where an exit reads the stream there.
    """
    layers = spec.layers
    if block == "ffn" and layers[index].norm_placement == "post":
        norm = layers[index].attention_norm
        return f"layers.{index}.attention_norm.bias" if norm and norm.bias else None
    if block == "ffn":
        if attention := layers[index].attention:
            return f"layers.{index}.attention.output.bias" if attention.output.bias else None
        return place_of_constant(spec, index, "attention")
    if index == 0:
        embeddings = spec.embeddings
        if embeddings.project:
            return "embeddings.project.bias" if embeddings.project.bias else None
        return "embeddings.norm.bias" if embeddings.norm and embeddings.norm.bias else None
    before = layers[index - 1]
    if before.exit or before.norm_placement != layers[index].norm_placement:
        return None
    if before.norm_placement == "post":
        return f"layers.{index - 1}.ffn_norm.bias" if before.ffn_norm and before.ffn_norm.bias else None
    if before.ffn:
        return f"layers.{index - 1}.ffn.down.bias" if before.ffn.down.bias else None
    return place_of_constant(spec, index - 1, "ffn")


def never_absent(spec: RankerSpec, smallest: RankerSpec) -> set[tuple[int, str]]:
    """Return the blocks, by layer and kind, that cannot go without a change: their bias would have no place.

    Args:
        spec: the shape before.
        smallest: the same without any block: what has a place there has one in every shape between.
    """
    return {
        (index, block)
        for index, layer in enumerate(spec.layers)
        for block in OUTPUTS
        if _has_bias(layer, block) and place_of_constant(smallest, index, block) is None
    }


def _has_bias(layer: LayerSpec, block: str) -> bool:
    if block == "attention":
        return layer.attention is not None and layer.attention.output.bias
    return layer.ffn is not None and layer.ffn.down.bias


def with_biases_of_absent(
    whole: RankerSpec, weights: Mapping[str, Tensor], small: RankerSpec, cut: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return weights in which the output biases of blocks that went have moved to where they still count.

    Args:
        whole: the shape before.
        weights: its weights.
        small: the shape after, with as many layers.
        cut: its weights.
    """
    result = dict(cut)
    for index, (before, after) in enumerate(zip(whole.layers, small.layers, strict=True)):
        for block, output in OUTPUTS.items():
            bias = weights.get(f"layers.{index}.{output}.bias")
            is_gone = getattr(before, block) is not None and getattr(after, block) is None
            place = place_of_constant(small, index, block) if is_gone and bias is not None else None
            if place is not None and bias is not None:
                result[place] = result[place] + bias
    return result
