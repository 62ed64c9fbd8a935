"""`isolate_query`: what the query's tokens become no longer depends on the document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compressor.errors import Fault, InputError
from compressor.passes.contract import Pass, PlanError, Promise, Supply
from compressor.passes.refusals import refuse_bi_encoder, refuse_quantized
from compressor.passes.token_rules import told_apart
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


@register("isolate_query")
class IsolateQuery(Pass):
    """Let the query's tokens see each other alone, in every layer; all other tokens go on to see everything.

    ``isolate``: false leaves all as it is.

    The query's tokens are those behind the first token, up to the first separator, that one included; a query that
    spells the separator out ends there. Documents see the query, and the first token, by which most rankers score, sees
    both: so the query meets the document in every layer, and yet its own states are the same beside every document of
    a list. A pair costs what it did; of a list, `rank` runs the query once, through two more graphs in the folder, with
    equal scores (in dynamic int8 up to rounding, as batch mates count there). Where token rules let tokens go these are
    not written. `score`, and every other runtime, takes the ranker's own graph.

    No weight changes, and scores do: `distill` or `finetune` has to follow, which train under the same mask. Put it
    behind what cuts layers and widths, or before: it is heeded wherever layers are run. Other toolkits' attention knows
    no such mask, so that the folder has no torch checkpoint; its graphs load wherever others do.
    Literature: sparse cross-encoders (arXiv 2312.17649), whose best setting this is without its windows.
    """

    isolate: bool = True

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_bi_encoder(spec)
        if not self.isolate:
            return spec
        if spec.isolates_query:
            raise PlanError(
                "a ranker that isolates queries already",
                allowed="one whose queries see documents",
                fix="leave one of the two passes out",
            )
        if spec.cascade:
            raise PlanError(
                "a ranker that has a cascade, whose graphs do not hand on where queries end",
                allowed="one without",
                fix="leave one of the two passes out",
            )
        refuse_quantized(spec, self.verb)
        return spec.changed(isolates_query=True)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        spec = self.plan(ranker.spec)
        if not self.isolate:
            return ranker.changed()
        if not ranker.tokenizer.begins_with_special:
            found = "a tokenizer whose pairs begin with the query's own first token"
            allowed = "one that puts a special token before it, which may see query and document"
            raise InputError(Fault(source=self.verb, found=found, allowed=allowed))
        return ranker.changed(spec=told_apart(ranker, spec, self.verb))

    def promises(self, result: Ranker) -> Sequence[Promise]:
        if not self.isolate:
            return []

        def check(ranker: Ranker) -> str | None:
            return None if ranker.spec.isolates_query else "a query that sees its document"

        return [Promise(text="the query's tokens see each other alone", check=check)]
