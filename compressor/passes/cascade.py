"""`cascade`: of a query's candidates, only the best of each stage go on to deeper layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from compressor.cascade_stages import Cascade as Stages
from compressor.cascade_stages import CascadeStage, Place
from compressor.errors import Fault, InputError
from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply
from compressor.passes.refusals import refuse_bi_encoder
from compressor.ranker.spec import RankerSpec
from compressor.records import Record
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.data import RankingData
    from compressor.ranker.ranker import Ranker


class StageSettings(Record):
    """Where candidates are dropped. ``keep``: the share of the list that goes on; ``auto``, as few as may."""

    behind: Place
    keep: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"


@register("cascade")
class Cascade(Pass):
    """Rank lists in stages: behind each, the weakest candidates are dropped, and only the others go on to more layers.

    ``stages``: in the order of depth. ``{behind: 1, keep: 0.3}``: by the scores of the exit behind layer 1, 30 % of the
    list go on; ``{behind: embeddings, keep: 0.5}``: before all layers, by the similarity of token embeddings, which
    needs tokens of two segments. Shares are of the whole list and rounded up. ``keep: auto`` takes the smallest share
    that lets enough through.
    ``keep_at_least``: so many go on whatever the shares say.
    ``recall``: for ``auto``, the share of the ranker's own ``top`` candidates that must get through all stages: a lower
    bound with 95 % confidence, over lists of calibration data. Given shares are measured on them too.
    ``n_lists``, ``candidates``: how many lists, and how many candidates each. 0 lists: nothing is measured. A share
    means what it meant here on lists about as long as these.

    Scores of pairs do not change, nor does the graph that other runtimes load: the folder gets graphs beside it, by
    which ours ranks lists. Dropped candidates stand below all that went further. Train the exits first (`distill` with
    ``exit_losses``), and set the cascade up for the final weights: what was measured says nothing of later ones.
    Literature: Cascade Transformer (arXiv 2005.02534); similarity-based early exit (SEE, SIGIR 2025).
    """

    stages: tuple[StageSettings, ...] = Field(min_length=1)
    keep_at_least: PositiveInt = 10
    recall: float = Field(default=0.99, gt=0, lt=1)
    top: PositiveInt = 10
    n_lists: NonNegativeInt = 200
    candidates: PositiveInt = 100

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        self._with([stage.keep for stage in self.stages])
        if self._has_auto and not self.n_lists:
            raise ValueError("keep: auto is measured on lists: n_lists from 1")
        if self._has_auto and self.keep_at_least < self.top:
            raise ValueError(f"keep_at_least {self.keep_at_least} is below top {self.top}: short lists would lose some")
        if self.n_lists and self.candidates <= self.keep_at_least:
            raise ValueError(
                f"candidates {self.candidates}: keep_at_least {self.keep_at_least} would drop none of them"
            )
        return self

    def needs(self) -> frozenset[Need]:
        return frozenset({"calibration"} if self.n_lists else ())

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_bi_encoder(spec)
        if spec.cascade:
            raise PlanError("a ranker that has a cascade", allowed="one without", fix="leave one of the two passes out")
        if spec.isolates_query:
            raise PlanError(
                "a ranker that isolates queries, and a cascade's graphs do not hand on where these end",
                allowed="one whose queries see documents",
                fix="leave one of the two passes out",
            )
        if spec.rule_layers:
            raise PlanError(
                f"a ranker that lets tokens go behind layer {spec.rule_layers[0]}",
                allowed="one all of whose layers see the same tokens: a cascade's graphs hand all of them on",
                fix="leave one of the two passes out",
            )
        for place, stage in enumerate(self.stages):
            self._refuse(spec, stage.behind, f"stages.{place}.behind")
        return spec.changed(cascade=self._with([stage.keep for stage in self.stages]))

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        planned = self.plan(ranker.spec)
        if not self.n_lists:
            return ranker.changed(spec=planned)
        from compressor.algorithms.stage_recall import measure_recall, smallest_shares

        if self.stages[0].behind == "embeddings":
            self._refuse_one_segment(ranker)
        places = [stage.behind for stage in self.stages]
        lists, n_tokens = self._scored(ranker, supply.data("calibration"), places, supply.seed)
        given = [None if stage.keep == "auto" else stage.keep for stage in self.stages]
        shares = smallest_shares(
            lists, places, given, keep_at_least=self.keep_at_least, top=self.top, target=self.recall
        )  # fmt: skip
        cascade = self._with(shares)
        result = ranker.changed(spec=ranker.spec.changed(cascade=cascade))
        notes = [
            {**stage.model_dump(), "kept": round(found.kept, 4), "recall": round(found.mean, 5),
             "recall_bound": round(found.bound, 5)}
            for stage, found in zip(cascade.stages, measure_recall(lists, cascade, self.top), strict=True)
        ]  # fmt: skip
        supply.note("stages", notes)
        supply.note("lists", len(lists))
        supply.note("macs_share", round(_macs_share(result.spec, [one.shape[1] for one in lists], n_tokens), 4))
        return result

    def promises(self, result: Ranker) -> Sequence[Promise]:
        cascade = result.spec.cascade

        def check(ranker: Ranker) -> str | None:
            return None if ranker.spec.cascade == cascade else f"the cascade {ranker.spec.cascade}"

        shown = ", ".join(str(stage.behind) for stage in self.stages)
        return [Promise(text=f"lists are cut behind {shown} as they were when this was measured", check=check)]

    @property
    def _has_auto(self) -> bool:
        return any(stage.keep == "auto" for stage in self.stages)

    def _with(self, shares: Sequence[float | Literal["auto"]]) -> Stages:
        """Return the cascade with these shares; ``auto`` stands for the most that it may be."""
        stages: list[CascadeStage] = []
        for stage, share in zip(self.stages, shares, strict=True):
            most = stages[-1].keep if stages else 1.0
            stages.append(CascadeStage(behind=stage.behind, keep=most if share == "auto" else share))
        return Stages(stages=tuple(stages), keep_at_least=self.keep_at_least)

    def _refuse(self, spec: RankerSpec, place: Place, setting: str) -> None:
        """Refuse a stage that has nothing to score with.

        Raises:
            PlanError: names ``setting``.
        """
        exits = spec.exit_layers
        if place == "embeddings":
            if not spec.tells_query_from_document:
                found = "a ranker whose tokens are all of one segment, so that embeddings do not tell what the query is"
                raise PlanError(found, allowed="stages behind layers", setting=setting)
        elif place not in exits:
            has_none = "which has no exit" if place < len(spec.layers) else f"of a ranker of {len(spec.layers)} layers"
            raise PlanError(
                f"layer {place}, {has_none}",
                allowed=f"the layers with an exit: {', '.join(map(str, exits)) or 'none'}",
                fix="" if exits else f"put add_exits before {self.verb}, and distill or finetune between them",
                setting=setting,
            )

    def _refuse_one_segment(self, ranker: Ranker) -> None:
        types = ranker.tokenizer.encode_pairs([("a", "b")]).type_ids[0]
        if not types.any():
            found = "a tokenizer that puts query and document into one segment"
            raise InputError(Fault(source=self.verb, where="stages.0.behind", found=found, allowed="a layer's index"))

    def _scored(
        self, ranker: Ranker, data: RankingData, places: Sequence[Place], seed: int
    ) -> tuple[list[np.ndarray], float]:
        """Return the scores of each list at each stage and at the head, and the mean number of tokens.

        Raises:
            InputError: the lists are too few or too short to show anything.
        """
        from compressor.ranker.cascade import score_stages

        long = [query for query, found in data.candidates.items() if len(found) > self.keep_at_least]
        drawn = sorted(np.random.default_rng(seed).permutation(len(long))[: self.n_lists].tolist())
        self._refuse_few(len(drawn), len(data.candidates), data.name)
        pairs, ends = [], []
        for index in drawn:
            pairs += [(long[index], document) for document in data.candidates[long[index]][: self.candidates]]
            ends.append(len(pairs))
        texts = data.texts(pairs)
        scores = score_stages(ranker, places, texts)
        return np.split(scores, ends[:-1], axis=1), float(ranker.tokenizer.encode_pairs(texts).lengths.mean())

    def _refuse_few(self, n_lists: int, n_queries: int, data: str) -> None:
        from compressor.algorithms.stage_recall import fewest_items

        needed = -(-fewest_items(self.recall) // self.top) if self._has_auto else 1
        if n_lists < needed:
            found = f"{n_lists} of {n_queries} lists that are longer than keep_at_least {self.keep_at_least}"
            why = f" to show a recall of {self.recall:g} of the first {self.top}" if self._has_auto else ""
            fix = "name other data.calibration" if n_lists < self.n_lists else "raise n_lists"
            raise InputError(
                Fault(source=self.verb, where=data, found=found, allowed=f"at least {needed}{why}", fix=fix)
            )


def _macs_share(spec: RankerSpec, lengths: Sequence[int], n_tokens: float) -> float:
    """Return the multiply-adds of these lists as a share of what they are at full depth, all pairs of mean length."""
    from compressor.ranker.cost import macs, macs_of_stages

    assert spec.cascade  # noqa: S101  # the caller's own
    tokens = round(n_tokens)
    by_stage, whole = macs_of_stages(spec, tokens), macs(spec, tokens)
    total = 0
    for length in lengths:
        counts = [length, *spec.cascade.counts(length)]
        dropped = [before - after for before, after in itertools.pairwise(counts)]
        total += sum(n * cost for n, cost in zip([*dropped, counts[-1]], by_stage, strict=True))
    return total / (whole * sum(lengths))
