"""`start_from`: the student is another checkpoint than the recipe's teacher, with a new head where it needs one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, PositiveInt

from compressor.errors import InputError
from compressor.passes.contract import Pass, PlanError, Supply
from compressor.passes.refusals import refuse_quantized
from compressor.ranker.spec import ClassifierHead, RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker

SELF = "self"


@register("start_from")
class StartFrom(Pass):
    """Go on with another checkpoint, and its tokenizer, as the student; the recipe's teacher stays the teacher.

    ``checkpoint``: a hub id, a folder, an ONNX file, or a packaged name (``packaged:all-MiniLM-L6-v2``) of a
    cross-encoder, a bi-encoder or a bare encoder; ``self``, the ranker at hand.
    ``head``: ``auto`` keeps what the checkpoint has of a head with one logit, and draws the rest from the seed; ``new``
    draws it anew. BERT's pooler counts to the encoder and stays.
    ``max_length``: the longest row in tokens, up to what the positions allow; by default what the checkpoint's files
    say. Bi-encoders are often cut at 128 or 256, which is little for a query and a document in one row.

    A new head scores at random: `finetune` or `distill` come next. States of the teacher can be learned where both
    read the same tokens, scores always.
    """

    checkpoint: str = Field(min_length=1)
    head: Literal["auto", "new"] = "auto"
    max_length: PositiveInt | None = None

    @property
    def starts_anew(self) -> str:
        return "" if self.checkpoint == SELF else self.checkpoint

    @property
    def changes_weights(self) -> bool:
        return False

    def placed(self, base: Path) -> Self:
        path = (base / Path(self.checkpoint).expanduser()).resolve()
        is_path = self.checkpoint != SELF and path.exists()
        return self.changed(checkpoint=str(path)) if is_path else self

    def fingerprints(self) -> Mapping[str, str]:
        from compressor.families import teacher_fingerprint

        return {self.checkpoint: teacher_fingerprint(self.checkpoint, Path())} if self.starts_anew else {}

    def plan(self, spec: RankerSpec) -> RankerSpec:
        from compressor.families import peek_start
        from compressor.families.start import fresh_head

        if not self.starts_anew:
            refuse_quantized(spec, self.verb)
            is_ranker = isinstance(spec.head, ClassifierHead)
            return self._limited(spec if is_ranker else spec.changed(head=fresh_head(spec, {})))
        try:
            start = peek_start(self.checkpoint, Path())
        except InputError as error:
            raise _plan_error(error) from None
        self._refuse_rounded(start)
        return self._limited(start)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        from compressor.families import load_start
        from compressor.families.start import with_head

        keep_head = self.head == "auto"
        if self.starts_anew:
            start, notes = load_start(self.checkpoint, Path(), seed=supply.seed, keep_head=keep_head)
            for name, value in notes.items():
                supply.note(name, value)
        else:
            found = {name: tensor for name, tensor in ranker.weights.items() if name.startswith("head.")}
            start, drawn = with_head(ranker, found, seed=supply.seed, keep_head=keep_head)
            supply.note("drawn", drawn)
        return start.changed(spec=self._limited(start.spec))

    def _refuse_rounded(self, start: RankerSpec) -> None:
        try:
            refuse_quantized(start, self.verb)
        except PlanError as error:
            fix = "name the folder under stages/ from before its quantize"
            raise PlanError(error.found, allowed=error.allowed, fix=fix, setting="checkpoint") from None

    def _limited(self, spec: RankerSpec) -> RankerSpec:
        if self.max_length is None:
            return spec
        positions = spec.embeddings.positions
        most = positions.rows - spec.embeddings.position_offset if positions else None
        if most is not None and self.max_length > most:
            found = f"rows of {self.max_length} tokens for a table of {most} positions"
            raise PlanError(found, allowed=f"up to {most}", setting="max_length")
        return spec.changed(max_length=self.max_length)


def _plan_error(error: InputError) -> PlanError:
    """Return what is wrong with a checkpoint as what is wrong with the setting that names it."""
    first = error.faults[0]
    if len(error.faults) == 1 and first.source == "teacher":
        return PlanError(first.found, allowed=first.allowed, fix=first.fix, setting="checkpoint")
    found = "a checkpoint that cannot be read: " + "; ".join(map(str, error.faults))
    return PlanError(found, setting="checkpoint")
