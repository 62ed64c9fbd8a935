"""Channels that may be given smaller and read larger: between what gives and what reads them, a factor cancels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from compressor.ranker.forms import layer_linears
from compressor.ranker.norm_folding import reader_names
from compressor.ranker.spec import DenseSparseForm, FeedForwardSpec, LayerSpec, RankerSpec

LinkKind = Literal["norms", "values", "neurons"]


class ChannelLink(NamedTuple):
    """Channels that one part gives and some linears alone read.

    Attributes:
        kind: ``norms``, a norm's result; ``values``, what attention mixes; ``neurons``, of a feed-forward.
        giver: the norm or linear, ``layers.3.ffn_norm``.
        readers: the linears, ``layers.3.ffn.up``.
    """

    kind: LinkKind
    giver: str
    readers: tuple[str, ...]


def channel_links(spec: RankerSpec) -> list[ChannelLink]:
    """Return the links of all layers through which any factors above zero pass unchanged, in order.

    A norm that stands before its block is read by that block alone. One that stands behind gives the residual stream,
    which the next sum reads too: there is no link. Attention mixes values linearly, each channel by itself. Neurons
    pass factors on where a gate has the activation, or where it is a ReLU; a GELU does not.
    """
    return [link for index, layer in enumerate(spec.layers) for link in _links(f"layers.{index}", layer)]


def refused_links(spec: RankerSpec) -> list[str]:
    """Return the linears of links that cannot take factors: those stored as atoms and sparse codes."""
    linears = layer_linears(spec)
    parts = [name for link in channel_links(spec) for name in (link.giver, *link.readers)]
    return [name for name in parts if name in linears and isinstance(linears[name].form, DenseSparseForm)]


def _links(name: str, layer: LayerSpec) -> Iterator[ChannelLink]:
    for kind in ("attention", "ffn"):
        block = getattr(layer, kind)
        if block and layer.norm_placement == "pre" and getattr(layer, f"{kind}_norm"):
            readers = tuple(f"{name}.{kind}.{part}" for part in reader_names(block))
            yield ChannelLink("norms", f"{name}.{kind}_norm", readers)
        if block and kind == "attention":
            yield ChannelLink("values", f"{name}.attention.value", (f"{name}.attention.output",))
    ffn = layer.ffn
    if isinstance(ffn, FeedForwardSpec) and (ffn.gate or ffn.activation == "relu"):
        yield ChannelLink("neurons", f"{name}.ffn.up", (f"{name}.ffn.down",))
