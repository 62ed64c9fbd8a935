"""`fold_norms`: layer norms become RMS norms, and what they did beside that moves into the linears around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from compressor.errors import Fault, InputError
from compressor.passes.contract import Pass, PlanError, Promise, Supply
from compressor.passes.refusals import refuse_quantized, refuse_sparse
from compressor.ranker.norm_folding import norms_a_table, stream_norms, with_folded_norms
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


@register("fold_norms")
class FoldNorms(Pass):
    """Turn the layer norms of a pre-norm ranker (ModernBERT) into RMS norms, and fold gains and biases, exactly.

    ``norms``: ``rms``, whoever writes the residual stream writes it with mean zero, so that no norm has to take a mean
    away; ``keep``, layer norms stay.
    ``gains``: ``fold``, a norm's gain and bias go into the linears that read it, if nothing else does, and its gain
    becomes one; ``keep``. A bias always goes from what becomes an RMS norm, which has none.

    Scores stay within 1e-4: nothing but the rounding of weights and fp32 sums in another order changes. It makes
    nothing smaller and promises no speed: it is a preparation for passes that rotate or slice the stream. What comes
    out is no stock architecture, and its states are the old ones less their means.

    Only rankers with norms before their blocks can be folded: behind blocks (BERT) the result of a norm, whose mean is
    not zero, is the stream itself. ModernBERT's first attention reads the normed embeddings without a norm of its own.
    That takes no extra op: they depend on the token alone, so the table holds the normed rows, and as a layer norm's
    result has one dimension less than it has entries, the attention's matrices can put the mean back.

    Literature: "Pre-RMSNorm and Pre-CRMSNorm Transformers" (arXiv 2305.14858).
    """

    norms: Literal["rms", "keep"] = "rms"
    gains: Literal["fold", "keep"] = "fold"

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        refuse_sparse(spec, self.verb)
        if self.norms == "keep" and self.gains == "keep":
            return spec
        _refuse_post_norm(spec)
        if self._to_rms(spec):
            _refuse_readers_of_means(spec)
        return self._folded(spec)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        from compressor.algorithms.norm_folding import folded_norm_weights

        spec = self.plan(ranker.spec)
        if self.norms == "keep" and self.gains == "keep":
            return ranker.changed()
        to_rms = self._to_rms(ranker.spec)
        if to_rms:
            self._refuse_lost_mean(ranker)
        weights = folded_norm_weights(ranker.spec, ranker.weights, spec, to_rms=to_rms, fold_gains=self.gains == "fold")
        supply.note("rms_norms", _kinds(spec).count("rms"))
        supply.note("layer_norms", _kinds(spec).count("layer"))
        return ranker.changed(spec=spec, weights=weights)

    def promises(self, result: Ranker) -> Sequence[Promise]:
        if self.norms == "keep":
            return ()
        most = _kinds(result.spec).count("layer")

        def check(ranker: Ranker) -> str | None:
            found = _kinds(ranker.spec).count("layer")
            return f"{found} layer norms" if found > most else None

        return [Promise(text=f"{most or 'no'} layer norms read the stream", check=check)]

    def _to_rms(self, spec: RankerSpec) -> bool:
        """Whether there is a mean to take away: RMS norms alone never do."""
        return self.norms == "rms" and "layer" in _kinds(spec)

    def _folded(self, spec: RankerSpec) -> RankerSpec:
        return with_folded_norms(spec, to_rms=self._to_rms(spec), fold_gains=self.gains == "fold")

    def _refuse_lost_mean(self, ranker: Ranker) -> None:
        """Refuse gains out of which the mean of the embeddings could be had again with much rounding only.

        Raises:
            InputError: names the weight.
        """
        from compressor.algorithms.norm_folding import MOST_AMPLIFIED, amplification

        if all(reader.norm for reader in stream_norms(ranker.spec)):
            return
        found = amplification(ranker.weights["embeddings.norm.weight"])
        if found > MOST_AMPLIFIED:
            raise InputError(
                Fault(
                    source=self.verb, where="norms",
                    found=f"gains in embeddings.norm.weight that would make rounding {found:,.0f} times as large",
                    allowed=f"up to {MOST_AMPLIFIED:.0f} times", fix="set norms: keep",
                )
            )  # fmt: skip


def _kinds(spec: RankerSpec) -> list[str]:
    return [reader.norm.kind for reader in stream_norms(spec) if reader.norm]


def _refuse_post_norm(spec: RankerSpec) -> None:
    behind = [index for index, layer in enumerate(spec.layers) if layer.norm_placement == "post"]
    if behind:
        raise PlanError(
            f"layer {behind[0]}, whose norms stand behind its blocks: what they give is the residual stream itself, "
            "whose mean, gain and bias the next sum needs",
            allowed="norms before blocks, as ModernBERT has them",
        )


def _refuse_readers_of_means(spec: RankerSpec) -> None:
    """Refuse shapes in which something needs the mean of the stream.

    Raises:
        PlanError: names it.
    """
    embeddings = spec.embeddings
    is_table = norms_a_table(embeddings)
    if embeddings.norm and not is_table and not embeddings.project:
        raise PlanError(
            "a norm over the sum of several embeddings, which writes the stream with a mean of its own",
            allowed="embeddings of tokens alone, without a norm, or with a projection behind it: to take the mean away "
            "would be an op more",
            setting="norms",
        )
    readers = list(stream_norms(spec))
    for place, reader in enumerate(readers):
        if reader.norm is None and not (place == 0 and is_table and _is_layer_norm(spec) and reader.linears):
            whose = "the head" if reader.name == "final_norm" else reader.name.removesuffix("_norm")
            raise PlanError(
                f"{whose} reads the stream without a norm, and so its mean",
                allowed="a norm before every block and before the head; the first block may do without where it reads "
                "a layer norm of token embeddings alone",
                setting="norms",
            )
        if reader.norm and reader.norm.kind == "rms":
            raise PlanError(
                f"{reader.name}, an RMS norm beside layer norms: it reads the mean that they take away",
                allowed="layer norms, or RMS norms, alone",
                setting="norms",
            )


def _is_layer_norm(spec: RankerSpec) -> bool:
    return spec.embeddings.norm is not None and spec.embeddings.norm.kind == "layer"
