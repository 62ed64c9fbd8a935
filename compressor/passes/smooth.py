"""`smooth`: channels that are louder than others are given smaller and read larger, for `quantize` to come."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from compressor.passes.contract import Need, Pass, PlanError, Supply
from compressor.passes.refusals import refuse_quantized, refuse_token_rules
from compressor.ranker.channel_links import ChannelLink, LinkKind, channel_links, refused_links
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker

_MISSING: dict[LinkKind, tuple[str, str]] = {
    "norms": (
        "no norms before blocks: what a norm behind a block gives is the residual stream itself, which the next sum "
        "reads too, so that smaller channels would change scores",
        "values, which is exact wherever norms stand",
    ),
    "values": ("no attention whose values could be given smaller", "norms or neurons"),
    "neurons": (
        "no neurons that pass factors on: a GELU of something smaller is not a smaller GELU",
        "values or norms; neurons where feed-forwards are gated or have a ReLU",
    ),
}


@register("smooth")
class Smooth(Pass):
    """Even out the channels that linears read, exactly, so that activations lose less when they are rounded.

    A few loud channels make the steps of a whole tensor coarse. Each channel is given smaller by a factor and read
    larger by the same: ``max|x|^alpha / max|w|^(1 - alpha)`` (SmoothQuant, arXiv 2211.10438). Scores stay within 1e-4;
    put `quantize` behind, with int8_static or int8_dynamic.

    ``alpha``: how much of the difficulty moves from activations into weights, 0 to 1.
    ``links``: where; by default, wherever it is exact. ``norms``: between a norm and the block that it stands before
    (ModernBERT); behind blocks (BERT), a norm gives the residual stream itself, and nothing can be moved. ``values``:
    between values and the output of attention, in every ranker. ``neurons``: within feed-forwards that are gated or
    have a ReLU. So of a BERT, ``values`` alone are smoothed.
    ``n_pairs``: calibration pairs.
    """

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    links: tuple[LinkKind, ...] | None = None
    n_pairs: PositiveInt = 256

    def needs(self) -> frozenset[Need]:
        return frozenset() if self.links == () else frozenset({"calibration"})

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        if self.links == ():
            return spec
        refuse_token_rules(spec, self.verb)
        if found := refused_links(spec):
            raise PlanError(f"{found[0]}, stored as atoms and sparse codes", fix=f"put {self.verb} before dense_sparse")
        kinds = {link.kind for link in channel_links(spec)}
        for kind in self.links or ():
            if kind not in kinds:
                reason, allowed = _MISSING[kind]
                raise PlanError(reason, allowed=allowed, setting="links")
        if not kinds:
            raise PlanError("nothing to smooth: no attention, and no norm before a block", fix="leave smooth out")
        return spec

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self.links == ():
            return ranker.changed()
        from compressor.algorithms.calibration import calibration_batches
        from compressor.algorithms.channel_scaling import largest_inputs, scaled_channels, smoothing_factors

        links = self._chosen(ranker.spec)
        batches = calibration_batches(ranker, supply.pairs("calibration", self.n_pairs))
        # Those that read one channel read the same tokens, or, where the last layer scores one, more of them.
        readers = [link.readers[-1] for link in links]
        largest = largest_inputs(ranker.module, batches, readers)
        weights = dict(ranker.weights)
        for link, reader in zip(links, readers, strict=True):
            weights |= scaled_channels(
                weights, link, smoothing_factors(weights, link.readers, largest[reader], self.alpha)
            )
        supply.note("smoothed", dict(Counter(link.kind for link in links)))
        supply.note("left_out", {kind: _MISSING[kind][0] for kind in self._left_out(ranker.spec)})
        return ranker.changed(weights=weights)

    def _chosen(self, spec: RankerSpec) -> list[ChannelLink]:
        return [link for link in channel_links(spec) if self.links is None or link.kind in self.links]

    def _left_out(self, spec: RankerSpec) -> list[LinkKind]:
        found = {link.kind for link in channel_links(spec)}
        return [kind for kind in _MISSING if self.links is None and kind not in found]
